"""Fill the gaps of a text, each ___ with one token or ___4 with four."""

import argparse
import re

from .sampling import add_sampling_arguments, load, read_text, sample, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("text", help='the text, e.g. "___2 is the capital of France.", - for standard input')
    parser.add_argument("--unfinished", action="store_true", help="do not put an end of text after the text")


def run(args: argparse.Namespace) -> None:
    text = read_text(args.text)
    model, tokenizer, settings = load(args)
    mask = tokenizer.convert_ids_to_tokens(model.config.mask_token_id)
    # most tokenizers count the space before a word to the word
    gap = re.compile(r" ?_{3,}(\d*)")
    lengths = [int(digits or 1) for digits in gap.findall(text)]
    if not lengths:
        raise ValueError(f"{text!r} has no gap; write ___ where a token is wanted, ___4 for four.")
    if sum(lengths) > model.config.longest_text:
        raise ValueError(
            f"The gaps take {sum(lengths)} tokens, more than the {model.config.longest_text} the model was "
            "trained for; ___4 is a gap of four."
        )
    masked = gap.sub(lambda found: mask * int(found[1] or 1), text)
    if not args.unfinished:
        # what was trained on ends so: without it, the model takes the text for the beginning of a longer one
        masked += tokenizer.eos_token or ""
    if "streamer" in settings:
        # the text before the first gap belongs to the picture
        settings["streamer"].skip_prompt = False
    sequences = sample(model.infill, tokenizer(masked, return_tensors="pt"), settings, args)
    show(sequences, tokenizer, settings)


__all__ = ["add_parser", "run"]
