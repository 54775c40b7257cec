"""Which positions a step computes, and what it reads from a cache."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from .canvas import Canvas, true_first
from .canvas_cache import CanvasCache
from .regions import Block


class FullForward:
    """
    One forward pass over the whole canvas, with the head only where a token can change, for the rows that still have
    something to decide.

    With guidance, the conditional and the unconditional pass (Eq. 16 of arXiv 2502.09992: everything that was given is
    masked) share one batch of twice the rows.

    Args:
        model (`Callable`):
            Takes `input_ids`, `attention_mask`, a boolean `logits_to_keep` and the number of true cells in each of its
            rows, `num_logits_to_keep`, and returns an output with `logits` of shape `(positions, vocab_size)`.
        guidance (`float`, *optional*, defaults to 0.0):
            Strength w of classifier-free guidance.
        block_length (`int`, *optional*):
            Length of the blocks of a model with block-causal attention. What comes after the current block is then
            not computed: the model would not see it.

    Attributes:
        keeps_shapes (`bool`):
            Whether rows that are done stay in the batch, and the canvas is computed to its end, so that the steps of a
            block have the same shapes.
        num_forwards (`int`):
            Number of forward passes so far.
        row_forwards (`dict[int, int]`):
            Number of forward passes each row took part in.
    """

    def __init__(self, model: Callable, guidance: float = 0.0, block_length: int | None = None):
        self.model = model
        self.guidance = guidance
        self.block_length = block_length
        self.keeps_shapes = False
        self.num_forwards = 0
        self.row_forwards: dict[int, int] = {}

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""
        self.end = block.end if self.block_length and not self.keeps_shapes else canvas.tokens.shape[1]

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        """
        The number of wanted positions in each row, `numbers` of shape `(batch,)`, on the host: what a step waits for
        the device to tell, once.
        """
        return numbers.tolist()

    def index(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """
        Where the wanted positions are, counted through the canvas row by row, in the order of their logits:
        `torch.LongTensor` of shape `(positions,)`. The arguments are those of a call.
        """
        return true_first(wanted.flatten(), sum(counts))

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """
        Args:
            canvas ([`Canvas`]):
                The canvas.
            wanted (`torch.BoolTensor` of shape `(batch, length)`):
                The positions whose logits are needed.
            counts (`list[int]`):
                Their number in each row.

        Returns:
            `torch.FloatTensor` of shape `(positions, vocab_size)`: The logits.
        """
        rows = [row for row, count in enumerate(counts) if count or self.keeps_shapes]
        extra: dict = {}
        if self.block_length or canvas.places is not None:
            extra["position_ids"] = _take(canvas.position_ids, rows, self.guidance)[:, : self.end]
        if self.block_length:
            extra["block_length"] = self.block_length
        return self._run(canvas, wanted, counts, rows, slice(0, self.end), slice(0, self.end), extra)

    def _run(
        self,
        canvas: Canvas,
        wanted: torch.Tensor,
        counts: list[int],
        rows: list[int],
        computed: slice | torch.Tensor,
        seen: slice,
        extra: dict,
    ) -> torch.Tensor:
        self.num_forwards += 1
        for row, count in enumerate(counts):
            if count:
                self.row_forwards[row] = self.row_forwards.get(row, 0) + 1
        tokens = _take(canvas.tokens, rows, 0)
        attention_mask = canvas.attention_mask
        if self.guidance:
            blank = tokens.masked_fill(_take(canvas.frozen, rows, 0), canvas.mask_token_id)
            tokens = torch.cat([tokens, blank])
        if attention_mask is not None:
            attention_mask = _take(attention_mask, rows, self.guidance)[:, seen]
        logits = self.model(
            input_ids=tokens[:, computed],
            attention_mask=attention_mask,
            logits_to_keep=_take(wanted, rows, self.guidance)[:, computed],
            num_logits_to_keep=[counts[row] for row in rows] * (2 if self.guidance else 1),
            **extra,
        ).logits
        if not self.guidance:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.guidance + 1) * (conditional - unconditional)


class CachedForward(FullForward):
    """
    Base of the plans that compute a window of the canvas and read the rest from a [`CanvasCache`].

    Args:
        model, guidance, block_length:
            As in [`FullForward`]. The model also takes `past_key_values` and `cache_position`.
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
        self.cache = CanvasCache(_take(canvas.position_ids, self.rows, guidance))
        # whether rows that are done for good leave the batch, and the cache
        self.drops_rows = True

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


class BlockCausalForward(CachedForward):
    """
    Keeps the keys and values of finished blocks, which block-causal attention never changes: nothing is approximated.
    The first step of a block computes the block before it once more, with its final tokens.

    Args:
        model, canvas, guidance, block_length:
            As in [`CachedForward`].
        earlier ([`CanvasCache`], *optional*):
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
            whole = CanvasCache(_take(canvas.position_ids, list(range(batch)), self.guidance))
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


def _take(values: torch.Tensor, rows: list[int], guidance: float) -> torch.Tensor:
    """Some rows, twice with guidance."""
    if len(rows) < values.shape[0]:
        # an index tensor would wait for the device
        values = torch.stack([values[row] for row in rows])
    return torch.cat([values, values]) if guidance else values


__all__ = ["BlockCausalForward", "CachedForward", "DualForward", "FullForward", "PrefixForward"]
