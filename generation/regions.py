"""Which positions may change now: the whole canvas, or blocks one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .canvas import Canvas


@dataclass
class Block:
    """
    A stretch of the canvas that is finished before the next one begins. Rows whose text has not the same length have
    it at different places.

    Args:
        index (`int`):
            Number of the block, from 0.
        inside (`torch.BoolTensor` of shape `(batch, length)`):
            The positions of the block that are not frozen, and those that a row may grow into.
        reached (`torch.BoolTensor` of shape `(batch, length)`):
            The positions of this block and of those before it. What an earlier block left masked stays eligible.
        num_masked (`list[int]`):
            Number of masks in the block before the first step of all, for each row.
        start, end (`int`):
            The first position of the block in any row, and the one after its last in any row.
    """

    index: int
    inside: torch.Tensor
    reached: torch.Tensor
    num_masked: list[int]
    start: int
    end: int


class Region:
    """
    Cuts a canvas into blocks of `block_length` positions, row by row: from its first mask on, that is from the end of
    the prompt in `generate` and from the first gap in `infill`; or, for models with block-causal attention, from the
    first position of its text, so that the first block may begin with a part of the prompt.

    A `block_length` that reaches over all masks gives one block, the pure diffusion of arXiv 2502.09992.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        block_length (`int`, *optional*):
            Length of a block in positions. One block if not given.
        from_text_start (`bool`, *optional*, defaults to `False`):
            Whether blocks are counted from the first position of the text.
        grows (`bool`, *optional*, defaults to `False`):
            Whether rows may grow up to the end of the canvas. Blocks reach so far then; they keep their places, and
            what stands in them moves.
    """

    def __init__(
        self, canvas: Canvas, block_length: int | None = None, from_text_start: bool = False, grows: bool = False
    ):
        length = canvas.tokens.shape[1]
        self.block_length = block_length or length
        first = torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), length)
        origin = first - (first - canvas.padding) % self.block_length if from_text_start else first
        positions = torch.arange(length, device=canvas.tokens.device)
        self.block_of = (positions - origin.unsqueeze(1)).div(self.block_length, rounding_mode="floor")
        room = (positions >= canvas.ends.unsqueeze(1)) & grows
        self.frozen = canvas.frozen & ~room
        num_blocks = int((self.block_of * (canvas.masked | room)).max()) + 1
        counts = torch.zeros(canvas.tokens.shape[0], num_blocks, dtype=torch.long, device=canvas.tokens.device)
        counts.scatter_add_(1, self.block_of.clamp(0, num_blocks - 1), canvas.masked.long())
        # masks at the start, [row][block]
        self.num_masked: list[list[int]] = counts.tolist()
        origins = [place for place, row in zip(origin.tolist(), self.num_masked, strict=True) if any(row)]
        self.first, self.last, self.length = min(origins), max(origins), length

    def hides_given_text(self, canvas: Canvas) -> bool:
        """Whether text that was given stands in a later block than a mask, where block-causal attention hides it."""
        given = canvas.frozen if canvas.attention_mask is None else canvas.frozen & canvas.attention_mask.bool()
        last_given = torch.where(given, self.block_of, self.block_of.min()).amax(1)
        first_masked = torch.where(canvas.masked, self.block_of, self.block_of.max() + 1).amin(1)
        return bool((first_masked < last_given).any())

    def __iter__(self) -> Iterator[Block]:
        for index in range(len(self.num_masked[0])):
            offset = index * self.block_length
            yield Block(
                index=index,
                inside=(self.block_of == index) & ~self.frozen,
                reached=self.block_of <= index,
                num_masked=[counts[index] for counts in self.num_masked],
                start=self.first + offset,
                end=min(self.last + offset + self.block_length, self.length),
            )


__all__ = ["Block", "Region"]
