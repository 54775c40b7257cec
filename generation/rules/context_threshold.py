"""A threshold that falls with what is left to fill: Streaming-dLLM (arXiv 2601.17917)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import floors
from .threshold import ThresholdSelector


class ContextThresholdSelector(ThresholdSelector):
    """
    Lowers the threshold as less is left to fill: to t(1 - r(1 - m)), where m is the share of masks in what the model
    computes from the block on (Streaming-dLLM, arXiv 2601.17917). The first step of a block takes t itself.

    Args:
        threshold (`float`):
            The confidence t to reach.
        relaxation (`float`):
            The strength r.
        suffix_window (`int`, *optional*):
            How many positions after the block are computed besides the last. All if not given.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
        inclusive (`bool`, *optional*, defaults to `True`):
            As in [`~llada.generation.rules.selection.ThresholdSelector`].
    """

    def __init__(
        self,
        threshold: float,
        relaxation: float,
        suffix_window: int | None = None,
        floors: list[list[list[int]]] | None = None,
        inclusive: bool = True,
    ):
        super().__init__(threshold, floors, inclusive)
        self.relaxation = relaxation
        self.suffix_window = suffix_window

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        suffix = block.inside | ~block.reached
        if self.suffix_window is not None:
            positions = torch.arange(scores.shape[1], device=scores.device)
            suffix = suffix & ((positions < block.end + self.suffix_window) | (positions == scores.shape[1] - 1))
        if canvas.attention_mask is not None:
            suffix = suffix & canvas.attention_mask.bool()
        left = (canvas.masked & suffix).sum(1, keepdim=True) / suffix.sum(1, keepdim=True)
        relaxation = self.relaxation if self.step else 0.0
        threshold = self.threshold * (1 - relaxation * (1 - left.to(scores.dtype)))
        return scores >= threshold if self.inclusive else scores > threshold


class ContextThreshold(Rule):
    """A threshold that is relaxed."""

    switches = ("threshold_relaxation",)
    refines = "threshold"
    decides = ("how a threshold is used",)
    table = Table(
        "threshold",
        "context-aware",
        "Streaming-dLLM, [2601.17917](https://arxiv.org/abs/2601.17917)",
        "nothing",
        "the last, hard tokens of a block",
    )

    class Settings(Fields):
        threshold_relaxation: float | None = probability(
            "With `threshold`: lowers it by up to this share as the masks of the block are filled (Streaming-dLLM, "
            "arXiv 2601.17917)."
        )

    @classmethod
    def selector(cls, setup: Setup) -> ContextThresholdSelector:
        config = setup.config
        return ContextThresholdSelector(
            config.threshold,
            config.threshold_relaxation,
            config.suffix_window,
            floors(setup),
            inclusive=not setup.block_causal,
        )


__all__ = ["ContextThreshold", "ContextThresholdSelector"]
