"""Every prediction that is sure enough: Fast-dLLM (arXiv 2505.22618) and LLaDA2 (arXiv 2512.15745)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import floors
from .selection import AdaptiveSelector


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


class Threshold(Rule):
    """A bound on the confidence."""

    switches = ("threshold",)
    decides = ("how many predictions a step keeps",)
    traits = frozenset({"compares_probabilities", "counts_by_score"})
    table = Table(
        "commits",
        "threshold",
        "Fast-dLLM, [2505.22618](https://arxiv.org/abs/2505.22618)",
        "nothing",
        "the first thing to try, 0.9",
    )

    class Settings(Fields):
        threshold: float | None = probability(
            "Keeps every prediction of a step whose confidence reaches this, and at least one (Fast-dLLM, arXiv "
            "2505.22618), or the share of a step if `max_denoising_steps` or `steps` is given. 0.95 by default for "
            "models with block-causal attention, where it must be exceeded (LLaDA2.0, arXiv 2512.15745)."
        )

    @classmethod
    def selector(cls, setup: Setup) -> ThresholdSelector:
        # LLaDA2 commits what exceeds the threshold, Fast-dLLM what reaches it
        return ThresholdSelector(setup.config.threshold, floors(setup), inclusive=not setup.block_causal)


__all__ = ["Threshold", "ThresholdSelector"]
