"""
A task for rewards and preferences: four digits, which a model has seen answered in three ways, reversed, sorted and
copied, each as often. Which one is wanted, only a reward or a preference tells.
"""

import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from .word_tokenizer import build_word_tokenizer


NUM_DIGITS = 4
MAX_LENGTH = 32

# way to answer -> the answer
ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "reversed": lambda digits: digits[::-1],
    "sorted": sorted,
    "copied": list,
}


def build_digit_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the task: one token per digit, see [`~llada.evaluation.word_tokenizer`]."""
    return build_word_tokenizer([*"0123456789", "="], MAX_LENGTH)


def draw_digits(number: int, seed: int = 0) -> list[dict[str, str]]:
    """
    Draws questions, no two of whose answers are the same.

    Args:
        number (`int`):
            How many.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `list[dict[str, str]]`: The `prompt`, and the answer in every one of `ORDERS`.
    """
    chance = random.Random(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < number:
        digits = chance.sample("0123456789", NUM_DIGITS)
        answers = {name: " ".join(order(digits)) for name, order in ORDERS.items()}
        if len(set(answers.values())) == len(ORDERS):
            rows.append({"prompt": f"{' '.join(digits)} =", **answers})
    return rows


__all__ = ["NUM_DIGITS", "ORDERS", "build_digit_tokenizer", "draw_digits"]
