"""Which positions a step computes. So far one plan: the whole canvas, with the head only where a token can change."""

from collections.abc import Callable

import torch

from .canvas import Canvas
from .regions import Block


class FullForward:
    """
    One forward pass over the whole canvas, for the rows that still have something to decide.

    With guidance, the conditional and the unconditional pass (Eq. 16 of arXiv 2502.09992: everything that was given is
    masked) share one batch of twice the rows.

    Args:
        model (`Callable`):
            Takes `input_ids`, `attention_mask`, a boolean `logits_to_keep` and the number of its true cells,
            `num_logits_to_keep`, and returns an output with `logits` of shape `(positions, vocab_size)`.
        guidance (`float`, *optional*, defaults to 0.0):
            Strength w of classifier-free guidance.

    Attributes:
        num_forwards (`int`):
            Number of forward passes so far.
        row_forwards (`dict[int, int]`):
            Number of forward passes each row took part in.
    """

    def __init__(self, model: Callable, guidance: float = 0.0):
        self.model = model
        self.guidance = guidance
        self.num_forwards = 0
        self.row_forwards: dict[int, int] = {}

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""

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
            `torch.FloatTensor` of shape `(positions, vocab_size)`: The logits, row by row.
        """
        rows = [row for row, count in enumerate(counts) if count]
        self.num_forwards += 1
        for row in rows:
            self.row_forwards[row] = self.row_forwards.get(row, 0) + 1

        tokens, frozen, attention_mask = canvas.tokens, canvas.frozen, canvas.attention_mask
        if len(rows) < len(counts):
            index = torch.tensor(rows, device=tokens.device)
            tokens, frozen, wanted = tokens[index], frozen[index], wanted[index]
            attention_mask = attention_mask[index] if attention_mask is not None else None
        if self.guidance:
            tokens = torch.cat([tokens, tokens.masked_fill(frozen, canvas.mask_token_id)])
            attention_mask = torch.cat([attention_mask, attention_mask]) if attention_mask is not None else None
            wanted = torch.cat([wanted, wanted])
        num_logits = sum(counts) * (2 if self.guidance else 1)
        logits = self.model(
            input_ids=tokens, attention_mask=attention_mask, logits_to_keep=wanted, num_logits_to_keep=num_logits
        ).logits
        return guide(logits, self.guidance)


def guide(logits: torch.Tensor, guidance: float) -> torch.Tensor:
    """Joins conditional and unconditional logits, one half after the other, into guided ones."""
    if not guidance:
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + (guidance + 1) * (conditional - unconditional)


__all__ = ["FullForward", "guide"]
