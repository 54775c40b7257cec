"""Plans that refresh, or see, only a part of what surrounds the current block."""

from collections.abc import Callable

import torch

from .canvas import Canvas, true_first
from .canvas_cache import CanvasCache
from .forwards import CachedForward, FullForward, _take
from .regions import Block


class VicinityForward(CachedForward):
    """
    Keeps the keys and values of what is far from the current block (vicinity refresh of dInfer, arXiv 2510.08666).

    Args:
        model, canvas, guidance:
            As in [`~llada.generation.forwards.CachedForward`].
        vicinity (`int`):
            How many positions before and after the block are computed with it.
        warmup (`int`):
            How many steps at the beginning of a block compute the whole canvas.
        refresh_interval (`int`, *optional*):
            After how many steps the whole canvas is computed again. Never within a block if not given.
    """

    def __init__(
        self,
        model: Callable,
        canvas: Canvas,
        guidance: float,
        vicinity: int,
        warmup: int,
        refresh_interval: int | None = None,
    ):
        super().__init__(model, canvas, guidance)
        self.vicinity = vicinity
        self.warmup = warmup
        self.refresh_interval = refresh_interval

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.step = -1

    def window(self, block: Block, length: int) -> tuple[int, int]:
        self.step += 1
        if self.step < self.warmup or (self.refresh_interval and self.step % self.refresh_interval == 0):
            return 0, length
        return max(block.start - self.vicinity, 0), min(block.end + self.vicinity, length)


class DelayedForward(CachedForward):
    """
    Computes masks, and tokens in the step after they were committed; keeps the keys and values of all others
    (dKV-Cache, arXiv 2505.15781, decoding variant). For one row: others would compute other positions.

    Args:
        model, canvas, guidance:
            As in [`~llada.generation.forwards.CachedForward`].
        warmup (`int`):
            How many steps at the beginning of a block compute the whole canvas.
        refresh_interval (`int`):
            After how many steps the whole canvas is computed again.
    """

    def __init__(self, model: Callable, canvas: Canvas, guidance: float, warmup: int, refresh_interval: int):
        super().__init__(model, canvas, guidance)
        self.warmup = warmup
        self.refresh_interval = refresh_interval
        self.masked_before = canvas.masked

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.step = -1

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        # what is masked now was masked before: masks, and what the last step committed
        self.unsettled = self.masked_before
        self.masked_before = canvas.masked
        counts, (self.num_unsettled,) = torch.stack([numbers, self.unsettled.sum(1)]).tolist()
        return counts

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        self.step += 1
        length, device = canvas.tokens.shape[1], canvas.tokens.device
        places = torch.arange(length, device=device)
        if self.step >= self.warmup and self.step % self.refresh_interval:
            places = true_first(self.unsettled[0], self.num_unsettled)
        extra = {"past_key_values": self.cache, "cache_position": places}
        return self._run(canvas, wanted, counts, self.rows, places, slice(0, length), extra)


class SuffixWindowForward(FullForward):
    """
    Leaves out what stands far behind the current block: of the suffix only the nearest positions and the last are
    there (Streaming-dLLM, arXiv 2601.17917). Works on top of another plan.

    Args:
        plan ([`~llada.generation.forwards.FullForward`]):
            What is computed of the positions that are there.
        window (`int`):
            How many positions after the block are there, besides the last of the canvas.
    """

    def __init__(self, plan: FullForward, window: int):
        super().__init__(plan.model, plan.guidance)
        self.plan = plan
        self.window = window
        # counted once, for both
        self.row_forwards = plan.row_forwards

    def begin(self, canvas: Canvas, block: Block) -> None:
        length, device = canvas.tokens.shape[1], canvas.tokens.device
        near = min(block.end + self.window, length - 1)
        self.places = torch.cat(
            [torch.arange(near, device=device), torch.full((1,), length - 1, dtype=torch.long, device=device)]
        )
        part = canvas.part(self.places)
        if isinstance(self.plan, CachedForward):
            # the part of a row may be decided before the row is
            self.plan.drops_rows = False
            self.plan.drop_rows(canvas)
            self.plan.cache = CanvasCache(_take(part.position_ids, self.plan.rows, self.guidance))
        inside, reached = block.inside[:, self.places], block.reached[:, self.places]
        self.plan.begin(part, Block(block.index, inside, reached, block.num_masked, block.start, block.end))

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        logits = self.plan(canvas.part(self.places), wanted[:, self.places], counts)
        self.num_forwards = self.plan.num_forwards
        return logits


__all__ = ["DelayedForward", "SuffixWindowForward", "VicinityForward"]
