"""Keys and values that are kept for a block: the prefix and the dual cache of Fast-dLLM (arXiv 2505.22618)."""

from collections.abc import Callable

import torch

from ..canvas import Canvas
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from .canvas_cache import CanvasCache
from .full import FullForward, take_rows


class CachedForward(FullForward):
    """
    Base of the plans that compute a window of the canvas and read the rest from a
    [`~llada.generation.forwards.canvas_cache.CanvasCache`].

    Args:
        model, guidance, block_length:
            As in [`~llada.generation.forwards.full.FullForward`]. The model also takes `past_key_values` and
            `cache_position`.
        canvas ([`Canvas`]):
            The canvas before the first step.
    """

    def __init__(
        self,
        model: Callable,
        canvas: Canvas,
        guidance: float = 0.0,
        block_length: int | None = None,
    ):
        super().__init__(model, guidance, block_length)
        self.rows = list(range(canvas.tokens.shape[0]))
        self.cache = CanvasCache(take_rows(canvas.position_ids, self.rows, guidance))
        # whether rows that are done for good leave the batch, and the cache
        self.drops_rows = True

    def restart(self, canvas: Canvas, part: Canvas) -> None:
        # the part of a row may be decided before the row is
        self.drops_rows = False
        self.drop_rows(canvas)
        self.cache = CanvasCache(take_rows(part.position_ids, self.rows, self.guidance))

    def window(self, block: Block, length: int) -> tuple[int, int]:
        """The first position to compute in the coming step, and the one after the last."""
        raise NotImplementedError

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.block, self.is_first_step = block, True
        if self.drops_rows and not self.keeps_shapes:
            self.drop_rows(canvas)

    def drop_rows(self, canvas: Canvas) -> None:
        """Rows that have nothing left to decide leave the batch."""
        undone = canvas.masked.any(1).tolist()
        kept = [place for place, row in enumerate(self.rows) if undone[row]]
        if 0 < len(kept) < len(self.rows):
            places = kept + ([place + len(self.rows) for place in kept] if self.guidance else [])
            self.cache.keep_rows(torch.tensor(places, device=canvas.tokens.device))
            self.rows = [self.rows[place] for place in kept]

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        start, end = self.window(self.block, canvas.tokens.shape[1])
        self.is_first_step = False
        self.cache.visible = self.end
        extra = {
            "past_key_values": self.cache,
            "cache_position": torch.arange(start, end, device=canvas.tokens.device),
        }
        if self.block_length:
            extra["block_length"] = self.block_length
        return self._run(canvas, wanted, counts, self.rows, slice(start, end), slice(0, self.end), extra)


class PrefixForward(CachedForward):
    """
    Keeps the keys and values of what comes before the current block (prefix cache of Fast-dLLM, arXiv 2505.22618). The
    first step of a block computes the whole canvas, the others the block and what follows it.
    """

    def window(self, block: Block, length: int) -> tuple[int, int]:
        return (0 if self.is_first_step else block.start), length


class DualForward(CachedForward):
    """
    Keeps the keys and values of what comes before and after the current block (dual cache of Fast-dLLM, arXiv
    2505.22618). The first step of a block computes the whole canvas, the others the block.
    """

    def window(self, block: Block, length: int) -> tuple[int, int]:
        return (0, length) if self.is_first_step else (block.start, block.end)


class Cache(Rule):
    """Base of the values of `kv_cache`."""

    switches = ("kv_cache",)
    noun = "cache"

    class Settings(Fields):
        kv_cache: str | None = setting(
            str,
            'What is not computed again in every step. `"prefix"`: what comes before the current block; `"dual"`: '
            "what comes before and after (both arXiv 2505.22618, approximations that are refreshed with every block); "
            '`"vicinity"`: what is farther away from it than `vicinity` positions (dInfer, arXiv 2510.08666); '
            '`"delayed"`: tokens from the second step after they were committed, for one row (dKV-Cache, arXiv '
            '2505.15781); `"block"`: finished blocks of a model with block-causal attention, which is exact and its '
            "default.",
        )


class PrefixCache(Cache):
    """What comes before the block is kept."""

    value = "prefix"
    traits = frozenset({"aligns_rows", "computes_a_part", "needs_full_attention"})
    table = Table("plan", "prefix", "Fast-dLLM", "L + (s−1)(L−a)", "long prompts")

    class Settings(Cache.Settings):
        pass

    @classmethod
    def forward(cls, setup: Setup, selector) -> PrefixForward:
        return PrefixForward(setup.model, setup.canvas, setup.config.guidance)


class DualCache(Cache):
    """What comes before and after the block is kept."""

    value = "dual"
    traits = frozenset({"aligns_rows", "computes_a_part", "needs_full_attention"})
    table = Table("plan", "dual", "Fast-dLLM", "L + (s−1)·b", "long canvases, large batches")

    class Settings(Cache.Settings):
        pass

    @classmethod
    def forward(cls, setup: Setup, selector) -> DualForward:
        return DualForward(setup.model, setup.canvas, setup.config.guidance)


__all__ = ["Cache", "CachedForward", "DualCache", "DualForward", "PrefixCache", "PrefixForward"]
