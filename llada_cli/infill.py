"""Fill the gaps of a text, each ___ with one token or ___4 with four."""

import argparse
import re
from typing import TYPE_CHECKING

from .sampling import add_sampling_arguments, load, read_text, sample, show


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    parser.add_argument("text", help='the text, e.g. "___2 is the capital of France.", - for standard input')
    parser.add_argument("--unfinished", action="store_true", help="do not put an end of text after the text")


def run(args: argparse.Namespace) -> None:
    text = read_text(args.text)
    model, tokenizer, settings = load(args)
    masked = mask_gaps(text, model, tokenizer, args.unfinished)
    if "streamer" in settings:
        # the text before the first gap belongs to the picture
        settings["streamer"].skip_prompt = False
    output = sample(model.infill, tokenizer(masked, return_tensors="pt"), tokenizer, settings, args)
    show(output.sequences, tokenizer, settings)


def mask_gaps(
    text: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", unfinished: bool = False
) -> str:
    """
    A text with masks where it has gaps, as it goes into the tokenizer.

    Args:
        text (`str`): The text, with `___` for one token, `___4` for four.
        model ([`~transformers.PreTrainedModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        unfinished (`bool`, *optional*, defaults to `False`): Whether to leave out the end of text after it.

    Returns:
        `str`: The text.

    Raises:
        ValueError: If there is no gap, or they are longer than the longest text.
    """
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
    if not unfinished:
        # what was trained on ends so: without it, the model takes the text for the beginning of a longer one
        masked += tokenizer.eos_token or ""
    return masked


__all__ = ["add_parser", "mask_gaps", "run"]
