"""What a teacher generated, and in which order: the data of distillation."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..generation.listeners.trace import Trace
from .data.data_checks import TokenChecks, first_row, read_messages, read_text, refuse_unknown_columns
from .diffusion_trainer import find_mask_token_id


logger = logging.get_logger(__name__)

TRACE_COLUMNS = ("input_ids", "labels", "step_of", "vocabulary")


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short text that is the same for tokenizers with the same tokens and ids, and for no others."""
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(tokens.encode(), digest_size=8).hexdigest()


def read_trace(trace: Trace) -> tuple[list[int], list[int], list[int]]:
    """
    The whole canvas of a trace, what follows the end of the text included.

    Args:
        trace ([`Trace`]):
            How a row came about.

    Returns:
        `tuple` of three `list[int]`, a value for every token: the tokens; the tokens that were generated, -100 for
        given ones; and the step in which each got its last value, -1 for given ones. What follows the end was written
        in the step that ended the text, if it was masked until then.

    Raises:
        ValueError: If tokens were inserted.
    """
    if any(event.inserted for event in trace.events):
        raise ValueError(
            "The teacher's rule inserts tokens, which moves those behind them. Write settings without it."
        )
    frames = list(trace.frames())
    canvas, steps = frames[-1], [-1] * len(trace.start)
    for event, before, after in zip(trace.events, frames, frames[1:], strict=False):
        steps = [event.step if old != new else step for step, old, new in zip(steps, before, after, strict=True)]
    labels = [-100 if step < 0 else token for token, step in zip(canvas, steps, strict=True)]
    return canvas, labels, steps


