"""Several documents in a row that are not to see each other."""

from typing import Any

import torch
from torch import nn


def count_tokens_before(is_token: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
    """
    Positions as generation counts them: without padding, from 0 in every document.

    Args:
        is_token (`torch.BoolTensor` of shape `(batch, length)`):
            `False` for padding.
        document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The document of every token. Neighbours of one id are one document.

    Returns:
        `torch.LongTensor` of shape `(batch, length)`.
    """
    before = is_token.long().cumsum(1) - is_token.long()
    if document_ids is None:
        return before
    begins = nn.functional.pad(document_ids.diff(dim=1) != 0, (1, 0), value=True)
    return before - before.masked_fill(~begins, 0).cummax(1).values


def lay_out_documents(
    input_ids: torch.Tensor, document_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> dict[str, Any]:
    """
    The arguments of `forward` for rows of several documents, each of which is as it would be alone.

    Args:
        input_ids, document_ids (`torch.LongTensor` of shape `(batch, length)`):
            Tokens, and the document of each.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            0 for padding, on either side.

    Returns:
        `dict` with `input_ids`, `position_ids`, `attention_mask` of shape `(batch, length, length)`, and
        `block_length` 0: there are no blocks.
    """
    is_token = torch.ones_like(document_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    same = document_ids[:, :, None] == document_ids[:, None, :]
    # a row of nothing but False is nan in some kernels
    return {
        "input_ids": input_ids,
        "position_ids": count_tokens_before(is_token, document_ids),
        "block_length": 0,
        "attention_mask": is_token[:, None, :] & (same | ~is_token[:, :, None]),
    }


__all__ = ["count_tokens_before", "lay_out_documents"]
