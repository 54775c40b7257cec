"""Attention masks of every form users write, brought to the form that the attention back-end in use expects."""

from typing import TYPE_CHECKING

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import is_flash_attention_requested


if TYPE_CHECKING:
    from ..generation.forwards.canvas_cache import CanvasCache


def default_positions(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    block_length: int | None,
    cache: "CanvasCache | None",
    cache_position: torch.Tensor | None,
) -> torch.Tensor:
    """
    Positions where none are given: those of the cache; else counted from 0, without the padding if there are blocks.

    Returns:
        `torch.LongTensor` of shape `(batch or 1, length)`.
    """
    if cache is not None:
        return cache.position_ids[:, cache_position]
    if block_length and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)


def find_tokens(
    attention_mask: torch.Tensor | BlockMask | None, batch: int, cache_position: torch.Tensor | None = None
) -> torch.Tensor | None:
    """
    What of the input is no padding. With a mask per query position, padding is what does not see itself.

    Returns:
        `torch.BoolTensor` of shape `(batch, length)`, or `None` if the mask does not say: there is none, it is one per
        query position for a part of a canvas, or it is added to the scores.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask if cache_position is None else attention_mask[:, cache_position]).bool()
    if attention_mask is None or cache_position is not None:
        return None
    if isinstance(attention_mask, BlockMask):
        device = attention_mask.kv_indices.device
        rows = torch.arange(attention_mask.shape[0], device=device).unsqueeze(1)
        places = torch.arange(attention_mask.shape[-1], device=device)
        return attention_mask.mask_mod(rows, torch.zeros_like(rows), places, places).expand(batch, -1)
    if attention_mask.is_floating_point():
        return None
    by_head = attention_mask if attention_mask.ndim == 3 else attention_mask[:, 0]
    return by_head.diagonal(dim1=1, dim2=2).bool().expand(batch, -1)


def expand_attention_mask(
    config: PreTrainedConfig,
    attention_mask: torch.Tensor | BlockMask | None,
    inputs_embeds: torch.Tensor,
    position_ids: torch.Tensor,
    block_length: int | None = None,
    cache: "CanvasCache | None" = None,
) -> torch.Tensor | BlockMask | None:
    """
    Check a mask and bring it to the form that the attention back-end of `config` expects.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Names the back-end and the number of heads.
        attention_mask (`torch.Tensor` or `BlockMask`, *optional*):
            `(batch, length)`: 1 for tokens, 0 for padding. `(batch, length, length)` or
            `(batch or 1, 1 or heads, length, length)`: for every query position, boolean (`True` may be seen) or added
            to the scores. A `BlockMask` for flex attention. Everything is visible if not given.
        inputs_embeds (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            The input, for its shape, dtype and device.
        position_ids (`torch.LongTensor` of shape `(batch or 1, length)`):
            Positions of the input.
        block_length (`int`, *optional*):
            Length of the blocks of block-causal attention, if it is wanted. A 3-D or 4-D mask says what is visible
            by itself.
        cache ([`~llada.generation.forwards.canvas_cache.CanvasCache`], *optional*):
            Keys and values of the canvas that the input is a part of.

    Returns:
        `torch.Tensor`, `BlockMask` or `None`: the mask, `None` if everything is visible.

    Raises:
        ValueError: If the mask has another type or shape, or the back-end cannot honour it.
    """
    implementation = config._attn_implementation
    batch, length = inputs_embeds.shape[:2]
    if isinstance(attention_mask, BlockMask):
        if implementation != "flex_attention":
            raise ValueError(
                f"`attention_mask` is a BlockMask, which {implementation!r} attention cannot read; call "
                '`model.set_attn_implementation("flex_attention")` or give a tensor.'
            )
        return attention_mask
    if attention_mask is not None and not isinstance(attention_mask, torch.Tensor):
        raise ValueError(f"`attention_mask` is a {type(attention_mask).__name__}; give a tensor.")
    if attention_mask is None or attention_mask.ndim == 2:
        num_keys = length if cache is None else cache.visible
        if attention_mask is not None and cache is not None:
            attention_mask = attention_mask[:, :num_keys]
        if attention_mask is not None and attention_mask.shape != (batch, num_keys):
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}, but the input has batch and length "
                f"{(batch, num_keys)}; give one row of 0 (padding) and 1 (token) per sequence."
            )
        # for a mask under sdpa, transformers waits for the device to tell whether there is any padding
        by_parts = block_length or cache is not None or (attention_mask is not None and implementation == "sdpa")
        if not by_parts:
            return create_bidirectional_mask(config, inputs_embeds, attention_mask)
        return _mask_of_parts(config, attention_mask, inputs_embeds, position_ids, block_length, cache)

    by_head = attention_mask.unsqueeze(1) if attention_mask.ndim == 3 else attention_mask
    if (
        by_head.ndim != 4
        or by_head.shape[0] not in (1, batch)
        or by_head.shape[1] not in (1, config.num_attention_heads)
        or by_head.shape[2:] != (length, length)
    ):
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)}; write it as `(batch, length)`, "
            "`(batch, length, length)` or `(batch or 1, heads or 1, length, length)` with batch "
            f"{batch}, heads {config.num_attention_heads} and length {length}."
        )
    if is_flash_attention_requested(config):
        raise ValueError(
            f"{implementation!r} attention knows no mask per query position, and `attention_mask` has shape "
            f'{tuple(attention_mask.shape)}; call `model.set_attn_implementation("sdpa")`.'
        )
    if implementation == "flex_attention":
        # transformers reads the mask of head 0 of every row
        if by_head.shape[1] != 1:
            raise ValueError(
                "Flex attention takes one mask for all heads; give the second dimension of `attention_mask` size 1 or "
                'call `model.set_attn_implementation("sdpa")`.'
            )
        by_head = by_head.expand(batch, -1, -1, -1)
    if by_head.is_floating_point():
        if implementation == "flex_attention" and inputs_embeds.device.type == "cpu":
            raise ValueError(
                "Flex attention crashes on a CPU where a mask is added to the scores; give a boolean `attention_mask` "
                'or call `model.set_attn_implementation("sdpa")`.'
            )
        # a row of nothing but -inf would be nan, and the lowest float32 is -inf in a narrower dtype
        return by_head.to(inputs_embeds.dtype).clamp(min=torch.finfo(inputs_embeds.dtype).min)
    return _as_backend_reads(implementation, by_head.bool(), inputs_embeds.dtype)


def _mask_of_parts(
    config: PreTrainedConfig,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    position_ids: torch.Tensor,
    block_length: int | None,
    cache: "CanvasCache | None",
) -> torch.Tensor | BlockMask | None:
    """The mask of block-causal attention, and of a part of a canvas that attends to all of it."""
    batch, length = inputs_embeds.shape[:2]
    if attention_mask is None and not block_length:
        return None
    if is_flash_attention_requested(config):
        raise ValueError(
            f"{config._attn_implementation!r} attention knows no mask per query position, which blocks and padding in "
            'a cached canvas need; call `model.set_attn_implementation("sdpa")`.'
        )
    visible = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inputs_embeds.device)
    if block_length:
        key_positions = position_ids if cache is None else cache.position_ids[:, : cache.visible]
        query_blocks, key_blocks = position_ids // block_length, key_positions // block_length
        visible = key_blocks[:, None, None, :] <= query_blocks[:, None, :, None]
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, None, :].bool()
    visible = visible.expand(batch, -1, length, -1)
    return _as_backend_reads(config._attn_implementation, visible, inputs_embeds.dtype)


def _as_backend_reads(implementation: str, visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | BlockMask:
    if implementation == "sdpa":
        return visible
    if implementation == "flex_attention":
        batch, _, queries, keys = visible.shape

        def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return visible[row, 0, query, key]

        return create_block_mask(sees, batch, None, queries, keys, device=visible.device)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


__all__ = ["default_positions", "expand_attention_mask", "find_tokens"]