def collect_trajectories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    path: str | os.PathLike | None = None,
    batch_size: int = 8,
    **generation_kwargs,
) -> Dataset:
    """
    Lets a teacher answer prompts, and keeps what it wrote in which step, for [`LLaDADistillTrainer`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The teacher.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts: `prompt` as text or messages, or `input_ids`. Other columns are not read.
        path (`str` or `os.PathLike`, *optional*):
            A .jsonl file that every batch is added to. What is in it already is not generated again, so that a run
            that was interrupted goes on where it ended.
        batch_size (`int`, *optional*, defaults to 8):
            Prompts that are answered at once.
        generation_kwargs (*optional*):
            Arguments of `generate`. A teacher that writes one token in a step, as without a threshold and with
            `max_denoising_steps` of the block length, has the finest trajectory, and makes the fewest mistakes.

    Returns:
        [`~datasets.Dataset`] with the prompt and the answer as `input_ids`, filled with end-of-text tokens to the
        length that was generated; `labels`, -100 on the prompt; `step_of`, the step in which the teacher wrote each
        token, -1 on the prompt; and `vocabulary`, which tells the tokenizer.

    Raises:
        ValueError: If a prompt cannot be read, or the file holds answers to other prompts, of another tokenizer or
            with other settings.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from llada.trainers import collect_trajectories

    >>> prompts = Dataset.from_dict({"prompt": ["Who is Ada Moss?\n", "Who is Foxholt's shy baker?\n"]})
    >>> traces = collect_trajectories(model, tokenizer, prompts, "traces.jsonl", max_new_tokens=32, steps=32)
    ```
    """
    for name in ("num_return_sequences", "streamer", "return_dict_in_generate", "output_trace"):
        if name in generation_kwargs:
            raise ValueError(f"`{name}` is not supported: every prompt gets one answer, with its trace. Leave it out.")
    if batch_size < 1:
        raise ValueError(f"`batch_size={batch_size}` answers no prompt; write at least 1.")
    vocabulary = vocabulary_of(tokenizer)
    prompts = list(_read_prompts(dataset, tokenizer, TokenChecks(len(tokenizer), find_mask_token_id(model.config))))
    path = None if path is None else Path(path)
    rows = [] if path is None or not path.exists() else _read_rows(path)
    _check_rows(rows, prompts, vocabulary, path)
    if rows:
        logger.warning(f"{len(rows)} of {len(prompts)} answers are in {path} already.")
    training = model.training
    model.eval()
    for start in range(len(rows), len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt").to(model.device)
        output = model.generate(**inputs, **generation_kwargs, return_dict_in_generate=True, output_trace=True)
        new = []
        for trace in output.trace:
            ids, labels, steps = read_trace(trace)
            settings = json.dumps(trace.settings, sort_keys=True)
            new.append(
                {"input_ids": ids, "labels": labels, "step_of": steps, "vocabulary": vocabulary, "settings": settings}
            )
        if rows and new[0]["settings"] != rows[0]["settings"]:
            raise ValueError(
                f"{path} holds answers that were generated with {rows[0]['settings']}, and now it is "
                f"{new[0]['settings']}. Write the same settings, or another `path`."
            )
        rows += new
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
    model.train(training)
    return Dataset.from_list(rows)


def _read_prompts(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, checks: TokenChecks
) -> Iterator[list[int]]:
    row = first_row(dataset, "prompt")
    if "input_ids" not in row and "prompt" not in row:
        refuse_unknown_columns(row, "prompt", "`prompt`, as text or messages, or `input_ids`")
    for number, row in enumerate(dataset):
        try:
            if "input_ids" in row:
                ids = list(row["input_ids"])
            elif isinstance(row["prompt"], list):
                messages = read_messages(row, "prompt", tokenizer.chat_template)
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            else:
                ids = tokenizer(text=read_text(row, "prompt"))["input_ids"]
            yield checks.check(ids)
        except ValueError as error:
            raise ValueError(f"Row {number} of the prompt dataset: {error}.") from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file. The last line is cut off if a run was interrupted while it wrote it."""
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        path.write_bytes(complete)
    rows = [json.loads(line) for line in complete.splitlines()]
    for row in rows:
        if not {*TRACE_COLUMNS, "settings"} <= {*row}:
            raise ValueError(
                f"{path} has rows with {sorted(row)}, so it holds no traces. Write the `path` of another file, which "
                "need not exist."
            )
    return rows


def _check_rows(rows: list[dict[str, Any]], prompts: list[list[int]], vocabulary: str, path: Path | None) -> None:
    """Refuses to go on with a file of something else."""
    if len(rows) > len(prompts):
        raise ValueError(f"{path} holds {len(rows)} answers to {len(prompts)} prompts. Write another `path`.")
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=False)):
        if row["vocabulary"] != vocabulary or row["input_ids"][: len(prompt)] != prompt:
            raise ValueError(
                f"Row {number} of {path} answers another prompt, or is of another tokenizer. Write another `path`, or "
                "the prompts in the order that they had."
            )


class TraceChecks:
    """
    Checks rows of [`collect_trajectories`], to be mapped over a dataset.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of the student.
        name (`str`):
            Of the dataset, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str):
        self.vocabulary = vocabulary_of(tokenizer)
        self.name = name

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        if row["vocabulary"] != self.vocabulary:
            raise ValueError(
                f"Row {index} of the {self.name} dataset is of a teacher with another tokenizer, whose ids mean other "
                "tokens. Write `block_masks='random'` and the answers as text, or a teacher with the same tokenizer."
            )
        lengths = [len(row[column]) for column in ("input_ids", "labels", "step_of")]
        if len({*lengths}) > 1:
            raise ValueError(
                f"Row {index} of the {self.name} dataset has {lengths[0]} `input_ids`, {lengths[1]} `labels` and "
                f"{lengths[2]} values of `step_of`. Write one for every token."
            )
        if any(step < 0 <= label for step, label in zip(row["step_of"], row["labels"], strict=True)):
            raise ValueError(
                f"Row {index} of the {self.name} dataset trains tokens that the teacher was given: `step_of` is "
                "negative where `labels` are not. Write -100 there."
            )
        return {}


__all__ = ["TRACE_COLUMNS", "TraceChecks", "collect_trajectories", "read_trace", "vocabulary_of"]
