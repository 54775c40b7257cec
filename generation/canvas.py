"""The state of sampling, and the only thing that changes it."""

from dataclasses import dataclass

import torch


@dataclass
class Delta:
    """
    What one step changes.

    Args:
        step (`int`):
            Number of the step, from 0.
        block (`int`):
            Number of the block it belongs to, from 0.
        positions (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that change.
        tokens (`torch.LongTensor` of shape `(batch, length)`):
            Their new tokens; the tokens before elsewhere.
        confidence (`torch.FloatTensor` of shape `(batch, length)`):
            How sure the model was of each, between 0 and 1; 0 elsewhere.
        closes_block (`bool`):
            Whether this is the last step of its block.
    """

    step: int
    block: int
    positions: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    closes_block: bool


class Canvas:
    """
    A batch of partly masked sequences.

    Which positions may change is kept explicitly: `frozen` ones never do, whatever their token is, so a mask token
    that the caller gave as text would stay. A row that is not `active` takes no part in further forward passes.

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
            The step each position was decided in, -1 if it was given or is undecided.
        confidence (`torch.FloatTensor` of shape `(batch, length)`):
            How sure the model was when it decided, 0 if it did not.
        active (`list[int]`):
            The rows that are not finished.
        ends (`list[int]`):
            Length of each row, without what was filled in after its end.
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
        self.active = list(range(tokens.shape[0]))
        self.ends = [tokens.shape[1]] * tokens.shape[0]
        # text that the caller gave to the right of a position: no end of text may come before it
        given = frozen if attention_mask is None else frozen & attention_mask.bool()
        self.has_suffix = given.flip(1).cumsum(1).flip(1) > given

    @classmethod
    def after_prompt(
        cls,
        prompt: torch.Tensor,
        num_new_tokens: int,
        mask_token_id: int,
        attention_mask: torch.Tensor | None = None,
    ) -> "Canvas":
        """A frozen prompt of shape `(batch, prompt_length)`, followed by `num_new_tokens` masks."""
        masks = prompt.new_full((prompt.shape[0], num_new_tokens), mask_token_id)
        frozen = torch.ones_like(prompt, dtype=torch.bool)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(masks, dtype=attention_mask.dtype)], dim=1)
        return cls(
            torch.cat([prompt, masks], dim=1),
            torch.cat([frozen, torch.zeros_like(masks, dtype=torch.bool)], dim=1),
            mask_token_id,
            attention_mask,
        )

    def apply(self, delta: Delta) -> None:
        """Carries out a step. Frozen positions stay, whatever the delta says."""
        changes = delta.positions & ~self.frozen
        self.tokens = torch.where(changes, delta.tokens, self.tokens)
        self.masked = ~self.frozen & torch.where(changes, delta.tokens == self.mask_token_id, self.masked)
        decided = changes & ~self.masked
        self.step_of = self.step_of.masked_fill(decided, delta.step)
        self.confidence = torch.where(decided, delta.confidence, self.confidence)

    def finish(self, row: int, length: int, fill: int) -> None:
        """Ends a row: its first `length` positions stay, the rest reads `fill`, and it leaves the batch."""
        rest = ~self.frozen[row]
        rest[:length] = False
        self.tokens[row] = self.tokens[row].masked_fill(rest, fill)
        self.masked[row] &= ~rest
        self.step_of[row] = self.step_of[row].masked_fill(rest, -1)
        self.confidence[row] = self.confidence[row].masked_fill(rest, 0.0)
        self.ends[row] = length
        self.active.remove(row)


__all__ = ["Canvas", "Delta"]
