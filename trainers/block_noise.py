"""
The noise that teaches a model to write many tokens at once: one block of the answer is noisy, what follows is masked.

This is what a model sees when it generates block by block. Within the block, masks are drawn (certainty forcing,
dParallel, arXiv 2509.26488) or they are what a teacher had still masked at some step (trajectory distillation, d3LLM,
arXiv 2601.07568). Only tokens of the block are predicted.
"""

from dataclasses import dataclass

import torch

from ..modeling_llada.masked_diffusion import MaskedBatch, mask_independently


def block_numbers(maskable: torch.Tensor, block_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Divides the maskable tokens of each row into blocks, counted from the first of them.

    Args:
        maskable (`torch.BoolTensor` of shape `(batch, length)`):
            The answers.
        block_length (`int`):
            Maskable tokens in a block. The last one of a row may be shorter.

    Returns:
        `tuple` of `torch.LongTensor`: The number of the block of each token, -1 outside the answer, of shape
        `(batch, length)`; and the number of blocks of each row, of shape `(batch,)`.
    """
    numbers = (maskable.cumsum(dim=1) - 1) // block_length
    counts = -(-maskable.sum(dim=1) // block_length)
    return numbers.masked_fill(~maskable, -1), counts


def trajectory_masks(steps: torch.Tensor, inside: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """
    What a teacher had still masked in a part of each row, when it had masked about a given share of it.

    Of all states that the teacher went through, it is the one whose number of masks is nearest to `ratio` of the part,
    the one with fewer masks of two that are equally near. At least what the teacher wrote last is masked.

    Args:
        steps (`torch.LongTensor` of shape `(batch, length)`):
            The step in which the teacher wrote each token, from 0, as [`Trace.step_of`] has it. Read only `inside`.
        inside (`torch.BoolTensor` of shape `(batch, length)`):
            The part.
        ratio (`torch.FloatTensor` of shape `(batch,)`):
            The share.

    Returns:
        `torch.BoolTensor` of shape `(batch, length)`: The masks, all `inside`.
    """
    steps = steps.masked_fill(~inside, -1)
    ascending = steps.sort(dim=1).values
    # masked before step s is what was written in step s or later
    counts = steps.shape[1] - torch.searchsorted(ascending, steps)
    gap = (counts - ratio[:, None] * inside.sum(dim=1, keepdim=True)).abs().masked_fill(~inside, torch.inf)
    nearest = gap == gap.min(dim=1, keepdim=True).values
    start = steps.masked_fill(~nearest, -1).max(dim=1, keepdim=True).values
    return inside & (steps >= start)


@dataclass(frozen=True)
class BlockNoise:
    """
    Noise in one block of the answer, drawn for each row. Earlier blocks are clean, later ones are masked.

    Args:
        mask_token_id (`int`):
            Id of the mask token.
        block_length (`int`):
            Tokens of a block.
        min_mask_ratio, max_mask_ratio (`float`):
            The share of the block that is masked is uniform between the two, which may be equal.
        complementary_masks (`bool`):
            Whether to return every row twice, the second time with the other tokens of the block masked.

    Raises:
        ValueError: If a setting is out of range.
    """

    mask_token_id: int
    block_length: int
    min_mask_ratio: float
    max_mask_ratio: float
    complementary_masks: bool

    def __post_init__(self):
        if self.block_length < 1:
            raise ValueError(f"A block of {self.block_length} tokens holds none; write block lengths of at least 1.")
        if not 0 <= self.min_mask_ratio <= self.max_mask_ratio <= 1:
            raise ValueError(
                f"The mask ratio is limited to [{self.min_mask_ratio}, {self.max_mask_ratio}]; write "
                "`0 <= min_mask_ratio <= max_mask_ratio <= 1`."
            )

    def __call__(
        self,
        input_ids: torch.Tensor,
        maskable: torch.Tensor,
        generator: torch.Generator,
        steps: torch.Tensor | None = None,
    ) -> MaskedBatch:
        """
        Masks a batch.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Clean tokens.
            maskable (`torch.BoolTensor` of shape `(batch, length)`):
                The answers.
            generator (`torch.Generator`):
                The noise.
            steps (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                As in [`trajectory_masks`]. Without them, each token of the block is masked independently.

        Returns:
            [`MaskedBatch`] of as many rows, or with `complementary_masks` of twice as many: the rows, their
            complements. `masked` are masks of the block. `ratio` is their share of the block.
        """
        numbers, counts = block_numbers(maskable, self.block_length)
        draws = torch.rand(2, len(input_ids), generator=generator).to(input_ids.device)
        chosen = torch.minimum((draws[0] * counts).long(), (counts - 1).clamp(min=0))
        ratio = self.min_mask_ratio + (self.max_mask_ratio - self.min_mask_ratio) * draws[1]
        inside = maskable & (numbers == chosen[:, None])
        if steps is None:
            noise = torch.rand(input_ids.shape, generator=generator).to(input_ids.device)
            masked = mask_independently(inside, ratio, noise)
        else:
            masked = trajectory_masks(steps, inside, ratio)
        hidden = numbers > chosen[:, None]
        if self.complementary_masks:
            masked = torch.cat([masked, inside & ~masked])
            input_ids, inside, hidden = (torch.cat([part, part]) for part in (input_ids, inside, hidden))
        share = masked.sum(dim=1) / inside.sum(dim=1).clamp(min=1)
        return MaskedBatch(
            input_ids=input_ids.masked_fill(masked | hidden, self.mask_token_id),
            masked=masked,
            weight=torch.ones_like(share),
            ratio=share,
        )


__all__ = ["BlockNoise", "block_numbers", "trajectory_masks"]
