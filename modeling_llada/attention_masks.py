"""Attention masks of every form users write, brought to the form that the attention back-end in use expects."""

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import is_flash_attention_requested


def expand_attention_mask(
    config: PreTrainedConfig, attention_mask: torch.Tensor | BlockMask | None, inputs_embeds: torch.Tensor
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
        if attention_mask is not None and attention_mask.shape != (batch, length):
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}, but the input has batch and length "
                f"{(batch, length)}; give one row of 0 (padding) and 1 (token) per sequence."
            )
        return create_bidirectional_mask(config, inputs_embeds, attention_mask)

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
    lowest = torch.finfo(inputs_embeds.dtype).min
    if by_head.is_floating_point():
        # a row of nothing but -inf would be nan, and the lowest float32 is -inf in a narrower dtype
        return by_head.to(inputs_embeds.dtype).clamp(min=lowest)
    visible = by_head.bool()
    if implementation == "sdpa":
        return visible
    return torch.zeros_like(visible, dtype=inputs_embeds.dtype).masked_fill(~visible, lowest)


__all__ = ["expand_attention_mask"]
