"""Continue a text, or answer a question."""

import argparse

from .sampling import add_sampling_arguments, chat_inputs, load, read_text, sample, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("prompt", help="the text, - for standard input")
    parser.add_argument("--chat", action="store_true", help="put the text into the chat template, as a question")


def run(args: argparse.Namespace) -> None:
    prompt = read_text(args.prompt)
    model, tokenizer, settings = load(args)
    if args.chat:
        inputs = chat_inputs(tokenizer, [{"role": "user", "content": prompt}])
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    output = sample(model.generate, inputs, tokenizer, settings, args)
    show(output.sequences[:, inputs["input_ids"].shape[1] :], tokenizer, settings)


__all__ = ["add_parser", "run"]
