"""
Predictions from the position before, as causal models make them: what is shifted are the last hidden states, so that
the logits of the model, its losses and its caches belong to the position they stand at, as in every other model here.
"""

from typing import TYPE_CHECKING

import torch

from .attention_masks import find_tokens


if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from ..generation.forwards.canvas_cache import CanvasCache


def find_sources(
    num_layers: int,
    hidden_states: torch.Tensor,
    attention_mask: "torch.Tensor | BlockMask | None" = None,
    position_ids: torch.Tensor | None = None,
    past_key_values: "CanvasCache | None" = None,
    cache_position: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which last hidden state the logits of a position are made from: that of the position before it, or its own where a
    text begins. Texts begin at the first position, after padding, and where positions do not go on.

    Of a canvas that is computed in parts, last hidden states are kept like the keys and values of one more layer: the
    position before may be in another part.

    Args:
        num_layers (`int`):
            Number of layers, which have keys and values in a cache.
        hidden_states (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            The last hidden states of the input.
        attention_mask, position_ids, past_key_values, cache_position (*optional*):
            As in [`LLaDAModel.forward`], which has checked them.

    Returns:
        `tuple`: Where the source of every position of the input is, `torch.LongTensor` of shape `(batch, length)`, and
        what it is a place in, hidden states of shape `(batch, length or visible, hidden_size)`.
    """
    if past_key_values is not None and cache_position is not None:
        as_head = hidden_states.unsqueeze(1)
        kept, _ = past_key_values.update(as_head, as_head[..., :0], num_layers, cache_position)
        hidden_states = kept.squeeze(1)
        position_ids = past_key_values.position_ids[:, : past_key_values.visible]
    batch, length = hidden_states.shape[:2]
    begins = torch.zeros(batch, length, dtype=torch.bool, device=hidden_states.device)
    begins[:, :1] = True
    is_token = find_tokens(attention_mask, batch)
    if is_token is not None:
        begins[:, 1:] |= ~is_token[:, : length - 1].to(begins.device)
    if position_ids is not None:
        begins[:, 1:] |= (position_ids.diff(dim=1) <= 0).to(begins.device)
    sources = torch.arange(length, device=begins.device) - (~begins).long()
    return (sources if cache_position is None else sources[:, cache_position]), hidden_states


__all__ = ["find_sources"]
