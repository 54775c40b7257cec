"""SlowFast sampling: explore to find how far the text is clear, then fill that span."""

import copy
from collections.abc import Callable

import torch

from ..canvas import Canvas
from ..forwards.full import FullForward
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability, setting
from .selection import Selector, best


class SpanSelector(Selector):
    """
    Alternates between two phases in each block (SlowFast sampling, arXiv 2506.10848, as in its code). Both commit the
    positions whose confidence reaches a threshold if these are at least two, else the best one.

    - A slow phase of a fixed number of steps looks at the rest of the block. Each step estimates how far the text is
      clear: up to the farthest position with a confidence of `span_threshold`. When the last estimates differ little,
      the newest ends the span, else their mean does.
    - A fast phase fills the span. From its second step on nothing after the span is computed.

    Args:
        threshold (`float`):
            The confidence to reach.
        exploration_steps (`int`):
            Steps of a slow phase.
        span_threshold (`float`):
            The confidence that counts as clear.
        span_window (`int`):
            How many estimates are compared.
        span_deviation (`float`):
            Their standard deviation has to be below this.
        stops_early (`bool`):
            Whether a slow phase ends as soon as the estimates agree, as in the paper.
    """

    def __init__(
        self,
        threshold: float,
        exploration_steps: int,
        span_threshold: float,
        span_window: int,
        span_deviation: float,
        stops_early: bool = False,
    ):
        self.threshold = threshold
        self.exploration_steps = exploration_steps
        self.span_threshold = span_threshold
        self.span_window = span_window
        self.span_deviation = span_deviation
        self.stops_early = stops_early

    def begin(self, canvas: Canvas, block: Block) -> None:
        zeros = torch.zeros_like(canvas.ends)
        # lengths from the start of the block: of what is filled, and to the end of the span
        self.filled, self.span = zeros, zeros
        self.explores = torch.ones_like(canvas.finished)
        # of the current phase: steps so far, whether the estimates agreed, and the last of them, the newest last
        self.steps, self.agrees = zeros, torch.zeros_like(canvas.finished)
        # a phase makes no more estimates than it has steps, and a step fills a position
        self.window = min(self.span_window, self.exploration_steps + 1, canvas.tokens.shape[1] + 1)
        self.estimates = zeros.new_zeros((len(zeros), self.window), dtype=torch.float64)
        positions = torch.arange(canvas.tokens.shape[1], device=zeros.device)
        self.offsets = positions - block.start

    def eligible(self, canvas: Canvas, block: Block) -> torch.Tensor | None:
        masked = canvas.masked & block.reached & (self.offsets >= self.filled.unsqueeze(1))
        explored = self.explores & ((self.steps >= self.exploration_steps) | (self.agrees & self.stops_early))
        self._change_phase(explored, explores=False)
        in_span = masked & (self.offsets < self.span.unsqueeze(1))
        is_clean = ~self.explores & ~in_span.any(1)
        self.filled = torch.where(is_clean, self.span, self.filled)
        self._change_phase(is_clean, explores=True)
        # a new slow phase looks at what follows the span, which has no masks
        return torch.where(self.explores.unsqueeze(1), masked, in_span)

    def _change_phase(self, rows: torch.Tensor, explores: bool) -> None:
        self.explores = torch.where(rows, explores, self.explores)
        self.steps = self.steps.masked_fill(rows, 0)
        self.agrees = self.agrees & ~rows

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        scores = proposal.eligible_scores()
        self._estimate(scores, block.end - block.start)
        self.steps = self.steps + 1
        sure = scores >= self.threshold
        return torch.where((sure.sum(1) > 1).unsqueeze(1), sure, best(scores, 1))

    def _estimate(self, scores: torch.Tensor, length: int) -> None:
        """Updates the span of rows that explore."""
        clear = torch.where(scores >= self.span_threshold, self.offsets + 1, 0).amax(1)
        estimate = torch.where(clear > 0, clear, self.filled + 1).clamp(1, length)
        estimates = torch.cat([self.estimates[:, 1:], estimate.unsqueeze(1).to(self.estimates.dtype)], dim=1)
        # the first estimates of a phase stand alone
        known = torch.arange(self.window, 0, -1, device=scores.device) <= (self.steps + 1).unsqueeze(1)
        mean = torch.where(known, estimates, 0.0).sum(1) / known.sum(1)
        is_full = known.all(1)
        agree = is_full & (estimates.std(1, correction=0) < self.span_deviation)
        open_rows = self.explores & ~self.agrees
        span = torch.where(agree, estimate, mean.floor().long())
        self.span = torch.where(open_rows, span, self.span)
        self.estimates = torch.where(open_rows.unsqueeze(1), estimates, self.estimates)
        self.agrees = self.agrees | (open_rows & agree)

    @property
    def horizon(self) -> torch.Tensor:
        """`torch.LongTensor` of shape `(batch,)`: What stands here and after is left out of the coming step."""
        sees_all = self.explores | (self.steps == 0)
        return torch.where(sees_all, len(self.offsets), self.span - self.offsets[0])


