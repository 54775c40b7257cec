"""Talk to a model, turn by turn. An empty line ends the conversation."""

import argparse

from .sampling import add_sampling_arguments, load


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        sequences = model.generate(**inputs.to(model.device), **settings)
        answer = tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if args.no_stream:
            print(answer)
        messages.append({"role": "assistant", "content": answer})


__all__ = ["add_parser", "run"]
