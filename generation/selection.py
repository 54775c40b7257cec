"""Which proposals of a step are committed."""

from collections.abc import Callable

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block, Region


# of a plan, so that it fits in memory and ends
MAX_STEPS_PER_BLOCK = 2**16


def share_out(total: int, parts: int) -> list[int]:
    """Splits `total` into `parts` integers that differ by at most one, the larger ones first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + 1] * remainder + [quotient] * (parts - remainder)


def best(scores: torch.Tensor, most: int, limits: torch.Tensor | None = None) -> torch.Tensor:
    """
    The best positions of each row.

    Args:
        scores (`torch.FloatTensor` of shape `(batch, length)`):
            How good each position is, minus infinity where it may not be chosen.
        most (`int`):
            How many to choose in a row.
        limits (`torch.LongTensor` of shape `(batch,)`, *optional*):
            How many in each row, at most `most`, where rows differ.

    Returns:
        `torch.BoolTensor` of shape `(batch, length)`.
    """
    values, order = scores.topk(min(most, scores.shape[1]), dim=1)
    wanted = values > -torch.inf
    if limits is not None:
        wanted &= torch.arange(order.shape[1], device=scores.device) < limits.unsqueeze(1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, wanted)


class StepPlan:
    """
    How many positions each row commits in the steps of a block. Where rows differ, the numbers are copied to the
    device before the first step, so that no step waits for them.

    Args:
        schedules (`list[list[int]]`):
            By row and step.
        beyond (`int`):
            The number in the steps after the last of a row.
        device (`torch.device`):
            Device of the canvas.
    """

    def __init__(self, schedules: list[list[int]], beyond: int, device: torch.device):
        longest = max(len(schedule) for schedule in schedules)
        steps = list(zip(*(schedule + [beyond] * (longest - len(schedule)) for schedule in schedules), strict=True))
        self.beyond = beyond
        self.most = [max(step) for step in steps]
        self.limits = torch.tensor(steps, device=device) if any(len(set(step)) > 1 for step in steps) else None

    def __len__(self) -> int:
        return len(self.most)

    def at(self, step: int) -> tuple[int, torch.Tensor | None]:
        """The largest number of any row and, where rows may differ, that of each, as [`best`] takes them."""
        if step >= len(self):
            return self.beyond, None
        return self.most[step], None if self.limits is None else self.limits[step]


class Selector:
    """
    Base of the rules that say which proposals to commit. A rule looks at one row at a time, so what it decides does
    not depend on the batch, and it commits at least one position in every row that takes part in a step.

    Attributes:
        keeps_idle_steps (`bool`):
            Whether the block goes on after a step in which nothing is eligible.
    """

    keeps_idle_steps = False

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""

    def eligible(self, canvas: Canvas, block: Block) -> torch.Tensor | None:
        """
        The positions that may be committed in the coming step: `torch.BoolTensor` of shape `(batch, length)`, or
        `None` if the plan for this block has come to its end.
        """
        return canvas.masked & block.reached

    def observed(self, canvas: Canvas, block: Block, eligible: torch.Tensor) -> torch.Tensor:
        """
        The positions whose logits the rule also needs in the coming step, though it will not commit them:
        `torch.BoolTensor` of shape `(batch, length)`, none in rows where nothing is `eligible`.
        """
        return torch.zeros_like(eligible)

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        """
        Args:
            proposal ([`~llada.generation.proposals.Proposal`]):
                Tokens and scores of the eligible positions.
            canvas ([`Canvas`]):
                The canvas they were made for.
            block ([`Block`]):
                The block.

        Returns:
            `torch.BoolTensor` of shape `(batch, length)`: The positions to commit.
        """
        raise NotImplementedError


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


class AdaptiveSelector(Selector):
    """
    Base of the rules that let the model say how many positions a step commits: those that are sure, or as many of the
    best as a plan says where that is more.

    Args:
        floors (`list[list[list[int]]]`, *optional*):
            Least number per row, block and step, see [`schedule_steps`]. One where it does not say.
    """

    def __init__(self, floors: list[list[list[int]]] | None = None):
        self.floors = floors

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.plan = StepPlan([rows[block.index] for rows in self.floors or ()] or [[]], 1, canvas.tokens.device)
        self.step = -1

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        """
        Args:
            scores (`torch.FloatTensor` of shape `(batch, length)`):
                How good each position is, minus infinity where nothing may be committed.
            proposal, canvas, block:
                As in [`~Selector.select`].

        Returns:
            `torch.BoolTensor` of shape `(batch, length)`: The positions the rule would commit, maybe none.
        """
        raise NotImplementedError

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        self.step += 1
        scores = proposal.eligible_scores()
        most, limits = self.plan.at(self.step)
        sure = self.sure(scores, proposal, canvas, block)
        least = most if limits is None else limits
        return torch.where((sure.sum(1) >= least).unsqueeze(1), sure, best(scores, most, limits))


class ThresholdSelector(AdaptiveSelector):
    """
    Commits every position whose score reaches a threshold (Fast-dLLM, arXiv 2505.22618), and at least the share of a
    step with a plan (LLaDA2.0, arXiv 2512.15745).

    Args:
        threshold (`float`):
            The score to reach.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`AdaptiveSelector`].
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether a score equal to the threshold reaches it. Published samplers differ.
    """

    def __init__(self, threshold: float, floors: list[list[list[int]]] | None = None, inclusive: bool = True):
        super().__init__(floors)
        self.threshold = threshold
        self.inclusive = inclusive

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        return scores >= self.threshold if self.inclusive else scores > self.threshold


__all__ = [
    "MAX_STEPS_PER_BLOCK",
    "AdaptiveSelector",
    "QuotaSelector",
    "Selector",
    "StepPlan",
    "ThresholdSelector",
    "best",
    "schedule_steps",
    "share_out",
]