class SpanForward(FullForward):
    """
    One forward pass over the canvas up to the horizon of a [`SpanSelector`].

    Args:
        model, guidance:
            As in [`~llada.generation.forwards.full.FullForward`].
        selector ([`SpanSelector`]):
            Knows the horizon.
    """

    same_shapes = False

    def __init__(self, model: Callable, guidance: float, selector: SpanSelector):
        super().__init__(model, guidance)
        self.selector = selector

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        counts, self.horizons = torch.stack([numbers, self.selector.horizon]).tolist()
        return counts

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        horizons = {horizon for horizon, count in zip(self.horizons, counts, strict=True) if count}
        self.end = max(horizons)
        if len(horizons) > 1:
            # rows that see less
            positions = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
            seen = (positions < self.selector.horizon.unsqueeze(1)).long()
            given, canvas = canvas.attention_mask, copy.copy(canvas)
            canvas.attention_mask = seen if given is None else seen * given
        return super().__call__(canvas, wanted, counts)


class SlowFast(Rule):
    """Two phases, of which the first says how far the second goes."""

    switches = ("exploration_steps",)
    refines = "threshold"
    decides = ("how a threshold is used",)
    traits = frozenset(
        {
            "aligns_rows",
            "fills_no_block",
            "has_its_own_steps",
            "needs_whole_canvas",
            "remembers_positions",
            "sees_both_sides",
            "settles_for_good",
        }
    )
    table = Table(
        "threshold",
        "SlowFast",
        "[2506.10848](https://arxiv.org/abs/2506.10848)",
        "every span pays its exploring steps; no cache",
        "one long block, long answers: what follows a span is not computed",
    )

    class Settings(Fields):
        exploration_steps: int | None = setting(
            int,
            "With `threshold`: number of steps that look how far the text is clear before that span is filled "
            "(SlowFast sampling, arXiv 2506.10848; 6 in its code).",
            least=1,
        )
        span_threshold: float | None = probability(
            "Confidence up to which the text is clear in SlowFast sampling.", default=0.3
        )
        span_window: int | None = setting(
            int, "Number of estimates of the span that are compared.", default=2, least=1
        )
        span_deviation: float | None = setting(
            float, "Standard deviation of these estimates below which the span is found.", default=1.0, least=0
        )
        span_stops_early: bool | None = setting(
            bool,
            "Whether exploring ends there, as in the paper, or takes all its steps, as in its code.",
            default=False,
        )

    @classmethod
    def selector(cls, setup: Setup) -> SpanSelector:
        config = setup.config
        finer = ("span_threshold", "span_window", "span_deviation", "span_stops_early")
        return SpanSelector(config.threshold, config.exploration_steps, *(cls.get(config, name) for name in finer))

    @classmethod
    def forward(cls, setup: Setup, selector: SpanSelector) -> SpanForward:
        return SpanForward(setup.model, setup.config.guidance, selector)


__all__ = ["SlowFast", "SpanForward", "SpanSelector"]
