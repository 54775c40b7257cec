"""Batches for masked diffusion: which tokens may be masked, and end-of-text tokens after the response."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from ...modeling_llada.masked_diffusion import noise_generator


@dataclass
class DataCollatorForMaskedDiffusion(DataCollatorMixin):
    """
    Collates tokenised rows. It does not mask: trainers do, with noise that depends on the step.

    Each example has `input_ids` and may have `labels`, -100 on the tokens that are never masked. Without them every
    token may be masked, which is the objective of pre-training. Consecutive labels are a response, several of them in
    a row are the answers of a conversation. A label that is another token than that of the row is what it should be.

    Args:
        eos_token_id (`int`):
            Id of the end-of-text token.
        pad_token_id (`int`, *optional*, defaults to `eos_token_id`):
            Id at positions that nothing sees.
        eos_fill (`"longest"`, `"multiple"`, `"fixed"` or `"none"`, *optional*, defaults to `"longest"`):
            How far a complete response is filled with end-of-text tokens, see [`LLaDASFTConfig`].
        eos_fill_length (`int`, *optional*):
            Required by `"multiple"` and `"fixed"`.
        min_eos (`int`, *optional*, defaults to 1):
            Number of end-of-text tokens that a complete response ends with, at least.
        max_length (`int`, *optional*):
            The length that rows were truncated to. No row is filled beyond it, so that a response that was cut off
            does not end with an end of text.
        multi_turn (`"last"`, `"sample"` or `"all"`, *optional*, defaults to `"sample"`):
            Which of several responses may be masked, see [`LLaDASFTConfig`]. The row ends with it.
        pad_to_multiple_of (`int`, *optional*):
            Pads the batch to a multiple of this length.
        block_length (`int`, *optional*):
            Fills complete responses further, until the row is a multiple of this length: block diffusion fills in
            whole blocks. Trainers set it.
        separate_documents (`bool`, *optional*, defaults to `False`):
            Whether to number the documents of a row, which end with the end-of-text token: trainers do not let them
            see each other then.
        seed (`int`, *optional*, defaults to 0):
            Seed of `multi_turn="sample"`. The choice depends on it, on the epoch and on the row.

    Returns:
        `dict` with `input_ids` and `labels` (`torch.LongTensor` of shape `(batch, length)`), the latter -100 where
        nothing may be masked, `attention_mask` of the same shape if there is padding, and `document_ids` if asked for.

    Raises:
        ValueError: If a setting is unknown or incomplete, a row has nothing that may be masked, or not one
            label for every token.

    Example:

    ```python
    >>> from llada import DataCollatorForMaskedDiffusion

    >>> collator = DataCollatorForMaskedDiffusion(eos_token_id=0)
    >>> batch = collator([
    ...     {"input_ids": [5, 6, 7, 0], "labels": [-100, -100, 7, 0]},
    ...     {"input_ids": [5, 8], "labels": [-100, 8]},
    ... ])
    >>> batch["input_ids"]
    tensor([[5, 6, 7, 0],
            [5, 8, 0, 0]])
    >>> batch["labels"]
    tensor([[-100, -100,    7,    0],
            [-100,    8,    0,    0]])
    ```
    """

    eos_token_id: int
    pad_token_id: int | None = None
    eos_fill: str = "longest"
    eos_fill_length: int | None = None
    min_eos: int = 1
    max_length: int | None = None
    multi_turn: str = "sample"
    pad_to_multiple_of: int | None = None
    block_length: int | None = None
    separate_documents: bool = False
    seed: int = 0
    return_tensors: str = "pt"
    # in shared memory: the worker processes of a data loader may outlive an epoch
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_(), repr=False)

    def __post_init__(self):
        if self.eos_fill not in ("longest", "multiple", "fixed", "none"):
            raise ValueError(
                f"`eos_fill={self.eos_fill!r}` is unknown; write 'longest', 'multiple', 'fixed' or 'none'."
            )
        if self.multi_turn not in ("last", "sample", "all"):
            raise ValueError(f"`multi_turn={self.multi_turn!r}` is unknown; write 'last', 'sample' or 'all'.")
        if self.min_eos < 0:
            raise ValueError(f"`min_eos={self.min_eos}` is negative; write 0 or more.")
        needs_length = self.eos_fill in ("multiple", "fixed")
        if needs_length and (self.eos_fill_length is None or self.eos_fill_length < 1):
            raise ValueError(
                f"`eos_fill={self.eos_fill!r}` fills to a length, but `eos_fill_length={self.eos_fill_length}`; write "
                "the length in tokens."
            )
        if not needs_length and self.eos_fill_length is not None:
            raise ValueError(
                f"`eos_fill={self.eos_fill!r}` has no use for `eos_fill_length={self.eos_fill_length}`; leave it out, "
                "or write `eos_fill='multiple'` or `eos_fill='fixed'`."
            )

    def for_evaluation(self) -> "DataCollatorForMaskedDiffusion":
        """
        The collator that evaluates: a response ends with `min_eos` end-of-text tokens and is not filled further, but
        to the end of its last block, so that its likelihood is that of the response, whatever batch it is
        in. `multi_turn="sample"` draws as in epoch 0.
        """
        epoch = torch.zeros((), dtype=torch.long)
        return replace(self, eos_fill="none", eos_fill_length=None, epoch=epoch)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        lengths = np.array([len(row) for row in ids])
        positions = np.arange(lengths.max(initial=0))
        inside = positions < lengths[:, None]
        tokens = np.full(inside.shape, self.eos_token_id)
        tokens[inside] = np.concatenate(ids)
        # what is right: tokens of the row may be wrong where editing is trained
        right, trainable = tokens.copy(), inside.copy()
        labels = [np.asarray(example["labels"], dtype=np.int64) for example in examples if "labels" in example]
        if labels:
            self._check_labels(labels, lengths)
            values = np.concatenate(labels)
            trainable[inside] = values != -100
            right[inside] = np.where(values == -100, right[inside], values)

        trainable, starts, ends = self._choose_turns(ids, trainable)
        targets = self._fill_to(right, trainable, starts, ends)

        width = int(targets.max())
        if self.pad_to_multiple_of is not None:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        positions = np.arange(width)
        given, filled = positions < ends[:, None], positions < targets[:, None]
        trained = filled & ~given
        common = min(width, int(lengths.max(initial=0)))
        trained[:, :common] |= trainable[:, :common]
        pad_token_id = self.eos_token_id if self.pad_token_id is None else self.pad_token_id
        input_ids = np.where(filled, self.eos_token_id, pad_token_id)
        answers = input_ids.copy()
        for row, values in ((input_ids, tokens), (answers, right)):
            row[:, :common] = np.where(given[:, :common], values[:, :common], row[:, :common])
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(np.where(trained, answers, -100)),
        }
        if not filled.all():
            batch["attention_mask"] = torch.from_numpy(filled.astype(np.int64))
        if self.separate_documents:
            ends = input_ids == self.eos_token_id
            batch["document_ids"] = torch.from_numpy(ends.cumsum(axis=1) - ends)
        return batch

    @staticmethod
    def _check_labels(labels: list[np.ndarray], lengths: np.ndarray) -> None:
        if len(labels) < len(lengths):
            raise ValueError("Some rows of the batch have `labels` and some have none. Write them in every row.")
        for row, (values, length) in enumerate(zip(labels, lengths, strict=True)):
            if len(values) != length:
                raise ValueError(
                    f"Row {row} of the batch has {len(values)} labels and {length} tokens. Write one for every token."
                )

    def _choose_turns(self, ids: list[np.ndarray], trainable: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What remains trainable, and where the last response that does starts and ends."""
        edges = np.diff(trainable.astype(np.int8), axis=1, prepend=0, append=0)
        first, last = edges[:, :-1] == 1, edges[:, 1:] == -1
        turns = first.sum(axis=1)
        if (turns == 0).any():
            rows = np.flatnonzero(turns == 0).tolist()
            raise ValueError(
                f"Rows {rows} of the batch have nothing to train on: every label is -100. Drop them from the "
                "dataset, or raise `max_length` if the prompt alone fills it."
            )
        chosen = turns - 1
        if self.multi_turn == "sample":
            for row in np.flatnonzero(turns > 1):
                generator = noise_generator(self.seed, "turn", int(self.epoch), ids[row].tobytes())
                chosen[row] = torch.randint(int(turns[row]), (), generator=generator)
        # the number of the turn that a position belongs to, or follows
        turn = first.cumsum(axis=1) - 1
        is_chosen = turn == chosen[:, None]
        starts = (first & is_chosen).argmax(axis=1)
        ends = (last & is_chosen).argmax(axis=1) + 1
        kept = turn <= chosen[:, None] if self.multi_turn == "all" else is_chosen
        return trainable & kept, starts, ends

    def _fill_to(self, tokens: np.ndarray, trainable: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The length of each row with its end-of-text tokens."""
        positions = np.arange(tokens.shape[1])
        # the last position of the row that is not a trained end-of-text token
        content = ~(trainable & (tokens == self.eos_token_id)) & (positions < ends[:, None])
        last_content = np.where(content, positions, -1).max(axis=1)
        present = ends - 1 - last_content
        targets = ends + np.maximum(self.min_eos - present, 0)
        if self.eos_fill == "longest":
            targets[:] = targets.max()
        elif self.eos_fill == "multiple":
            targets = starts - (starts - targets) // self.eos_fill_length * self.eos_fill_length
        elif self.eos_fill == "fixed":
            targets = np.maximum(targets, starts + self.eos_fill_length)
        if self.block_length:
            targets = -(-targets // self.block_length) * self.block_length
        if self.max_length is not None:
            # a row that was cut off is that long already
            targets = np.minimum(targets, np.maximum(self.max_length, ends))
        return targets


__all__ = ["DataCollatorForMaskedDiffusion"]
