"""Answers to a file of prompts: batched by length, on every device, and going on after an interruption."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import explain
from .infill import mask_gaps
from .sampling import chat_inputs, load


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# what a row is asked by
_ASKED = ("prompt", "messages", "text")


def write_answers(args: argparse.Namespace) -> None:
    """
    Answers the rows of `--input`, and writes `--output` when it has been through all of them. Until then, answers are
    added to files beside it, one for each process, from which the same command goes on. A row that cannot be answered
    gets an `error`, and is tried again by the same command.

    Args:
        args (`argparse.Namespace`): The arguments of `llada generate`.

    Raises:
        ValueError: If there is nothing to read or nowhere to write, or what is left there is of another command.
    """
    rows = _read(args.input)
    if not args.output.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {args.output.absolute().parent} to write {args.output.name} to.")
    args.no_stream = True
    model, tokenizer, settings = load(args)

    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    model.to(state.device)
    about = {"input": str(args.input.resolve()), "rows": len(rows), **_settings_of(args)}
    parts = _Parts(args.output, about)
    answered = {index for index, answer in parts.read().items() if "error" not in answer}
    asked, failed = [], {}
    for index in sorted(set(range(len(rows))) - answered):
        try:
            asked.append((index, *_ask(rows[index], model, tokenizer, args)))
        except Exception as error:
            failed[index] = {"error": explain(error)}
    state.wait_for_everyone()
    with (
        parts.open(state.process_index) as file,
        tqdm(total=len(asked), desc="answering", unit="row", disable=None if state.is_main_process else True) as bar,
    ):
        if state.is_main_process:
            for index, answer in failed.items():
                parts.add(file, index, answer)
        try:
            for batch in _batches(asked, args.batch_size)[state.process_index :: state.num_processes]:
                for index, answer in _answer(batch, model, tokenizer, settings, args):
                    parts.add(file, index, answer)
                bar.update(len(batch) * state.num_processes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Interrupted. The same command goes on where it was.") from None
    state.wait_for_everyone()
    if state.is_main_process:
        found = parts.read()
        errors = [answer["error"] for answer in found.values() if "error" in answer]
        if len(errors) == len(rows):
            parts.delete()
            raise ValueError(f"No row could be answered. The first: {errors[0]}")
        parts.finish([{**_as_row(row), **found[index]} for index, row in enumerate(rows)])
        print(f"{len(rows) - len(errors)} of {len(rows)} rows are answered, in {args.output}.")


class _Parts:
    """
    What is answered so far, a file for each process. The first line says of what.

    Args:
        output (`Path`): The file that is to be written in the end.
        about (`dict`): What answers depend on.
    """

    def __init__(self, output: Path, about: dict[str, Any]):
        self.output, self.about = output, about

    def _files(self) -> list[Path]:
        return sorted(self.output.absolute().parent.glob(f"{self.output.name}.part*"))

    def open(self, process: int) -> Any:
        path = self.output.with_name(f"{self.output.name}.part{process}")
        is_new = not path.exists()
        # a line at a time: what is there is whole but for the last
        file = path.open("a", encoding="utf-8", buffering=1)
        file.write(json.dumps(self.about) + "\n" if is_new else "\n")
        return file

    def add(self, file: Any, index: int, answer: dict[str, Any]) -> None:
        file.write(json.dumps({"index": index, **answer}, ensure_ascii=False) + "\n")

    def read(self) -> dict[int, dict[str, Any]]:
        """
        The answers by row.

        Raises:
            ValueError: If they are of another command.
        """
        found: dict[int, dict[str, Any]] = {}
        for path in self._files():
            # other line breaks may stand inside a text
            first, *lines = path.read_text(encoding="utf-8").split("\n")
            if (before := _read_object(first)) != self.about:
                changed = [name for name in self.about if before.get(name) != self.about[name]]
                raise ValueError(
                    f"{path.name} holds answers of another command, which differs in {', '.join(changed)}. Repeat "
                    "that one, or delete the file."
                )
            for line in lines:
                # nothing is left of a line that was written when the process was killed
                answer = _read_object(line)
                if answer and ("error" not in answer or answer["index"] not in found):
                    found[answer.pop("index")] = answer
        return found

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """Writes the output, all of it or nothing, and deletes the parts."""
        unfinished = self.output.with_name(f"{self.output.name}.tmp")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.output)
        self.delete()

    def delete(self) -> None:
        for path in self._files():
            path.unlink()


def _read_object(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


def _read(path: Path) -> list[Any]:
    """The rows, and the text of a line that is no JSON."""
    if not path.is_file():
        raise ValueError(f"There is no file {path} to read.")
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                rows.append(line)
    if not rows:
        raise ValueError(f'{path} has no rows; write one {{"prompt": "..."}} in a line.')
    return rows


def _as_row(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else {"line": row}


def _settings_of(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "preset", "max_new_tokens", "block_length", "steps", "threshold", "temperature", "set", "seed")
    return {name: getattr(args, name) for name in (*names, "chat")}


def _ask(
    row: Any, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", args: argparse.Namespace
) -> tuple[str, list[int]]:
    """How a row is answered, `generate` or `infill`, and its tokens."""
    if not isinstance(row, dict):
        raise ValueError('This line is no JSON object; write {"prompt": "..."}.')
    given = [name for name in _ASKED if name in row]
    if len(given) != 1:
        raise ValueError(
            f"A row has one of `prompt`, `messages` and `text` (with gaps, ___), and this one has {given or 'none'}."
        )
    asked = row[given[0]]
    if given == ["messages"]:
        return "generate", chat_inputs(tokenizer, asked)["input_ids"][0].tolist()
    if not isinstance(asked, str):
        raise ValueError(f"`{given[0]}` is a {type(asked).__name__}; write a text.")
    if given == ["text"]:
        return "infill", tokenizer(mask_gaps(asked, model, tokenizer))["input_ids"]
    if args.chat:
        return "generate", chat_inputs(tokenizer, [{"role": "user", "content": asked}])["input_ids"][0].tolist()
    return "generate", tokenizer(asked)["input_ids"]


def _batches(asked: list[tuple[int, str, list[int]]], size: int) -> list[list[tuple[int, str, list[int]]]]:
    """Rows of about the same length together, the longest first: what does not fit into memory is seen at once."""
    batches = []
    for method in ("generate", "infill"):
        rows = sorted((row for row in asked if row[1] == method), key=lambda row: len(row[2]), reverse=True)
        batches += [rows[first : first + size] for first in range(0, len(rows), size)]
    return batches


def _answer(
    batch: list[tuple[int, str, list[int]]],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The answers of a batch. If it fails, each row is tried alone, and says what is wrong with it."""
    import torch

    from llada.modeling_llada.masked_diffusion import noise_generator

    method = batch[0][1]
    try:
        inputs = tokenizer.pad({"input_ids": [ids for *_, ids in batch]}, padding_side="left", return_tensors="pt")
        # of the row, whatever stands beside it
        generators = [noise_generator(args.seed or 0, "answer", index) for index, *_ in batch]
        sequences = getattr(model, method)(**inputs.to(model.device), **settings, generator=generators)
    except Exception as error:
        if len(batch) == 1:
            yield batch[0][0], {"error": explain(error)}
            return
        for row in batch:
            yield from _answer([row], model, tokenizer, settings, args)
        return
    start = 0 if method == "infill" else inputs["input_ids"].shape[1]
    special = torch.tensor(tokenizer.all_special_ids)
    for (index, *_), row in zip(batch, sequences[:, start:].cpu(), strict=True):
        answer = tokenizer.decode(row, skip_special_tokens=True).strip()
        yield index, {"answer": answer, "num_tokens": int((~torch.isin(row, special)).sum())}


__all__ = ["write_answers"]
