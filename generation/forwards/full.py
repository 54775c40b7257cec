"""Which positions a step computes: all, in the plain plan."""

from collections.abc import Callable

import torch

from ..canvas import Canvas, true_first
from ..regions import Block
from .canvas_cache import CanvasCache


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
        same_shapes (`bool`):
            Whether the steps of a block can have the same shapes, so that they can be compiled.
        keeps_shapes (`bool`):
            Whether rows that are done stay in the batch, and the canvas is computed to its end, so that the steps of a
            block have the same shapes.
        num_forwards (`int`):
            Number of forward passes so far.
        row_forwards (`dict[int, int]`):
            Number of forward passes each row took part in.
    """

    same_shapes = True

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

    def restart(self, canvas: Canvas, part: Canvas) -> None:
        """Called before a block, when other positions of a canvas than before are left: those of `part`."""

    def returned(self, canvas: Canvas) -> CanvasCache | None:
        """What another call can continue from, if there is something."""
        return None

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
            extra["position_ids"] = take_rows(canvas.position_ids, rows, self.guidance)[:, : self.end]
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
        tokens = take_rows(canvas.tokens, rows, 0)
        attention_mask = canvas.attention_mask
        if self.guidance:
            blank = tokens.masked_fill(take_rows(canvas.frozen, rows, 0), canvas.mask_token_id)
            tokens = torch.cat([tokens, blank])
        if attention_mask is not None:
            attention_mask = take_rows(attention_mask, rows, self.guidance)[:, seen]
        logits = self.model(
            input_ids=tokens[:, computed],
            attention_mask=attention_mask,
            logits_to_keep=take_rows(wanted, rows, self.guidance)[:, computed],
            num_logits_to_keep=[counts[row] for row in rows] * (2 if self.guidance else 1),
            **extra,
        ).logits
        if not self.guidance:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.guidance + 1) * (conditional - unconditional)


def take_rows(values: torch.Tensor, rows: list[int], guidance: float) -> torch.Tensor:
    """Some rows, twice with guidance."""
    if len(rows) < values.shape[0]:
        # an index tensor would wait for the device
        values = torch.stack([values[row] for row in rows])
    return torch.cat([values, values]) if guidance else values


__all__ = ["FullForward", "take_rows"]
