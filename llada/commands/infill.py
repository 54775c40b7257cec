"""Fill the gaps of a text, each ___ with one token or ___4 with four."""

import argparse
import re

from .sampling import add_sampling_arguments, load, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("text", help='the text, e.g. "___2 is the capital of France."')
    parser.add_argument("--unfinished", action="store_true", help="do not put an end of text after the text")


def run(args: argparse.Namespace) -> None:
    model, tokenizer, settings = load(args)
    mask = tokenizer.convert_ids_to_tokens(model.config.mask_token_id)
    # most tokenizers count the space before a word to the word
    masked, num_gaps = re.subn(r" ?_{3,}(\d*)", lambda gap: mask * int(gap[1] or 1), args.text)
    if not num_gaps:
        raise ValueError(f"{args.text!r} has no gap; write ___ where a token is wanted, ___4 for four.")
    if not args.unfinished:
        masked += tokenizer.eos_token or ""
    if "streamer" in settings:
        # the text before the first gap belongs to the picture
        settings["streamer"].skip_prompt = False
    inputs = tokenizer(masked, return_tensors="pt")
    sequences = model.infill(**inputs.to(model.device), **settings)
    show(sequences[0], tokenizer, settings)


__all__ = ["add_parser", "run"]
