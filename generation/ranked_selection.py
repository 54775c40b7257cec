"""Rules that commit the best positions of a row, and from their confidences decide how many."""

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block
from .scores import entropy
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
            proposal ([`~llada.generation.proposals.Proposal`]):
                What is proposed there.

        Returns:
            `torch.LongTensor` of shape `(batch,)`: How many of the best to commit.
        """
        raise NotImplementedError

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        counts = self.accepted(ranked, order, proposal)
        chosen = _ranks(ranked) <= counts.unsqueeze(1)
        return torch.zeros_like(chosen).scatter_(1, order, chosen & (ranked > -torch.inf))


class FactorSelector(RankedSelector):
    """
    Commits the n best, for the largest n with (n + 1)(1 - c_n) < f, where c_n is the n-th best confidence (Fast-dLLM,
    arXiv 2505.22618, Theorem 1: with f = 1 and every confidence above 1 - 1 / (n + 1), decoding them together gives
    what decoding one after the other gives).

    Args:
        factor (`float`):
            The bound f.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.selection.AdaptiveSelector`].
    """

    def __init__(self, factor: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.factor = factor

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        return ((_ranks(ranked) + 1) * (1 - ranked) < self.factor).sum(1)


class ReferenceFactorSelector(FactorSelector):
    """
    The factor rule as Fast-dLLM's code has it: it walks down the ranking to the first confidence below
    1 - f / (n + 1), always takes the best, and, if the walk ends at the last position that is still masked, takes
    that, too.
    """

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        ranks = _ranks(ranked)
        available = (ranked > -torch.inf).sum(1)
        passes = (ranked >= 1 - self.factor / (ranks + 1)) | (ranks == 1)
        walked = passes.long().cumprod(1).sum(1)
        return torch.where(walked >= available - 1, available, walked)


class FrechetSelector(RankedSelector):
    """
    Commits the n best as long as the least probability that all of them are right (Fréchet's bound, the sum of their
    confidences minus n - 1) exceeds the greatest probability that the n-th is wrong by more than a margin
    (Fast-dLLM++, arXiv 2606.02955).

    Args:
        margin (`float`):
            The margin. For equal confidences a factor of 1 minus it decides the same.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.selection.AdaptiveSelector`].
    """

    def __init__(self, margin: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.margin = margin

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        together = ranked.cumsum(1) - (_ranks(ranked) - 1)
        return (together - (1 - ranked) > self.margin).sum(1)


class EntropyBoundSelector(RankedSelector):
    """
    Commits the n best as long as their entropies, without the largest, sum up to no more than a bound, which limits
    what predicting them independently loses (EB-Sampler, arXiv 2505.24857, Eq. 8).

    Args:
        bound (`float`):
            The bound, in nats. 0 commits one position per step.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.selection.AdaptiveSelector`].
    """

    def __init__(self, bound: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.bound = bound

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        entropies = proposal.spread(entropy(proposal.logits, proposal.scores.dtype), 0.0).gather(1, order)
        entropies = entropies.masked_fill(ranked == -torch.inf, torch.inf)
        within = entropies.cumsum(1) - entropies.cummax(1).values <= self.bound
        # infinity minus infinity compares as false
        return within.sum(1)


def _ranks(ranked: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, ranked.shape[1] + 1, device=ranked.device, dtype=ranked.dtype)


__all__ = ["EntropyBoundSelector", "FactorSelector", "FrechetSelector", "RankedSelector", "ReferenceFactorSelector"]
