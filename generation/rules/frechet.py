"""As many of the best as are probably right together: Fréchet's bounds in Fast-dLLM++ (arXiv 2606.02955)."""

import torch

from ..proposal import Proposal
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import floors
from .ranked import RankedSelector, ranks_of


class FrechetSelector(RankedSelector):
    """
    Commits the n best as long as the least probability that all of them are right (Fréchet's bound, the sum of their
    confidences minus n - 1) exceeds the greatest probability that the n-th is wrong by more than a margin
    (Fast-dLLM++, arXiv 2606.02955).

    Args:
        margin (`float`):
            The margin. For equal confidences a factor of 1 minus it decides the same.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
    """

    def __init__(self, margin: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.margin = margin

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        together = ranked.cumsum(1) - (ranks_of(ranked) - 1)
        return (together - (1 - ranked) > self.margin).sum(1)


class Frechet(Rule):
    """A bound on the probability that all are right."""

    switches = ("frechet_margin",)
    decides = ("how many predictions a step keeps",)
    traits = frozenset({"compares_probabilities", "counts_by_score"})
    table = Table(
        "commits",
        "Fréchet",
        "Fast-dLLM++, [2606.02955](https://arxiv.org/abs/2606.02955)",
        "a sort per step",
        "as factor, from all confidences instead of the last",
    )

    class Settings(Fields):
        frechet_margin: float | None = probability(
            "Instead of `threshold`: keeps the n best predictions as long as the probability that all are right "
            "exceeds that of the last one being wrong by this margin, both bounded by Fréchet (arXiv 2606.02955)."
        )

    @classmethod
    def selector(cls, setup: Setup) -> FrechetSelector:
        return FrechetSelector(setup.config.frechet_margin, floors(setup))


__all__ = ["Frechet", "FrechetSelector"]
