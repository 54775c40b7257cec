"""Batches of preferences: chosen and rejected answers, with end-of-text tokens after them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from .data_collator import DataCollatorForMaskedDiffusion


@dataclass
class DataCollatorForMaskedPreference(DataCollatorMixin):
    """
    Collates tokenised preferences, each with `prompt_ids`, `chosen_ids` and `rejected_ids`. It does not mask.

    Args:
        eos_token_id (`int`):
            Id of the end-of-text token.
        pad_token_id (`int`, *optional*, defaults to `eos_token_id`):
            Id at positions that nothing sees.
        eos_fill (`"pair"`, `"longest"`, `"multiple"`, `"fixed"` or `"none"`, *optional*, defaults to `"pair"`):
            How far a complete answer is filled with end-of-text tokens, see [`LLaDADPOConfig`].
        eos_fill_length (`int`, *optional*):
            Required by `"multiple"` and `"fixed"`.
        min_eos (`int`, *optional*, defaults to 1):
            Number of end-of-text tokens that a complete answer ends with, at least.
        block_length (`int`, *optional*):
            Fills complete answers on to the end of a block, of a model that writes in blocks.
        max_length (`int`, *optional*):
            Longest row. Longer ones are cut off, and not filled.
        pad_to_multiple_of (`int`, *optional*):
            Pads the batch to a multiple of this length.

    Returns:
        `dict` with `input_ids`, `attention_mask` and `completion_mask` (`torch.LongTensor` of shape
        `(2 * batch, length)`), the chosen answers before the rejected ones, as TRL has it.

    Raises:
        ValueError: If a setting is unknown or incomplete.

    Example:

    ```python
    >>> from llada import DataCollatorForMaskedPreference

    >>> collator = DataCollatorForMaskedPreference(eos_token_id=0)
    >>> collator([{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9, 0]}])["input_ids"]
    tensor([[5, 6, 7, 0, 0],
            [5, 6, 8, 9, 0]])
    ```
    """

    eos_token_id: int
    pad_token_id: int | None = None
    eos_fill: str = "pair"
    eos_fill_length: int | None = None
    min_eos: int = 1
    block_length: int | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    _fill: DataCollatorForMaskedDiffusion = field(init=False, repr=False)
    _pad: DataCollatorForMaskedDiffusion = field(init=False, repr=False)

    def __post_init__(self):
        if self.eos_fill not in ("pair", "longest", "multiple", "fixed", "none"):
            raise ValueError(
                f"`eos_fill={self.eos_fill!r}` is unknown; write 'pair', 'longest', 'multiple', 'fixed' or 'none'."
            )
        self._fill = DataCollatorForMaskedDiffusion(
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
            eos_fill="longest" if self.eos_fill == "pair" else self.eos_fill,
            eos_fill_length=self.eos_fill_length,
            min_eos=self.min_eos,
            block_length=self.block_length,
            max_length=self.max_length,
            multi_turn="last",
        )
        self._pad = replace(
            self._fill,
            eos_fill="none",
            eos_fill_length=None,
            min_eos=0,
            block_length=None,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [[self._row(example, side) for side in ("chosen_ids", "rejected_ids")] for example in examples]
        if self.eos_fill == "pair":
            filled = [row for pair in pairs for row in self._filled(pair)]
        else:
            filled = self._filled([row for pair in pairs for row in pair])
        batch = self._pad(filled[::2] + filled[1::2])
        visible = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": visible,
            "completion_mask": (batch["labels"] != -100).long(),
        }

    def _row(self, example: dict[str, Any], side: str) -> dict[str, list[int]]:
        prompt, answer = list(example["prompt_ids"]), list(example[side])
        cut = slice(self.max_length)
        return {"input_ids": (prompt + answer)[cut], "labels": ([-100] * len(prompt) + answer)[cut]}

    def _filled(self, rows: list[dict[str, list[int]]]) -> list[dict[str, torch.Tensor]]:
        """The rows with their end-of-text tokens, each as long as it is."""
        batch = self._fill(rows)
        visible = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
        return [
            {name: batch[name][row, : visible[row].sum()] for name in ("input_ids", "labels")}
            for row in range(len(rows))
        ]


__all__ = ["DataCollatorForMaskedPreference"]
