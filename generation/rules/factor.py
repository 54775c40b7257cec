"""As many of the best as are sure together: the factor of Fast-dLLM (arXiv 2505.22618, Theorem 1)."""

import torch

from ..proposal import Proposal
from ..rule import Fields, Rule, Setup, Table, setting
from .quota import floors
from .ranked import RankedSelector, ranks_of


class FactorSelector(RankedSelector):
    """
    Commits the n best, for the largest n with (n + 1)(1 - c_n) < f, where c_n is the n-th best confidence (Fast-dLLM,
    arXiv 2505.22618, Theorem 1: with f = 1 and every confidence above 1 - 1 / (n + 1), decoding them together gives
    what decoding one after the other gives).

    Args:
        factor (`float`):
            The bound f.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
    """

    def __init__(self, factor: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.factor = factor

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        return ((ranks_of(ranked) + 1) * (1 - ranked) < self.factor).sum(1)


class ReferenceFactorSelector(FactorSelector):
    """
    The factor rule as Fast-dLLM's code has it: it walks down the ranking to the first confidence below
    1 - f / (n + 1), always takes the best, and, if the walk ends at the last position that is still masked, takes
    that, too.
    """

    def accepted(self, ranked: torch.Tensor, order: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        ranks = ranks_of(ranked)
        available = (ranked > -torch.inf).sum(1)
        passes = (ranked >= 1 - self.factor / (ranks + 1)) | (ranks == 1)
        walked = passes.long().cumprod(1).sum(1)
        return torch.where(walked >= available - 1, available, walked)


class Factor(Rule):
    """A bound on the confidence that depends on how many are kept."""

    switches = ("factor",)
    decides = ("how many predictions a step keeps",)
    traits = frozenset({"compares_probabilities", "counts_by_score"})
    table = Table(
        "commits",
        "factor",
        "the same, Theorem 1",
        "a sort per step",
        'adapts to how many are sure at once. `factor_compat="fast_dllm"` decides as the published code does, which '
        "keeps one more at the end of a block",
    )

    class Settings(Fields):
        factor: float | None = setting(
            float,
            "Instead of `threshold`: keeps the n best predictions, for the largest n with (n + 1)(1 - confidence of "
            "the n-th) < `factor` (Fast-dLLM, Theorem 1, which proves 1.0).",
            least=0,
        )
        factor_compat: str | None = setting(
            str,
            '`"fast_dllm"` counts as Fast-dLLM\'s code does, which keeps one more where that is the last of a block.',
            choices=("fast_dllm",),
        )

    @classmethod
    def selector(cls, setup: Setup) -> FactorSelector:
        rule = ReferenceFactorSelector if setup.config.factor_compat else FactorSelector
        return rule(setup.config.factor, floors(setup))


__all__ = ["Factor", "FactorSelector", "ReferenceFactorSelector"]
