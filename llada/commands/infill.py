"""Fill the gaps of a text, each ___ with one token or ___N with N tokens."""

import argparse
import re

from .sampling import add_sampling_arguments, load


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("text", help='the text, e.g. "___2 is the capital of France."')


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    if tokenizer.mask_token is None:
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(model.config.mask_token_id)
    masked, num_gaps = re.subn(r"_{3,}(\d*)", lambda gap: tokenizer.mask_token * int(gap[1] or 1), args.text)
    if not num_gaps:
        raise ValueError(f"{args.text!r} has no gap; write ___ where a token is wanted, ___4 for four.")
    inputs = tokenizer(masked, return_tensors="pt")
    if "streamer" in settings:
        # the text before the first gap belongs to the picture
        settings["streamer"].skip_prompt = False
    sequences = model.infill(**inputs.to(model.device), **settings)
    if args.no_stream:
        print(tokenizer.decode(sequences[0], skip_special_tokens=True))


__all__ = ["add_parser", "run"]
