"""A fixed number of positions per step, the best first: the sampler of LLaDA (arXiv 2502.09992, §2.4)."""

from collections.abc import Callable

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block, Region
from ..rule import Fields, Rule, Setup, Table, setting
from .selection import Selector, StepPlan, best


# of a plan, so that it fits in memory and ends
MAX_STEPS_PER_BLOCK = 2**16


def share_out(total: int, parts: int) -> list[int]:
    """Splits `total` into `parts` integers that differ by at most one, the larger ones first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + 1] * remainder + [quotient] * (parts - remainder)


def schedule_steps(
    region: Region,
    steps: int | None = None,
    max_denoising_steps: int | None = None,
    keep_idle_steps: bool = False,
    whole_blocks: bool = False,
    share: Callable[[int, int], list[int]] = share_out,
) -> list[list[list[int]]]:
    """
    Shares out the masks of every block over its steps, row by row.

    Args:
        region ([`Region`]):
            The blocks, with the masks in each.
        steps (`int`, *optional*):
            Number of steps over all blocks, shared out over the blocks of a row that hold masks.
        max_denoising_steps (`int`, *optional*):
            Number of steps per block. One token per step if neither is given.
        keep_idle_steps (`bool`, *optional*, defaults to `False`):
            Whether to keep the steps that commit nothing, because a block has more steps than masks.
        whole_blocks (`bool`, *optional*, defaults to `False`):
            Whether to share out all positions of a block that holds masks, as LLaDA2 does.
        share (`Callable[[int, int], list[int]]`, *optional*, defaults to [`share_out`]):
            Splits a number of positions into a number of steps.

    Returns:
        `list[list[list[int]]]`: How many positions to commit, by row, block and step.

    Raises:
        ValueError: If there are fewer steps than blocks, or more for a block than a plan can have.
    """
    rows = []
    for counts in region.num_masked:
        num_blocks = sum(count > 0 for count in counts)
        if steps is not None and steps < num_blocks:
            raise ValueError(
                f"`steps={steps}` is fewer than the {num_blocks} blocks to fill; give at least one step per block, or "
                "a larger `block_length`."
            )
        left = iter(share_out(steps, num_blocks) if steps is not None and num_blocks else ())
        schedule = []
        for count in counts:
            positions = region.block_length if count and whole_blocks else count
            num_steps = (next(left) if steps is not None else max_denoising_steps or positions) if count else 0
            if num_steps > MAX_STEPS_PER_BLOCK:
                raise ValueError(
                    f"`{'max_denoising_steps' if steps is None else 'steps'}` gives a block {num_steps} steps, for "
                    f"{positions} positions; a block can have at most {MAX_STEPS_PER_BLOCK}."
                )
            quotas = share(positions, num_steps) if num_steps else []
            schedule.append(quotas if keep_idle_steps else [quota for quota in quotas if quota])
        rows.append(schedule)
    return rows


class QuotaSelector(Selector):
    """
    Commits a fixed number of positions per step, the best first (arXiv 2502.09992, §2.4).

    Args:
        quotas (`list[list[list[int]]]`):
            How many positions to commit, by row, block and step, see [`schedule_steps`].
        keep_idle_steps (`bool`, *optional*, defaults to `False`):
            Whether a block goes on after a step that commits nothing.
    """

    def __init__(self, quotas: list[list[list[int]]], keep_idle_steps: bool = False):
        self.quotas = quotas
        self.keeps_idle_steps = keep_idle_steps

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.plan = StepPlan([rows[block.index] for rows in self.quotas], 0, canvas.tokens.device)
        self.step = -1

    def eligible(self, canvas: Canvas, block: Block) -> torch.Tensor | None:
        self.step += 1
        if self.step >= len(self.plan):
            return None
        most, limits = self.plan.at(self.step)
        eligible = canvas.masked & block.reached
        if limits is not None:
            return eligible & (limits > 0).unsqueeze(1)
        return eligible if most else torch.zeros_like(eligible)

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        return best(proposal.eligible_scores(), *self.plan.at(self.step))


def floors(setup: Setup) -> list[list[list[int]]] | None:
    """The least numbers per step that `max_denoising_steps` or `steps` ask an adaptive rule for, if one is set."""
    steps, per_block = setup.config.steps, setup.config.max_denoising_steps
    if steps is None and per_block is None:
        return None
    return schedule_steps(setup.region, steps, per_block, whole_blocks=setup.block_causal)


def quotas(setup: Setup, keep_idle_steps: bool = False) -> list[list[list[int]]]:
    """The plan of a call: equal shares, or those of another rule."""
    steps, per_block = setup.config.steps, setup.config.max_denoising_steps
    share = setup.first("shares") or share_out
    return schedule_steps(setup.region, steps, per_block, keep_idle_steps, share=share)


class Quota(Rule):
    """A plan of steps."""

    switches = ("max_denoising_steps", "steps")
    traits = frozenset({"plans_steps"})
    in_reference = True
    table = Table(
        "commits",
        "quota",
        "LLaDA, [2502.09992](https://arxiv.org/abs/2502.09992)",
        "as many forwards as steps, easy or not",
        "a fixed budget; one token per step is the reference for quality",
    )

    class Settings(Fields):
        max_denoising_steps: int | None = setting(
            int, "Number of steps per block. One token per step if neither this nor `steps` is given.", least=1
        )
        steps: int | None = setting(
            int,
            "Number of steps in all, the paper's parameter, shared out over the blocks. The first blocks get one more "
            "if it does not divide. Excludes `max_denoising_steps`.",
            least=1,
        )

    @classmethod
    def plan(cls, setup: Setup) -> QuotaSelector:
        """The selector of a call without any other rule."""
        keep_idle_steps = setup.config.rng_compat is not None
        return QuotaSelector(quotas(setup, keep_idle_steps), keep_idle_steps)


__all__ = ["MAX_STEPS_PER_BLOCK", "Quota", "QuotaSelector", "floors", "quotas", "schedule_steps", "share_out"]
