"""The state of sampling, and the only thing that changes it."""

import copy
from dataclasses import dataclass

import torch

from .chance import Chance


def true_first(wanted: torch.Tensor, number: int) -> torch.Tensor:
    """
    The places of the true cells in the last dimension, in their order, without waiting for the device.

    Args:
        wanted (`torch.BoolTensor` of shape `(..., length)`):
            The cells.
        number (`int`):
            How many to return. Places of false cells follow where there are fewer true ones.

    Returns:
        `torch.LongTensor` of shape `(..., number)`.
    """
    return (~wanted).argsort(dim=-1, stable=True)[..., :number]


@dataclass
class Delta:
    """
    A change of the canvas: what one step does, or the end of rows.

    Args:
        step (`int`):
            Number of the step, from 0; -1 for a change that belongs to none, such as the end of a row.
        block (`int`):
            Number of the block it belongs to, from 0, or -1.
        positions (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that change.
        tokens (`torch.LongTensor` of shape `(batch, length)`):
            Their new tokens, the mask token where a position is taken back; the tokens before elsewhere.
        confidence (`torch.FloatTensor` of shape `(batch, length)`):
            How sure the model was of each, between 0 and 1; 0 elsewhere.
        repeats (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            How many times each position is repeated after the change. Only masks are.
        ends (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Where rows end that this change ends, -1 for the others.
    """

    step: int
    block: int
    positions: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    repeats: torch.Tensor | None = None
    ends: torch.Tensor | None = None


