"""Which positions may change now: the whole canvas, or blocks one after the other from where the masks begin."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .canvas import Canvas


@dataclass
class Block:
    """
    A stretch of the canvas that is finished before the next one begins.

    Args:
        index (`int`):
            Number of the block, from 0.
        reached (`torch.BoolTensor` of shape `(batch, length)`):
            The positions of this block and of those before it. What an earlier block left masked stays eligible.
    """

    index: int
    reached: torch.Tensor


class Region:
    """
    Cuts the masks of a canvas into blocks of `block_length` positions, row by row from the first mask of the row: from
    the end of the prompt in `generate`, from the first gap in `infill`. A `block_length` that reaches over all masks
    gives one block, the pure diffusion of arXiv 2502.09992.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        block_length (`int`, *optional*):
            Length of a block in positions. One block if not given.
    """

    def __init__(self, canvas: Canvas, block_length: int | None = None):
        length = canvas.tokens.shape[1]
        first = torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), length)
        offset = torch.arange(length, device=canvas.tokens.device) - first.unsqueeze(1)
        self.block_of = offset.clamp(min=0) // (block_length or length)  # [batch, length]
        num_blocks = int((self.block_of * canvas.masked).max()) + 1
        counts = torch.zeros(canvas.tokens.shape[0], num_blocks, dtype=torch.long, device=canvas.tokens.device)
        counts.scatter_add_(1, self.block_of.clamp(max=num_blocks - 1), canvas.masked.long())
        # masks at the start, [row][block]
        self.num_masked: list[list[int]] = counts.tolist()

    def __iter__(self) -> Iterator[Block]:
        for index in range(len(self.num_masked[0])):
            yield Block(index, self.block_of <= index)


__all__ = ["Block", "Region"]
