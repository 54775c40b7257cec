"""
What a model is given to see in block diffusion (arXiv 2503.09573, §3.1): a noisy copy of the text, and a clean one
behind it. Every noisy block sees itself and the clean blocks before it, as in generation, and one forward pass trains
all blocks at once.
"""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested

from .packed_documents import count_tokens_before


def block_diffusion_mask(
    is_token: torch.Tensor,
    block_length: int,
    document_ids: torch.Tensor | None = None,
    as_block_mask: bool = False,
) -> torch.Tensor | BlockMask:
    """
    Which of the `2 * length` positions of [noisy | clean] see each other, in blocks that every document counts from
    its first token:

    - noisy tokens see the noisy tokens of their block, and clean tokens of earlier blocks;
    - clean tokens see clean tokens of their block and of earlier ones;
    - nothing sees another document, or padding. What padding itself sees is of no consequence.

    Args:
        is_token (`torch.BoolTensor` of shape `(batch, length)`):
            `False` for padding.
        block_length (`int`):
            Length of a block.
        document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The document of every token, if there are several in a row.
        as_block_mask (`bool`, *optional*, defaults to `False`):
            Whether to give the mask as flex attention wants it.

    Returns:
        `torch.BoolTensor` of shape `(batch, 1, 2 * length, 2 * length)`, or `BlockMask` of that shape.
    """
    batch, length = is_token.shape
    blocks = (count_tokens_before(is_token, document_ids) // block_length).repeat(1, 2)
    documents = torch.zeros_like(blocks) if document_ids is None else document_ids.repeat(1, 2)
    tokens = is_token.repeat(1, 2)
    clean = torch.arange(2 * length, device=is_token.device) >= length

    def sees(row: torch.Tensor, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own, other = blocks[row, query], blocks[row, key]
        of_clean = clean[key] & ((other < own) | (clean[query] & (other == own)))
        of_noisy = ~clean[key] & ~clean[query] & (other == own)
        same = documents[row, query] == documents[row, key]
        # a row of nothing but False is nan in some kernels
        return tokens[row, key] & ((of_clean | of_noisy) & same | ~tokens[row, query])

    if as_block_mask:
        # compiled, it is made without the dense mask
        return create_block_mask(
            sees, batch, None, 2 * length, 2 * length, device=is_token.device, _compile=is_token.is_cuda
        )
    places = torch.arange(2 * length, device=is_token.device)
    rows = torch.arange(batch, device=is_token.device)
    return sees(rows[:, None, None, None], None, places[:, None], places)


def lay_out_noisy_and_clean(
    config: PreTrainedConfig,
    noisy_ids: torch.Tensor,
    clean_ids: torch.Tensor,
    block_length: int,
    attention_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> dict[str, Any]:
    """
    The arguments of `forward` for block diffusion. With `token_losses=True` and `labels` and `logits_to_keep` of shape
    `(batch, length)`, that of the noisy half, the last layer computes no more than that.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            That of the model. Its attention back-end decides the form of the mask.
        noisy_ids, clean_ids (`torch.LongTensor` of shape `(batch, length)`):
            Tokens with masks, and without.
        block_length (`int`):
            Length of a block.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            0 for padding, on either side.
        document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The document of every token, if there are several in a row.

    Returns:
        `dict` with `input_ids`, `position_ids` and `attention_mask` of both halves, and `block_length`.

    Raises:
        ValueError: If the blocks have no length, the shapes do not fit each other, the model shifts its logits, or its
            back-end knows no mask per query position.
    """
    if block_length < 1:
        raise ValueError(f"`block_length={block_length}` is no length of blocks; write 1 or more, e.g. 32.")
    if getattr(config, "right_shift_logits", False):
        raise ValueError(
            "This model predicts a token from the position before it (`right_shift_logits`), which is noisy here and "
            "clean in generation for the first token of a block. Convert without the shift for blocks."
        )
    given = {"noisy_ids": noisy_ids, "attention_mask": attention_mask, "document_ids": document_ids}
    for name, value in given.items():
        if value is not None and value.shape != clean_ids.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)} and the text has {tuple(clean_ids.shape)}; give one value "
                "per token."
            )
    if is_flash_attention_requested(config):
        raise ValueError(
            f"{config._attn_implementation!r} attention knows no mask per query position, which block diffusion "
            'needs; call `model.set_attn_implementation("sdpa")` or "flex_attention".'
        )
    for_flex = config._attn_implementation == "flex_attention"
    is_token = torch.ones_like(clean_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if attention_mask is None and document_ids is None and not for_flex:
        # one mask for all rows
        is_token = is_token[:1]
    return {
        "input_ids": torch.cat([noisy_ids, clean_ids], dim=1),
        "position_ids": count_tokens_before(is_token, document_ids).repeat(1, 2),
        "attention_mask": block_diffusion_mask(is_token, block_length, document_ids, for_flex),
        # the mask says what it means, but experts that a block shares have to know
        "block_length": block_length,
    }


__all__ = ["block_diffusion_mask", "lay_out_noisy_and_clean"]
