"""Keys and values of a canvas, written where a forward pass computes them and read everywhere else."""

import weakref
from typing import Any

import torch


class CanvasCache:
    """
    Keys and values for every position of a canvas. A model that is given one computes any part of the canvas: it
    writes the keys and values of the positions it computes, in place and after rotation, and attends to all.

    What is not computed again keeps the keys and values it had. Under block-causal attention those of finished blocks
    never change, so that nothing is lost; under full attention they are an approximation.

    Args:
        position_ids (`torch.LongTensor` of shape `(batch, length)`):
            The position of every token in its text.

    Attributes:
        visible (`int`):
            Positions from here on are not attended to. The whole canvas by default.
    """

    def __init__(self, position_ids: torch.Tensor):
        self.position_ids = position_ids
        self.visible = position_ids.shape[1]
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        # what the model was given at the beginning of the canvas, and up to where that is final in each row
        self.tokens = position_ids[:, :0]
        self.num_final = torch.zeros_like(position_ids[:, 0])
        # what keys and values depend on besides the tokens, by the names of settings; a model is a weak reference
        self.made_with: dict[str, Any] = {}

    def update(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        layer_idx: int,
        cache_position: torch.Tensor,
        inexact: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes the keys and values of a layer and gives all that are visible.

        Args:
            key, value (`torch.Tensor` of shape `(batch, heads, computed, head_dim)`):
                What was computed.
            layer_idx (`int`):
                The layer.
            cache_position (`torch.LongTensor` of shape `(computed,)`):
                Where in the canvas.
            inexact (`torch.BoolTensor` of shape `(batch, computed)`, *optional*):
                What keeps the keys and values it had, although it was computed.

        Returns:
            `tuple` of keys and values, each of shape `(batch, heads, visible, head_dim)`.
        """
        if layer_idx == len(self.keys):
            for buffers, new in ((self.keys, key), (self.values, value)):
                # zeros: a hidden position has no weight, but nan times no weight is nan
                buffers.append(new.new_zeros(*new.shape[:2], self.position_ids.shape[1], new.shape[3]))
        for buffer, new in ((self.keys[layer_idx], key), (self.values[layer_idx], value)):
            if inexact is not None:
                new = torch.where(inexact[:, None, :, None], buffer[:, :, cache_position], new)
            buffer.index_copy_(2, cache_position, new)
        return self.keys[layer_idx][:, :, : self.visible], self.values[layer_idx][:, :, : self.visible]

    def take_over(self, earlier: "CanvasCache", tokens: torch.Tensor) -> torch.Tensor:
        """
        Copies the beginning of an earlier cache.

        Args:
            earlier ([`CanvasCache`]):
                A cache with the final `tokens` of its beginning.
            tokens (`torch.LongTensor` of shape `(batch, length)`):
                What the model is given of this canvas, -1 where it is undecided.

        Returns:
            `torch.LongTensor` of shape `(batch,)`: As far as each row holds final keys and values of the same text.

        Raises:
            ValueError: If the other cache was made with something else, has not the same rows, or other padding.
        """
        if not isinstance(earlier, CanvasCache) or earlier.made_with.keys() != self.made_with.keys():
            raise ValueError(
                f"`cache` is a {type(earlier).__name__} that no call of `generate` returned; pass `output.cache` of "
                "one with `return_dict_in_generate=True`."
            )
        for name, mine in self.made_with.items():
            others = earlier.made_with[name]
            if mine != others:
                raise ValueError(
                    f"`cache` was made with `{name}` {_named(others)}, and this call has {_named(mine)}, for which "
                    "its keys and values are wrong. Use the same, or leave out `cache`."
                )
        length = min(earlier.tokens.shape[1], tokens.shape[1])
        if len(earlier.tokens) != len(tokens) or not torch.equal(
            earlier.position_ids[:, :length], self.position_ids[:, :length]
        ):
            raise ValueError(
                f"`cache` holds {len(earlier.tokens)} rows and the batch {len(tokens)}, or they are padded "
                "differently; continue the same batch, with the same padding."
            )
        is_final = torch.arange(length, device=tokens.device) < earlier.num_final.unsqueeze(1)
        same = is_final & (earlier.tokens[:, :length] == tokens[:, :length])
        for mine, others in ((self.keys, earlier.keys), (self.values, earlier.values)):
            for other in others:
                buffer = other.new_zeros(*other.shape[:2], self.position_ids.shape[1], other.shape[3])
                buffer[:, :, :length] = other[:, :, :length]
                mine.append(buffer)
        return same.long().cumprod(1).sum(1)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drops all rows but those with the indices `rows`, a `torch.LongTensor`."""
        self.position_ids = self.position_ids[rows]
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


def _named(value: Any) -> str:
    if not isinstance(value, weakref.ref):
        return repr(value)
    model = value()
    return "one that is gone" if model is None else f"{type(model).__name__} {model.name_or_path!r} at {id(model):#x}"


__all__ = ["CanvasCache"]
