"""Rows of a fine-tuning dataset of any type, made to tokens and labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl.data_utils import common_prefix_length

from ..sft_config import LLaDASFTConfig
from .answer_spans import ChatRenderer
from .data_checks import (
    TokenChecks,
    first_row,
    read_messages,
    read_text,
    refuse_unknown_columns,
    refuse_unread_masks,
)


logger = logging.get_logger(__name__)

# columns of tokenised rows that labels are made of
MASK_COLUMNS = ("attention_mask", "assistant_masks", "completion_mask", "prompt_lengths")
_STATE = "row_state"
_USABLE, _EMPTY_ANSWER, _UNTRAINED = range(3)


@dataclass
class RowTokenizer:
    """
    Makes `input_ids` and `labels` of a row, the latter -100 where nothing is trained.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        checks ([`TokenChecks`]):
            What tokens may be.
        columns (`tuple` of `str`):
            The columns that are read: `input_ids`, `prompt` and `completion`, one of messages, or one of text.
        name (`str`):
            Of the dataset, for messages.
        max_length (`int`, *optional*):
            What rows are cut to afterwards.
        assistant_only_loss, completion_only_loss (`bool`, *optional*):
            As in [`LLaDASFTConfig`].
        renderer ([`ChatRenderer`], *optional*):
            Required for conversations.
    """

    tokenizer: PreTrainedTokenizerBase
    checks: TokenChecks
    columns: tuple[str, ...]
    name: str
    max_length: int | None
    assistant_only_loss: bool | None
    completion_only_loss: bool | None
    renderer: ChatRenderer | None

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            ids, labels, is_empty = self._read(row)
        except ValueError as error:
            raise ValueError(f"Row {index} of the {self.name} dataset: {error}.") from error
        state = _EMPTY_ANSWER if is_empty else _USABLE
        if all(label == -100 for label in labels[: self.max_length]):
            state = _UNTRAINED
        return {"input_ids": ids, "labels": labels, _STATE: state}

    def _read(self, row: dict[str, Any]) -> tuple[list[int], list[int], bool]:
        """Tokens, their labels, and whether an answer is empty."""
        if self.columns == ("input_ids",):
            ids, labels = self.checks.read(row, use_completion_mask=self.completion_only_loss is not False)
            return ids, labels, False
        if self.columns == ("prompt", "completion"):
            ids, trained, is_empty = self._read_pair(row)
        elif self.renderer is not None:
            ids, trained, is_empty = self._read_conversation(row)
        else:
            text = read_text(row, *self.columns)
            ids = self.tokenizer(text=self._ended(text))["input_ids"]
            trained, is_empty = [True] * len(ids), not text.strip()
        labels = [token if is_trained else -100 for token, is_trained in zip(ids, trained, strict=True)]
        return self.checks.check(ids), labels, is_empty

    def _read_pair(self, row: dict[str, Any]) -> tuple[list[int], list[bool], bool]:
        if self.renderer is not None:
            template = self.tokenizer.chat_template
            messages = [read_messages(row, column, template) for column in self.columns]
            variables = _template_variables(row)
            prompt = self.renderer.prompt(messages[0], **variables)
            if self.assistant_only_loss:
                ids, trained = self.renderer.encode(messages[0] + messages[1], **variables)
            else:
                text = self.renderer.conversation(messages[0] + messages[1], **variables)
                ids = self.tokenizer(text=text, add_special_tokens=False)["input_ids"]
                trained = [True] * len(ids)
            prompt_ids = self.tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
            is_empty = _has_empty_answer(messages[1])
        else:
            prompt, completion = (read_text(row, column) for column in self.columns)
            prompt_ids = self.tokenizer(text=prompt)["input_ids"]
            ids = self.tokenizer(text=prompt + self._ended(completion))["input_ids"]
            trained, is_empty = [True] * len(ids), not completion.strip()
        start = common_prefix_length(prompt_ids, ids)
        if start < len(prompt_ids):
            logger.warning_once(
                f"The tokens of a prompt end with {self.tokenizer.decode(prompt_ids[start:])!r}, and those of prompt "
                "and completion go on differently. The completion is trained from where they part, and other tokens "
                "are given when the model generates. End prompts where a token ends."
            )
        if self.completion_only_loss is not False:
            trained[:start] = [False] * start
        return ids, trained, is_empty

    def _read_conversation(self, row: dict[str, Any]) -> tuple[list[int], list[bool], bool]:
        assert self.renderer is not None, "set for columns of messages"
        messages = read_messages(row, self.columns[0], self.tokenizer.chat_template)
        variables = _template_variables(row)
        if self.assistant_only_loss is not False:
            ids, trained = self.renderer.encode(messages, **variables)
        else:
            text = self.renderer.conversation(messages, **variables)
            ids = self.tokenizer(text=text, add_special_tokens=False)["input_ids"]
            trained = [True] * len(ids)
        return ids, trained, _has_empty_answer(messages)

    def _ended(self, text: str) -> str:
        eos_token = self.tokenizer.eos_token
        return text if text.endswith(eos_token) else text + eos_token


def tokenize_rows(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    checks: TokenChecks,
    args: LLaDASFTConfig,
    assistant_only_loss: bool | None,
    name: str,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> Dataset | IterableDataset:
    """
    Makes `input_ids` and `labels` of every row. Rows that have nothing to train on are left out, and counted.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows of any type that [`LLaDASFTTrainer`] knows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        checks ([`TokenChecks`]):
            What tokens may be.
        args ([`LLaDASFTConfig`]):
            The length that rows are cut to afterwards, and whether only completions are trained.
        assistant_only_loss (`bool`, *optional*):
            Whether only answers are trained. If not given: yes for `messages`.
        name (`str`):
            Of the dataset, for messages.
        formatting_func (`Callable`, *optional*):
            Makes the text of a row. Not used for rows that are tokenised.

    Returns:
        The type of `dataset`.

    Raises:
        ValueError: If the dataset is empty, has columns that are not known, or a row that cannot be read.
    """
    row = first_row(dataset, name)
    if formatting_func is not None and "input_ids" not in row:
        text_field = args.dataset_text_field
        dataset = dataset.map(lambda row: {text_field: formatting_func(row)}, remove_columns=list(row))
        row = first_row(dataset, name)
    columns = _find_columns(row, args.dataset_text_field, name)
    is_conversation = columns[0] in ("messages", "conversations") or (
        columns[0] == "prompt" and isinstance(row["prompt"], list)
    )
    _refuse_unmarked_answers(row, columns, is_conversation, assistant_only_loss, args.completion_only_loss, name)
    rows = RowTokenizer(
        tokenizer,
        checks,
        columns,
        name,
        args.max_length,
        assistant_only_loss,
        args.completion_only_loss,
        ChatRenderer(tokenizer) if is_conversation else None,
    )
    consumed = [column for column in MASK_COLUMNS if column in row and columns == ("input_ids",)]
    within = "" if args.max_length is None else f" within `max_length={args.max_length}`"
    if isinstance(dataset, IterableDataset):
        return _finish_stream(dataset.map(rows, with_indices=True, remove_columns=consumed), name, within)
    dataset = dataset.map(
        rows,
        with_indices=True,
        remove_columns=consumed,
        num_proc=args.dataset_num_proc,
        desc=f"Tokenising {name} dataset",
    )
    states = np.asarray(dataset[_STATE][:])
    dataset = dataset.remove_columns(_STATE)
    num_empty, num_untrained = ((states == state).sum() for state in (_EMPTY_ANSWER, _UNTRAINED))
    if num_empty:
        logger.warning(
            f"{num_empty} of {len(states)} rows of the {name} dataset have an empty answer, and teach to say nothing."
        )
    if num_untrained == len(states):
        raise ValueError(_describe_untrained("All", name, within))
    if num_untrained:
        logger.warning(_describe_untrained(f"{num_untrained} of {len(states)}", name, within))
        dataset = dataset.select(np.flatnonzero(states != _UNTRAINED))
    return dataset


def _finish_stream(dataset: IterableDataset, name: str, within: str) -> IterableDataset:
    """Leaves rows out of a stream, whose rows nobody has counted."""

    def keep(state: int) -> bool:
        if state == _EMPTY_ANSWER:
            logger.warning_once(f"Rows of the {name} dataset have an empty answer, and teach to say nothing.")
        elif state == _UNTRAINED:
            logger.warning_once(_describe_untrained("Some", name, within))
        return state != _UNTRAINED

    dataset = dataset.filter(keep, input_columns=_STATE).remove_columns(_STATE)
    if next(iter(dataset), None) is None:
        raise ValueError(_describe_untrained("All", name, within))
    return dataset


def _describe_untrained(amount: str, name: str, within: str) -> str:
    advice = " Raise `max_length` if their prompts fill it." if within else ""
    return f"{amount} rows of the {name} dataset have nothing to train on{within} and are left out.{advice}"


def _find_columns(row: dict[str, Any], text_field: str, name: str) -> tuple[str, ...]:
    """The columns that are read, the most specific type first."""
    if "input_ids" in row:
        refuse_unread_masks(row, name)
    for columns in (("input_ids",), ("prompt", "completion"), ("messages",), ("conversations",), (text_field,)):
        if all(column in row for column in columns):
            return columns
    refuse_unknown_columns(
        row,
        name,
        f"`prompt` and `completion`, `messages`, `input_ids` with `labels`, or text in `{text_field}` (set "
        "`dataset_text_field`)",
    )
    raise AssertionError("refused above")


def _refuse_unmarked_answers(
    row: dict[str, Any],
    columns: tuple[str, ...],
    is_conversation: bool,
    assistant_only_loss: bool | None,
    completion_only_loss: bool | None,
    name: str,
) -> None:
    """What is asked for must be known of the rows, or all of them would be trained."""
    is_tokenised = columns == ("input_ids",)
    tells = is_tokenised and any(column in row for column in ("labels", *MASK_COLUMNS[1:]))
    if assistant_only_loss and not is_conversation and not tells:
        raise ValueError(
            f"`assistant_only_loss=True`, but the {name} dataset is not conversational. Write `messages`, or leave "
            "`assistant_only_loss` out: of `prompt` and `completion` the completion is trained."
        )
    if completion_only_loss and columns[0] not in ("prompt", "messages", "conversations") and not tells:
        raise ValueError(
            f"`completion_only_loss=True`, but the {name} dataset does not say what a completion is. Write `prompt` "
            "and `completion`, or `completion_mask` beside `input_ids`, or leave `completion_only_loss` out."
        )


def _template_variables(row: dict[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {**({"tools": tools} if tools else {}), **(row.get("chat_template_kwargs") or {})}


def _has_empty_answer(messages: list[dict[str, Any]]) -> bool:
    return any(
        message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls")
        for message in messages
    )


__all__ = ["MASK_COLUMNS", "RowTokenizer", "tokenize_rows"]