class Canvas:
    """
    A batch of partly masked sequences.

    Which positions may change is kept explicitly: `frozen` ones never do, whatever their token is, so a mask token
    that the caller gave as text would stay. Nothing here waits for the device.

    Args:
        tokens (`torch.LongTensor` of shape `(batch, length)`):
            The sequences.
        frozen (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that the caller gave, padding included.
        mask_token_id (`int`):
            Id of the mask token.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            1 for tokens, 0 for padding.

    Attributes:
        masked (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that are still to be decided.
        step_of (`torch.IntTensor` of shape `(batch, length)`):
            The step each position got its token in, -1 if it was given or is undecided.
        confidence (`torch.FloatTensor` of shape `(batch, length)`):
            How sure the model was when it decided, 0 if it did not.
        finished (`torch.BoolTensor` of shape `(batch,)`):
            The rows that ended before the canvas did.
        ends (`torch.LongTensor` of shape `(batch,)`):
            Length of each row, without what was filled in after its end.
        padding (`torch.LongTensor` of shape `(batch,)`):
            Number of padding positions before the text of each row.
        has_suffix (`torch.BoolTensor` of shape `(batch, length)`):
            Whether text that the caller gave stands to the right of a position.
        chance ([`~llada.generation.chance.Chance`]):
            Where random numbers come from.
        places (`torch.LongTensor` of shape `(length,)`, *optional*):
            In a part of a longer canvas, where its positions are.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        frozen: torch.Tensor,
        mask_token_id: int,
        attention_mask: torch.Tensor | None = None,
    ):
        self.tokens = tokens
        self.frozen = frozen
        self.mask_token_id = mask_token_id
        self.attention_mask = attention_mask
        self.masked = ~frozen & (tokens == mask_token_id)
        self.step_of = torch.full_like(tokens, -1, dtype=torch.int32)
        self.confidence = torch.zeros_like(tokens, dtype=torch.float32)
        self.finished = torch.zeros_like(frozen[:, 0])
        self.ends = torch.full_like(tokens[:, 0], tokens.shape[1])
        if attention_mask is None:
            self.padding = torch.zeros_like(self.ends)
            given = frozen
        else:
            self.padding = (attention_mask.cumsum(1) == 0).sum(1)
            given = frozen & attention_mask.bool()
        self.has_suffix = given.flip(1).cumsum(1).flip(1) > given
        self.chance = Chance()
        self.places: torch.Tensor | None = None

    @classmethod
    def after_prompt(
        cls,
        prompt: torch.Tensor,
        num_new_tokens: int,
        mask_token_id: int,
        attention_mask: torch.Tensor | None = None,
        multiple_of: int = 1,
    ) -> "Canvas":
        """
        A frozen prompt of shape `(batch, prompt_length)`, followed by `num_new_tokens` masks, and by more until the
        text of each row, without padding, has a length that is a multiple of `multiple_of`.
        """
        attention_mask = torch.ones_like(prompt) if attention_mask is None and multiple_of > 1 else attention_mask
        text = prompt.shape[1] if attention_mask is None else attention_mask.sum(1)  # [batch]
        extra = -(text + num_new_tokens) % multiple_of
        num_masks = num_new_tokens + int(torch.as_tensor(extra).max())
        masks = prompt.new_full((prompt.shape[0], num_masks), mask_token_id)
        tokens = torch.cat([prompt, masks], dim=1)
        frozen = torch.zeros_like(tokens, dtype=torch.bool)
        frozen[:, : prompt.shape[1]] = True
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(masks.shape)], dim=1)
            # rows that need fewer extra masks than others end earlier
            beyond = torch.arange(num_masks, device=prompt.device) >= torch.as_tensor(num_new_tokens + extra).view(
                -1, 1
            )
            frozen[:, prompt.shape[1] :] |= beyond
            attention_mask[:, prompt.shape[1] :] = attention_mask[:, prompt.shape[1] :].masked_fill(beyond, 0)
        return cls(tokens, frozen, mask_token_id, attention_mask)

    @classmethod
    def after_prompts(
        cls,
        prompt: torch.Tensor,
        num_masks: list[int],
        mask_token_id: int,
        fill: int,
        attention_mask: torch.Tensor | None = None,
        eos: int | None = None,
        lengths: list[int] | None = None,
        longest: int | None = None,
    ) -> "Canvas":
        """
        A frozen prompt of shape `(batch, prompt_length)`, followed in each row by a number of masks of its own, then
        by `eos` up to a length of its own, if `lengths` are given, then by padding that reads `fill`, up to the
        longest row or to `longest`.
        """
        if lengths is None and min(num_masks) == max(num_masks):
            return cls.after_prompt(prompt, num_masks[0], mask_token_id, attention_mask)
        lengths = num_masks if lengths is None else lengths
        ends = torch.tensor(lengths, device=prompt.device).unsqueeze(1)
        places = torch.arange(longest or max(lengths), device=prompt.device)
        beyond = places >= ends
        answer = torch.full_like(beyond, mask_token_id, dtype=prompt.dtype)
        if eos is not None:
            answer = answer.masked_fill(places >= torch.tensor(num_masks, device=prompt.device).unsqueeze(1), eos)
        answer = answer.masked_fill(beyond, fill)
        attention_mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        canvas = cls(
            torch.cat([prompt, answer], dim=1),
            torch.cat([torch.ones_like(prompt, dtype=torch.bool), beyond], dim=1),
            mask_token_id,
            torch.cat([attention_mask, (~beyond).to(attention_mask.dtype)], dim=1),
        )
        canvas.ends = prompt.shape[1] + ends.squeeze(1)
        return canvas

    @property
    def position_ids(self) -> torch.Tensor:
        """`torch.LongTensor` of shape `(batch, length)`: Positions in the text of each row, 0 in padding before it."""
        positions = self.places
        if positions is None:
            positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (positions - self.padding.unsqueeze(1)).clamp(min=0)

    def part(self, places: torch.Tensor) -> "Canvas":
        """Some positions of the canvas, as if there were no others, to compute from."""
        part = copy.copy(self)
        for name in ("tokens", "frozen", "masked", "step_of", "confidence", "has_suffix"):
            setattr(part, name, getattr(self, name)[:, places])
        if self.attention_mask is not None:
            part.attention_mask = self.attention_mask[:, places]
        part.places = places
        return part

    def apply(self, delta: Delta) -> None:
        """
        Carries out a step. Frozen positions stay, whatever the delta says. What stands behind repeated positions moves
        to the right, into the padding with which a row that may grow ends.
        """
        changes = delta.positions & ~self.frozen
        self.tokens = torch.where(changes, delta.tokens, self.tokens)
        opened = delta.tokens == self.mask_token_id if delta.ends is None else torch.zeros_like(changes)
        self.masked = torch.where(changes, opened, self.masked)
        self.step_of = self.step_of.masked_fill(changes, -1).masked_fill(changes & ~self.masked, delta.step)
        self.confidence = torch.where(changes, delta.confidence.masked_fill(self.masked, 0.0), self.confidence)
        if delta.repeats is not None:
            # where each position comes from
            ends = (delta.repeats + 1).cumsum(1)
            places = torch.arange(ends.shape[1], device=ends.device).expand(ends.shape).contiguous()
            source = torch.searchsorted(ends, places, right=True)
            for name in ("tokens", "frozen", "masked", "step_of", "confidence", "has_suffix", "attention_mask"):
                values = getattr(self, name)
                setattr(self, name, None if values is None else values.gather(1, source))
            self.ends = self.ends + delta.repeats.sum(1)

        if delta.ends is not None:
            self.finished = self.finished | (delta.ends >= 0)
            self.ends = torch.where(delta.ends >= 0, delta.ends, self.ends)

    def ending(self, rows: torch.Tensor, ends: torch.Tensor, fill: int) -> Delta:
        """
        The change that ends rows: what stands at `ends` and after reads `fill` and is decided.

        Args:
            rows (`torch.BoolTensor` of shape `(batch,)`):
                The rows to end.
            ends (`torch.LongTensor` of shape `(batch,)`):
                Their lengths.
            fill (`int`):
                Id to put after the end.
        """
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        rest = rows.unsqueeze(1) & (positions >= ends.unsqueeze(1)) & ~self.frozen
        return Delta(
            step=-1,
            block=-1,
            positions=rest,
            tokens=self.tokens.masked_fill(rest, fill),
            confidence=torch.zeros_like(self.confidence),
            ends=torch.where(rows, ends, -1),
        )


__all__ = ["Canvas", "Delta", "true_first"]
