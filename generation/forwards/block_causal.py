"""Keys and values of finished blocks, which block-causal attention never changes: the exact cache of LLaDA2."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..canvas import Canvas
from ..regions import Block
from ..rule import Setup, Table
from .cached import Cache, CachedForward
from .canvas_cache import CanvasCache
from .full import take_rows


class BlockCausalForward(CachedForward):
    """
    Keeps the keys and values of finished blocks, which block-causal attention never changes: nothing is approximated.
    The first step of a block computes the block before it once more, with its final tokens.

    Args:
        model, canvas, guidance, block_length:
            As in [`~llada.generation.forwards.cached.CachedForward`].
        earlier ([`~llada.generation.forwards.canvas_cache.CanvasCache`], *optional*):
            What an earlier call returned for the beginning of the same text.
        made_with (`dict[str, Any]`, *optional*):
            What keys and values depend on, for the next call to compare.
        returns_cache (`bool`, *optional*, defaults to `False`):
            Whether `returned` will be asked for: the keys and values of rows that leave the batch are kept then.

    Raises:
        ValueError: If the earlier cache is of another batch, or was made with something else.
    """

    def __init__(
        self,
        model: Callable,
        canvas: Canvas,
        guidance: float,
        block_length: int,
        earlier: CanvasCache | None = None,
        made_with: dict[str, Any] | None = None,
        returns_cache: bool = False,
    ):
        super().__init__(model, canvas, guidance, block_length)
        self.cache.made_with = made_with or {}
        self.returns_cache = returns_cache
        # up to here the cache holds final tokens
        self.stored = 0
        # of rows that have left: up to where theirs were final, and what belonged to them
        self.left: dict[int, tuple[int, CanvasCache]] = {}
        if earlier is not None:
            common = self.cache.take_over(earlier, self._given(canvas).masked_fill(self._undecided(canvas), -1))
            # keys and values depend on all tokens of their block, and blocks begin where the text of a row does
            padding = torch.cat([canvas.padding] * (2 if guidance else 1))
            whole_blocks = padding + (common - padding).div(block_length, rounding_mode="floor") * block_length
            self.stored = max(int(whole_blocks.min()), 0)

    def _given(self, canvas: Canvas) -> torch.Tensor:
        """What the model is given of all rows."""
        if not self.guidance:
            return canvas.tokens
        return torch.cat([canvas.tokens, canvas.tokens.masked_fill(canvas.frozen, canvas.mask_token_id)])

    def _undecided(self, canvas: Canvas) -> torch.Tensor:
        return torch.cat([canvas.masked, canvas.masked]) if self.guidance else canvas.masked

    def drop_rows(self, canvas: Canvas) -> None:
        before, whole = self.rows, copy.copy(self.cache)
        super().drop_rows(canvas)
        for place, row in enumerate(before):
            if self.returns_cache and row not in self.rows:
                part = copy.copy(whole)
                places = [place, place + len(before)] if self.guidance else [place]
                part.keep_rows(torch.tensor(places, device=canvas.tokens.device))
                self.left[row] = self.stored, part

    def returned(self, canvas: Canvas) -> CanvasCache:
        """The cache of all rows, for the next call."""
        batch, copies = len(canvas.tokens), 2 if self.guidance else 1
        stored = [self.left[row][0] if row in self.left else self.stored for row in range(batch)]
        if self.left:
            parts = [(self.rows, self.cache), *(([row], part) for row, (_, part) in self.left.items())]
            whole = CanvasCache(take_rows(canvas.position_ids, list(range(batch)), self.guidance))
            for name in ("keys", "values"):
                for layer, example in enumerate(getattr(self.cache, name)):
                    buffer = example.new_zeros(batch * copies, *example.shape[1:])
                    for rows, part in parts:
                        # rows that left before the first pass have none
                        if getattr(part, name):
                            places = [row + batch * number for number in range(copies) for row in rows]
                            buffer[places] = getattr(part, name)[layer]
                    getattr(whole, name).append(buffer)
            whole.made_with = self.cache.made_with
            self.cache = whole
        self.cache.tokens = self._given(canvas)[:, : max(stored)]
        self.cache.num_final = torch.tensor(stored * copies, device=canvas.tokens.device)
        return self.cache

    def window(self, block: Block, length: int) -> tuple[int, int]:
        start = self.stored if self.is_first_step else block.start
        self.stored = block.start
        return start, block.end


class BlockCache(Cache):
    """Finished blocks are kept."""

    value = "block"
    traits = frozenset({"computes_a_part", "needs_block_causal", "needs_the_suffix"})
    table = Table("plan", "block-causal", "LLaDA2", "s·b + b", "models that were trained so; exact")

    class Settings(Cache.Settings):
        pass

    @classmethod
    def forward(cls, setup: Setup, selector) -> BlockCausalForward:
        config, canvas, block_length = setup.config, setup.canvas, setup.region.block_length
        made_with = {
            "model": weakref.ref(setup.model),
            "dtype": getattr(setup.model, "dtype", None),
            "block_length": block_length,
            "cfg_scale": config.guidance,
            "mask_token_id": canvas.mask_token_id,
            "device": str(canvas.tokens.device),
        }
        return BlockCausalForward(
            setup.model,
            canvas,
            config.guidance,
            block_length,
            setup.extra.get("cache"),
            made_with,
            returns_cache=bool(config.return_dict_in_generate or config.output_trace),
        )


__all__ = ["BlockCache", "BlockCausalForward"]
