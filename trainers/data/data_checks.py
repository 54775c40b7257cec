"""What the rows of a dataset have to be, said where they are not."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers.utils import logging


logger = logging.get_logger(__name__)

ROLES = ("system", "user", "assistant", "tool")
# of the conversations that ShareGPT made common
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
# how other datasets call what is `prompt` and `completion` here
_QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "input")
_ANSWERS = ("completion", "answer", "output", "response", "chosen", "solution", "target")
# columns that would say what is trained if anything read them, and the one that is read
_UNREAD_MASKS = {
    "prompt_length": "prompt_lengths",
    "prompt_len": "prompt_lengths",
    "response_mask": "completion_mask",
    "loss_mask": "completion_mask",
    "assistant_mask": "assistant_masks",
}


def first_row(dataset: Any, name: str) -> dict[str, Any]:
    """
    The first row of a dataset.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The dataset.
        name (`str`):
            What it is called in messages: `"train"`, `"eval"` or the key of an evaluation set.

    Raises:
        ValueError: If it is a collection of splits, no dataset at all, or empty.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        splits = list(dataset)
        raise ValueError(
            f"The {name} dataset is a {type(dataset).__name__} of the splits {splits}. Write one of them, such as "
            f"`dataset[{splits[0] if splits else 'train'!r}]`."
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"The {name} dataset is of type {type(dataset).__name__}. Write a `datasets.Dataset`, such as "
            "`Dataset.from_list(rows)`, or a `datasets.IterableDataset`."
        )
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"The {name} dataset is empty. Look at the file or the filter that it comes from.")
    return row


def refuse_unknown_columns(columns: Iterable[str], name: str, known: str) -> None:
    """
    Complains about a dataset that has none of the columns that are read.

    Raises:
        ValueError: Always, with how to map the columns that it has.
    """
    columns = sorted(columns)
    question = next((column for column in _QUESTIONS if column in columns), None)
    answer = next((column for column in _ANSWERS if column in columns), None)
    renamed = {old: new for old, new in ((question, "prompt"), (answer, "completion")) if old and old != new}
    advice = f"Rename them with `dataset.rename_columns({renamed})`" if question and answer else "Rename or map them"
    if question == "instruction" and answer and "input" in columns:
        advice = (
            "Join them with `dataset.map(lambda row: {'prompt': row['instruction'] + '\\n' + row['input'], "
            f"'completion': row[{answer!r}]}}, remove_columns=dataset.column_names)`"
        )
    raise ValueError(f"The {name} dataset has the columns {columns}; it needs {known}. {advice}.")


