"""Talk to a model, turn by turn. `/new` starts over, an empty line ends."""

import argparse
import sys

from .sampling import add_sampling_arguments, chat_inputs, load, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    messages: list[dict[str, str]] = []
    while question := _read():
        if question == "/new":
            messages = []
            continue
        asked = [*messages, {"role": "user", "content": question}]
        inputs = chat_inputs(tokenizer, asked)
        try:
            sequences = model.generate(**inputs.to(model.device), **settings)
        except ValueError as error:
            # most likely the conversation got too long
            print(f"llada chat: {error} `/new` starts over.", file=sys.stderr)
            continue
        answer = show(sequences[0, inputs["input_ids"].shape[1] :], tokenizer, settings)
        messages = [*asked, {"role": "assistant", "content": answer}]


def _read() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


__all__ = ["add_parser", "run"]
