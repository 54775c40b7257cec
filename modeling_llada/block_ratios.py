"""One mask ratio for each block of a row, as in the training of block diffusion models (BD3LM, arXiv 2503.09573)."""

from collections.abc import Callable

import torch

from .masked_diffusion import MaskedBatch
from .packed_documents import count_tokens_before


def mask_by_block(
    process: Callable[..., MaskedBatch],
    block_length: int,
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    generator: torch.Generator,
    shared_generator: torch.Generator | None = None,
    offset: int = 0,
    total: int | None = None,
    labels: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> MaskedBatch:
    """
    Masks a batch as if every block were a row. What is drawn for a row is then drawn for a block: its ratio, the
    stratum of it, the number of its masks. Every block is predicted from clean ones, so that the sum of the weighted
    losses estimates what it does with one ratio for the row, and its terms do not vary together.

    Args:
        process ([`ForwardProcess`]):
            What masks a row.
        block_length (`int`):
            Length of a block. Blocks count from the first token of a row or document.
        input_ids, maskable, labels (of shape `(batch, length)`):
            As in a call of `process`, as are the generators.
        offset, total (*optional*):
            Rows of the whole batch before this part, and all of them.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            0 for padding, on either side.
        document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The document of every token. How many blocks there are is then counted, which waits for the device.

    Returns:
        [`MaskedBatch`] of as many rows, or twice as many, whose `weight` and `ratio` are of shape `(batch, length)`.
    """
    batch, length = input_ids.shape
    is_token = torch.ones_like(maskable) if attention_mask is None else attention_mask.bool()
    positions = count_tokens_before(is_token, document_ids)
    numbers = (is_token & (positions % block_length == 0)).cumsum(dim=1) - 1
    num_blocks = -(-length // block_length) if document_ids is None else int(numbers.max()) + 1
    size = batch * num_blocks * block_length
    rows = torch.arange(batch, device=input_ids.device).unsqueeze(1)
    places = (rows * num_blocks + numbers) * block_length + positions % block_length
    # what is never masked goes to one place more
    places = places.masked_fill(~maskable, size)

    def fold(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(size + 1).scatter_(0, places.flatten(), values.flatten())[:-1].view(-1, block_length)

    blocks = process(
        fold(input_ids),
        fold(maskable),
        generator,
        shared_generator,
        offset=offset * num_blocks,
        total=None if total is None else total * num_blocks,
        labels=None if labels is None else fold(labels),
    )
    copies = len(blocks.masked) // (batch * num_blocks)

    def unfold(values: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        values = values.view(len(blocks.masked), -1).expand(-1, block_length).reshape(copies, size)
        found = torch.nn.functional.pad(values, (0, 1))[:, places]
        return torch.where(maskable, found, rest).flatten(0, 1)

    nothing = torch.zeros((), dtype=torch.bool, device=input_ids.device)
    masked = unfold(blocks.masked, nothing)
    return MaskedBatch(
        input_ids=unfold(blocks.input_ids, input_ids),
        masked=masked,
        weight=unfold(blocks.weight, blocks.weight.new_ones(())),
        ratio=unfold(blocks.ratio, blocks.ratio.new_zeros(())),
        scored=masked if blocks.scored is blocks.masked else unfold(blocks.scored, nothing),
    )


__all__ = ["mask_by_block"]