def read_text(row: dict[str, Any], column: str) -> str:
    """
    A field of text.

    Raises:
        ValueError: If it is none.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {_shown(value)}. Write text, or drop the row with `dataset.filter`")
    return value


def read_messages(row: dict[str, Any], column: str, template: Any) -> list[dict[str, Any]]:
    """
    A field of messages, with `role` and `content`, or `from` and `value` as in ShareGPT.

    Args:
        row (`dict`):
            The row.
        column (`str`):
            The field.
        template (`str` or `dict`, *optional*):
            The chat template. A role that it names is allowed beside the usual ones.

    Returns:
        `list[dict]`: The messages, without the fields that are `None`.

    Raises:
        ValueError: If a message lacks its role or its text, or has a role that nobody knows.
    """
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` is {_shown(value)}. Write a list of messages, or drop the row")
    return [_read_message(message, f"`{column}[{number}]`", str(template)) for number, message in enumerate(value)]


def _read_message(message: Any, where: str, template: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is {_shown(message)}. Write a `dict` with `role` and `content`")
    # a column of messages has every field in every message
    message = {name: value for name, value in message.items() if value is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message = {"role": _SHAREGPT_ROLES.get(role, role), "content": message.pop("value", None)} | message
    role = message.get("role")
    if role not in ROLES and (not isinstance(role, str) or f"'{role}'" not in template.replace('"', "'")):
        raise ValueError(f"{where} has the role {_shown(role)}, which nobody knows. Write one of {ROLES}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"the content of {where} is {_shown(content)}. Write text, or drop the row")
    return message | {"content": content}


@dataclass(frozen=True)
class TokenChecks:
    """
    What tokens may be.

    Args:
        vocab_size (`int`):
            Number of ids.
        mask_token_id (`int`):
            Id of the mask token, which only the noise may write.
        may_differ (`bool`, *optional*, defaults to `False`):
            Whether labels may be other tokens than those of the row, as where editing is trained.
    """

    vocab_size: int
    mask_token_id: int
    may_differ: bool = False

    def read(self, row: dict[str, Any], use_completion_mask: bool = True) -> tuple[list[int], list[int]]:
        """
        A tokenised row. Padding, where `attention_mask` is 0, is cut off.

        Args:
            row (`dict`):
                Has `input_ids`, and may have `attention_mask`, `labels`, `completion_mask`, `assistant_masks` and
                `prompt_lengths`. A token is trained if none of them says otherwise.
            use_completion_mask (`bool`, *optional*, defaults to `True`):
                Whether `completion_mask` counts.

        Returns:
            `tuple` of `list[int]`: The tokens, and their labels, -100 where nothing is trained.

        Raises:
            ValueError: If columns contradict each other, or ids cannot be.
        """
        ids = _read_integers(row, "input_ids")
        trained = np.ones(len(ids), dtype=bool)
        visible = np.ones(len(ids), dtype=bool)
        names = ["attention_mask", "assistant_masks"] + ["completion_mask"] * use_completion_mask
        for column in [*names, "labels"]:
            if column not in row:
                continue
            values = _read_integers(row, column)
            if len(values) != len(ids):
                raise ValueError(
                    f"`{column}` has {len(values)} values and `input_ids` {len(ids)}. Write one for every token"
                )
            if column == "labels":
                trained &= values != -100
                continue
            if not np.isin(values, (0, 1)).all():
                raise ValueError(f"`{column}` has values other than 0 and 1. Write 1 where it holds")
            mask = visible if column == "attention_mask" else trained
            mask &= values == 1
        if "prompt_lengths" in row:
            trained &= np.arange(len(ids)) >= _read_length(row["prompt_lengths"], len(ids))
        if np.diff(visible.astype(int), prepend=0, append=0).clip(min=0).sum() > 1:
            raise ValueError(
                "`attention_mask` has a hole: 0 between two 1. Only padding at the ends can be cut off; take those "
                "tokens out of the row"
            )
        labels = ids
        if "labels" in row:
            labels = _read_integers(row, "labels")
            differs = visible & (labels != -100) & (labels != ids)
            if differs.any() and not self.may_differ:
                at = int(differs.argmax())
                raise ValueError(
                    f"`labels` has {labels[at]} at token {at}, where `input_ids` has {ids[at]}. The model learns to "
                    "restore the tokens of the row, so write the same id, or -100 where nothing is trained; or write "
                    "`edit_ratio=0` to teach `LLaDASFTTrainer`'s model to correct wrong ones"
                )
            self.check(labels[visible & (labels != -100)].tolist())
        labels = np.where(trained, labels, -100)
        return self.check(ids[visible].tolist()), labels[visible].tolist()

    def check(self, ids: list[int]) -> list[int]:
        """
        The ids themselves.

        Raises:
            ValueError: If one is the mask token, or none of the vocabulary.
        """
        values = np.asarray(ids, dtype=np.int64)
        wrong = (values < 0) | (values >= self.vocab_size)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"token {at} has the id {ids[at]}, and the vocabulary has the ids 0 to {self.vocab_size - 1}. "
                "Tokenise with the tokenizer of the model"
            )
        if self.mask_token_id in ids:
            raise ValueError(
                f"token {ids.index(self.mask_token_id)} is the mask token (id {self.mask_token_id}), which would be "
                "learnt as a word. Take it out of the text; the trainer masks"
            )
        return ids


def refuse_unread_masks(columns: Iterable[str], name: str) -> None:
    """
    Complains about columns of a tokenised dataset that seem to say what is trained, and are not read.

    Raises:
        ValueError: If there is one.
    """
    for column, read in _UNREAD_MASKS.items():
        if column in columns:
            raise ValueError(
                f"The {name} dataset has the column `{column}`, which is not read, so that prompts would be trained. "
                f"Write `dataset.rename_column('{column}', '{read}')` if it is one, `labels` with -100 where nothing "
                f"is trained, or `dataset.remove_columns('{column}')`."
            )


def _read_integers(row: dict[str, Any], column: str) -> np.ndarray:
    values = np.asarray(row.get(column))
    if values.size == 0 and values.ndim == 1:
        return values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise ValueError(f"`{column}` is {_shown(row.get(column))}. Write a flat list of integers")
    return values.astype(np.int64)


def _read_length(value: Any, num_tokens: int) -> int:
    values = np.asarray(value)
    if values.size != 1 or values.dtype.kind not in "iu" or not 0 <= values.item() <= num_tokens:
        raise ValueError(
            f"`prompt_lengths` is {_shown(value)} in a row of {num_tokens} tokens. Write the number of tokens before "
            "the answer"
        )
    return values.item()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


__all__ = [
    "ROLES",
    "TokenChecks",
    "first_row",
    "read_messages",
    "read_text",
    "refuse_unknown_columns",
    "refuse_unread_masks",
]
