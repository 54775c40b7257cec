"""Predictions that are sure and have stopped to move: KLASS (arXiv 2511.05664)."""

import math

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import divergence
from .quota import floors
from .selection import AdaptiveSelector, best


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


class Klass(Rule):
    """A threshold on the confidence, and one on how far distributions move."""

    switches = ("kl_threshold",)
    refines = "threshold"
    decides = ("how a threshold is used",)
    traits = frozenset({"remembers_positions", "settles_for_good"})
    table = Table(
        "threshold",
        "KLASS",
        "[2511.05664](https://arxiv.org/abs/2511.05664)",
        "the distributions of the step before, for two blocks (2 × block × vocabulary floats per row), and logits of "
        "the next block. With a cache a block begins without a history, and only its own are kept",
        "reasoning, where a low threshold alone makes mistakes",
    )

    class Settings(Fields):
        kl_threshold: float | None = setting(
            float,
            "With `threshold`: keeps only predictions whose distribution has moved by less than this many nats since "
            "the step before, in each of the last `kl_history` steps, and the share of a step where there are none "
            "(KLASS, arXiv 2511.05664).",
            least=0,
        )
        kl_history: int | None = setting(int, "Number of these steps.", default=2, least=1)

    @classmethod
    def selector(cls, setup: Setup) -> StableSelector:
        config = setup.config
        looks_ahead = not setup.block_causal and config.kv_cache is None and config.suffix_window is None
        history = cls.get(config, "kl_history")
        return StableSelector(config.threshold, config.kl_threshold, history, floors(setup), looks_ahead)


__all__ = ["Klass", "StableSelector"]
