"""Base of the rules that commit all that is left of a block, once the model will not change its mind."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from .selection import Selector


class EarlyCommitSelector(Selector):
    """
    Base of these rules.

    Args:
        selector ([`~llada.generation.rules.selection.Selector`]):
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


def mean_of_eligible(values: torch.Tensor, proposal: Proposal) -> torch.Tensor:
    """The mean of `values`, shape `(positions,)`, over what is eligible in each row."""
    eligible = proposal.spread(values, 0.0).masked_fill(~proposal.eligible, 0.0)
    return eligible.sum(1) / proposal.eligible.sum(1).clamp(min=1)


__all__ = ["EarlyCommitSelector", "mean_of_eligible"]
