"""Committing all that is left of a block, once the model will not change its mind."""

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block
from .scores import entropy, likeliest
from .selection import Selector


class EarlyCommitSelector(Selector):
    """
    Base of these rules.

    Args:
        selector ([`~llada.generation.selection.Selector`]):
            Says what to commit before.
    """

    def __init__(self, selector: Selector):
        self.selector = selector

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.selector.begin(canvas, block)

    def eligible(self, canvas: Canvas, block: Block) -> torch.Tensor | None:
        return self.selector.eligible(canvas, block)

    def observed(self, canvas: Canvas, block: Block, eligible: torch.Tensor) -> torch.Tensor:
        return self.selector.observed(canvas, block, eligible)

    def is_settled(self, proposal: Proposal) -> torch.Tensor:
        """Whether all that is eligible can be committed, `torch.BoolTensor` of shape `(batch,)`. Called every step."""
        raise NotImplementedError

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        chosen = self.selector.select(proposal, canvas, block)
        return chosen | (proposal.eligible & self.is_settled(proposal).unsqueeze(1))


class GapSelector(EarlyCommitSelector):
    """
    Commits the rest once the mean distance between the two largest logits exceeds a bound, which is lower the more of
    the block is filled (Prophet, arXiv 2508.19982).

    Args:
        selector ([`~llada.generation.selection.Selector`]):
            As in [`EarlyCommitSelector`].
        gaps (`list[float]`):
            The bounds, for equal shares of the block, the first filled first.
    """

    def __init__(self, selector: Selector, gaps: list[float]):
        super().__init__(selector)
        self.gaps = gaps

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        # of every row: the masks at first, and the bounds; copied to the device once
        self.at_first = torch.tensor(block.num_masked, device=canvas.tokens.device).clamp(min=1)
        self.bounds = torch.tensor(self.gaps, device=canvas.tokens.device)

    def is_settled(self, proposal: Proposal) -> torch.Tensor:
        first, second = proposal.logits.float().topk(2, dim=1).values.unbind(1)
        left = proposal.eligible.sum(1)
        stage = ((self.at_first - left) * len(self.gaps) // self.at_first).clamp(0, len(self.gaps) - 1)
        return _mean(first - second, proposal) > self.bounds[stage]


class SteadySelector(EarlyCommitSelector):
    """
    Commits the rest once the likeliest tokens have not changed for some steps and their mean entropy is low (stopping
    rule of DiffusionGemma, for masks).

    Args:
        selector ([`~llada.generation.selection.Selector`]):
            As in [`EarlyCommitSelector`].
        steps (`int`):
            In how many steps nothing may have changed since the step before.
        entropy_bound (`float`):
            The entropy not to reach, in nats.
    """

    def __init__(self, selector: Selector, steps: int, entropy_bound: float):
        super().__init__(selector)
        self.steps = steps
        self.entropy_bound = entropy_bound

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.likeliest = torch.full_like(canvas.tokens, -1)
        self.steady = torch.zeros_like(canvas.ends)

    def is_settled(self, proposal: Proposal) -> torch.Tensor:
        now = proposal.spread(likeliest(proposal.logits), self.likeliest)
        unchanged = ((now == self.likeliest) | ~proposal.eligible).all(1)
        self.likeliest = now
        self.steady = torch.where(unchanged, self.steady + 1, 0)
        uncertainty = _mean(entropy(proposal.logits, proposal.scores.dtype), proposal)
        return (self.steady >= self.steps) & (uncertainty < self.entropy_bound)


def _mean(values: torch.Tensor, proposal: Proposal) -> torch.Tensor:
    """The mean of `values`, shape `(positions,)`, over what is eligible in each row."""
    eligible = proposal.spread(values, 0.0).masked_fill(~proposal.eligible, 0.0)
    return eligible.sum(1) / proposal.eligible.sum(1).clamp(min=1)


__all__ = ["EarlyCommitSelector", "GapSelector", "SteadySelector"]
