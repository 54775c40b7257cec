"""A lower threshold for the best of every run of masks: hierarchical decoding of dInfer (arXiv 2510.08666)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import floors
from .selection import AdaptiveSelector, best


class HierarchicalSelector(AdaptiveSelector):
    """
    Commits what exceeds a threshold, the best position of the row, and of every run of neighbouring masks the best if
    it exceeds a lower threshold: long runs are split, which makes what is left easier (dInfer, arXiv 2510.08666).

    Args:
        threshold (`float`):
            The confidence to exceed.
        low_threshold (`float`):
            The confidence that the best of a run has to exceed.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
    """

    def __init__(self, threshold: float, low_threshold: float, floors: list[list[list[int]]] | None = None):
        super().__init__(floors)
        self.threshold = threshold
        self.low_threshold = low_threshold

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        # positions of a run share its number: how many positions that are not eligible stand before it
        run = (~proposal.eligible).cumsum(1)
        nothing = scores.new_full((len(scores), scores.shape[1] + 1), -torch.inf)
        highest = nothing.scatter_reduce(1, run, scores, "amax").gather(1, run)
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(run)
        places = places.masked_fill(scores < highest, scores.shape[1])
        first = torch.full_like(nothing, scores.shape[1], dtype=torch.long)
        is_best_of_run = first.scatter_reduce(1, run, places, "amin").gather(1, run) == places
        is_best_of_run = is_best_of_run & proposal.eligible
        sure = (scores > self.threshold) | (is_best_of_run & (scores > self.low_threshold))
        return sure | best(scores, 1)


class Hierarchical(Rule):
    """Two thresholds."""

    switches = ("low_threshold",)
    refines = "threshold"
    decides = ("how a threshold is used",)
    table = Table(
        "threshold",
        "hierarchical",
        "dInfer, [2510.08666](https://arxiv.org/abs/2510.08666)",
        "nothing",
        "long blocks: splits runs of masks, commits spread out",
    )

    class Settings(Fields):
        low_threshold: float | None = probability(
            "With `threshold`: of every run of neighbouring masks the best prediction is kept, too, if it is surer "
            "than this (hierarchical decoding, dInfer, arXiv 2510.08666)."
        )

    @classmethod
    def selector(cls, setup: Setup) -> HierarchicalSelector:
        return HierarchicalSelector(setup.config.threshold, setup.config.low_threshold, floors(setup))


__all__ = ["Hierarchical", "HierarchicalSelector"]
