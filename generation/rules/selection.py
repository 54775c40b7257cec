"""Which proposals of a step are committed."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block


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
        traits (`frozenset[str]`):
            What is particular about the rule, of [`~llada.generation.traits.TRAITS`]: with which others it cannot
            work.
    """

    keeps_idle_steps = False
    traits: frozenset[str] = frozenset()

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
            proposal ([`~llada.generation.proposal.Proposal`]):
                Tokens and scores of the eligible positions.
            canvas ([`Canvas`]):
                The canvas they were made for.
            block ([`Block`]):
                The block.

        Returns:
            `torch.BoolTensor` of shape `(batch, length)`: The positions to commit.
        """
        raise NotImplementedError


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


__all__ = ["AdaptiveSelector", "Selector", "StepPlan", "best"]
