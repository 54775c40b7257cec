"""Thresholds that look at more than the confidence: at runs of masks, at what is left, at the step before."""

import math

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block
from .scores import divergence
from .selection import AdaptiveSelector, ThresholdSelector, best


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
            As in [`~llada.generation.selection.AdaptiveSelector`].
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
            As in [`~llada.generation.selection.AdaptiveSelector`].
        inclusive (`bool`, *optional*, defaults to `True`):
            As in [`~llada.generation.selection.ThresholdSelector`].
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


class StableSelector(AdaptiveSelector):
    """
    Commits every position whose confidence exceeds a threshold and whose distribution has stopped to move: its
    Kullback-Leibler divergence from the one of the step before was below a bound in each of the last steps (KLASS,
    arXiv 2511.05664). Where no position is that stable, the share of a step is committed, the best first.

    Args:
        threshold (`float`):
            The confidence to exceed.
        kl_threshold (`float`):
            The bound on the divergence, in nats.
        kl_history (`int`):
            In how many steps it has to hold.
        quotas (`list[list[list[int]]]`, *optional*):
            The shares, by row, block and step. One where it does not say.
        looks_ahead (`bool`):
            Whether distributions are also compared in the next block, so that it begins with a history, as published.
            With a cache a block begins without.
    """

    def __init__(
        self,
        threshold: float,
        kl_threshold: float,
        kl_history: int,
        quotas: list[list[list[int]]] | None,
        looks_ahead: bool,
    ):
        super().__init__(quotas)
        self.threshold = threshold
        self.kl_threshold = kl_threshold
        self.kl_history = kl_history
        self.looks_ahead = looks_ahead
        self.calm: torch.Tensor = torch.empty(0)

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        if block.index == 0 or not self.looks_ahead:
            # for how many steps the distribution of a position has not moved
            self.calm = torch.zeros_like(canvas.tokens)
            # logarithms of the distributions of the step before, at the positions from `start` on; made when the
            # vocabulary is known
            self.previous: torch.Tensor | None = None
        elif self.previous is not None:
            gone = block.start - self.start
            nothing = torch.full_like(self.previous[:, :gone], math.log(1e-12))
            self.previous = torch.cat([self.previous[:, gone:], nothing], dim=1)
        self.start = block.start
        self.width = (block.end - block.start) * (2 if self.looks_ahead else 1)

    def observed(self, canvas: Canvas, block: Block, eligible: torch.Tensor) -> torch.Tensor:
        if not self.looks_ahead:
            return super().observed(canvas, block, eligible)
        positions = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
        near = ~block.reached & (positions < self.start + self.width)
        return canvas.masked & near & eligible.any(1, keepdim=True)

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        self.step += 1
        length, logits, dtype = canvas.tokens.shape[1], proposal.logits, proposal.scores.dtype
        if self.previous is None:
            shape = len(canvas.tokens), self.width, logits.shape[1]
            self.previous = torch.full(shape, math.log(1e-12), dtype=dtype, device=logits.device)
        cells = proposal.index // length * self.previous.shape[1] + proposal.index % length - self.start
        moved = divergence(logits, self.previous.flatten(0, 1), cells, dtype)
        asked = proposal.spread(torch.ones_like(proposal.index), 0).bool()
        is_calm = proposal.spread(moved, torch.inf) < self.kl_threshold
        self.calm = torch.where(asked, torch.where(is_calm, self.calm + 1, 0), self.calm)

        scores = proposal.eligible_scores()
        ready = (scores > self.threshold) & (self.calm >= self.kl_history)
        if self.step < self.kl_history - 1:
            ready = torch.zeros_like(ready)
        return torch.where(ready.any(1, keepdim=True), ready, best(scores, *self.plan.at(self.step)))


__all__ = ["ContextThresholdSelector", "HierarchicalSelector", "StableSelector"]
