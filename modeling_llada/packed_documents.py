"""Several documents in a row that are not to see each other."""

from collections.abc import Sequence
from dataclasses import dataclass
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


def best_fit(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """
    Puts documents into as few rows as best-fit decreasing finds: the longest first, each into the fullest row that has
    room for it.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each document, `capacity` at most.
        capacity (`int`):
            Tokens that a row has room for.

    Returns:
        `tuple` of `list[int]`: the row of each document, and where it starts there.
    """
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    used: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        length = lengths[document]
        roomy = [row for row, filled in enumerate(used) if filled + length <= capacity]
        if not roomy:
            used.append(0)
            roomy = [len(used) - 1]
        row = max(roomy, key=used.__getitem__)
        rows[document], starts[document] = row, used[row]
        used[row] += length
    return rows, starts


@dataclass(frozen=True)
class PackedRows:
    """
    Rows of a padded batch, several in one, and the way back.

    Args:
        places (`torch.LongTensor` of shape `(batch, length)`):
            Where each token is in the flattened packed rows. Padding is one place after all of them.
        num_rows, length (`int`):
            Of the packed rows.
    """

    places: torch.Tensor
    num_rows: int
    length: int

    def pack(self, values: torch.Tensor, rest: int) -> torch.Tensor:
        """Values of shape `(batch, length)` as `(num_rows, length)`, `rest` where nothing is."""
        packed = values.new_full((self.num_rows * self.length + 1,), rest)
        return packed.scatter_(0, self.places.flatten(), values.flatten())[:-1].view(self.num_rows, self.length)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """The way back, 0 for padding."""
        return nn.functional.pad(values.flatten(), (0, 1))[self.places]


def pack_rows(attention_mask: torch.Tensor) -> PackedRows | None:
    """
    Packs the rows of a batch into fewer that are as long as the longest of them, so that nothing grows but what was
    padding. Waits for the device, to read the lengths.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, length)`):
            0 for padding, on either side.

    Returns:
        [`PackedRows`], or `None` if they are no fewer.
    """
    is_token = attention_mask.bool()
    lengths = is_token.sum(dim=1).tolist()
    length = max(lengths)
    rows, starts = best_fit(lengths, length)
    num_rows = max(rows) + 1
    if num_rows == len(lengths):
        return None
    first = torch.tensor([row * length + start for row, start in zip(rows, starts, strict=True)])
    places = first.to(is_token.device).unsqueeze(1) + count_tokens_before(is_token)
    return PackedRows(places.masked_fill(~is_token, num_rows * length), num_rows, length)


__all__ = ["PackedRows", "best_fit", "count_tokens_before", "lay_out_documents", "pack_rows"]
