"""Base of the rules that commit the best positions of a row, and from their confidences decide how many."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from .selection import AdaptiveSelector


class RankedSelector(AdaptiveSelector):
    """Base of these rules."""

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        """
        Args:
            ranked (`torch.FloatTensor` of shape `(batch, length)`):
                The scores of each row, the best first, those that may not be committed last, minus infinity.
            order (`torch.LongTensor` of shape `(batch, length)`):
                The positions they belong to.
            proposal ([`~llada.generation.proposal.Proposal`]):
                What is proposed there.

        Returns:
            `torch.LongTensor` of shape `(batch,)`: How many of the best to commit.
        """
        raise NotImplementedError

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        counts = self.accepted(ranked, order, proposal)
        chosen = ranks_of(ranked) <= counts.unsqueeze(1)
        return torch.zeros_like(chosen).scatter_(1, order, chosen & (ranked > -torch.inf))


def ranks_of(ranked: torch.Tensor) -> torch.Tensor:
    """The numbers 1, 2, ... of ranked scores of shape `(batch, length)`, in their dtype."""
    return torch.arange(1, ranked.shape[1] + 1, device=ranked.device, dtype=ranked.dtype)


__all__ = ["RankedSelector", "ranks_of"]
