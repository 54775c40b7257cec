"""Continue a text, or answer a question."""

import argparse

from .sampling import add_sampling_arguments, load


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("prompt", help="the text")
    parser.add_argument("--chat", action="store_true", help="put the text into the chat template, as a question")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    if args.chat:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": args.prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        inputs = tokenizer(args.prompt, return_tensors="pt")
    sequences = model.generate(**inputs.to(model.device), **settings)
    if args.no_stream:
        print(tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


__all__ = ["add_parser", "run"]
