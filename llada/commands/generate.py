"""Continue a text, or answer a question."""

import argparse

from .sampling import add_sampling_arguments, chat_inputs, load, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("prompt", help="the text")
    parser.add_argument("--chat", action="store_true", help="put the text into the chat template, as a question")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    if args.chat:
        inputs = chat_inputs(tokenizer, [{"role": "user", "content": args.prompt}])
    else:
        inputs = tokenizer(args.prompt, return_tensors="pt")
    sequences = model.generate(**inputs.to(model.device), **settings)
    show(sequences[0, inputs["input_ids"].shape[1] :], tokenizer, settings)


__all__ = ["add_parser", "run"]
