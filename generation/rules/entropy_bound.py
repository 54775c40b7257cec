"""As many of the best as their entropies allow: EB-Sampler (arXiv 2505.24857)."""

import torch

from ..proposal import Proposal
from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import entropy
from .quota import floors
from .ranked import RankedSelector


class EntropyBoundSelector(RankedSelector):
    """
    Commits the n best as long as their entropies, without the largest, sum up to no more than a bound, which limits
    what predicting them independently loses (EB-Sampler, arXiv 2505.24857, Eq. 8).

    Args:
        bound (`float`):
            The bound, in nats. 0 commits one position per step.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
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


class EntropyBound(Rule):
    """A bound on the sum of entropies."""

    switches = ("entropy_bound",)
    decides = ("how many predictions a step keeps",)
    traits = frozenset({"counts_by_score", "ranks"})
    table = Table(
        "commits",
        "entropy bound",
        "EB-Sampler, [2505.24857](https://arxiv.org/abs/2505.24857)",
        "the distribution at every masked position",
        "sampling with a temperature, where the top probability says little",
    )

    class Settings(Fields):
        entropy_bound: float | None = setting(
            float,
            "Instead of `threshold`: keeps the best predictions as long as their entropies, without the largest, sum "
            "up to at most this many nats (EB-Sampler, arXiv 2505.24857). Ranked by `remasking`.",
            least=0,
        )

    @classmethod
    def selector(cls, setup: Setup) -> EntropyBoundSelector:
        return EntropyBoundSelector(setup.config.entropy_bound, floors(setup))


__all__ = ["EntropyBound", "EntropyBoundSelector"]
