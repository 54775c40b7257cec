"""Asking any model in both directions: what comes after this line, and what before it?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .couplets import Couplet
from .reversal_facts import Fact


DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class Asked:
    """
    A question and what became of it.

    Args:
        model (`str`): Who was asked.
        direction (`str`): `"forward"` or `"reverse"`.
        number (`int`): Of the fact or couplet.
        question, right, written (`str`): The question, its answer, and that of the model.
    """

    model: str
    direction: str
    number: int
    question: str
    right: str
    written: str

    @property
    def is_right(self) -> bool:
        """`bool`: Whether the answer is in what was written, as the authors count it."""
        return self.right in self.written


@torch.no_grad()
def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact | Couplet],
    name: str,
    direction: str,
    numbers: Iterable[int] | None = None,
    max_new_tokens: int = 28,
    suppress_eos: bool = False,
    batch_size: int = 8,
) -> Iterator[list[Asked]]:
    """
    Asks about facts or couplets in one direction, greedily. A masked diffusion model writes one token per step in one
    block, as in arXiv 2502.09992, §3.3; a block-causal one as its checkpoint says; a causal model from left to right.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model of this package, or a causal one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. If it has a chat template, questions are those of a user.
        facts (`list[Fact]` or `list[Couplet]`):
            What to ask about.
        name (`str`):
            What to call the model.
        direction (`str`):
            `"forward"` or `"reverse"`.
        numbers (iterable of `int`, *optional*):
            Which of them, all if not given.
        max_new_tokens (`int`, *optional*, defaults to 28):
            Length of the answer.
        suppress_eos (`bool`, *optional*, defaults to `False`):
            Whether a diffusion model proposes no end of text, as in the published evaluation of couplets.
        batch_size (`int`, *optional*, defaults to 8):
            Questions at once.

    Yields:
        `list[Asked]`: One batch after the other.
    """
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if hasattr(model, "infill") and not getattr(model.config, "block_causal", False):
        settings |= {"block_length": max_new_tokens, "max_denoising_steps": max_new_tokens}
        if suppress_eos:
            settings["suppress_eos"] = "logits"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    left = list(range(len(facts)) if numbers is None else numbers)
    for first in range(0, len(left), batch_size):
        batch = left[first : first + batch_size]
        pairs = [facts[number].questions[direction] for number in batch]
        if tokenizer.chat_template is None:
            inputs = tokenizer([f"{question}\n" for question, _ in pairs], return_tensors="pt", padding=True)
        else:
            chats = [[{"role": "user", "content": question}] for question, _ in pairs]
            inputs = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
            )
        inputs = inputs.to(model.device)
        written = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        yield [
            Asked(name, direction, number, question, right, text.strip())
            for number, (question, right), text in zip(batch, pairs, texts, strict=True)
        ]


def count_right(asked: Sequence[Asked], model: str, direction: str) -> tuple[float, float]:
    """
    Share of right answers and its standard error.

    Args:
        asked (sequence of [`Asked`]): The questions.
        model, direction (`str`): Which of them.
    """
    right = [item.is_right for item in asked if (item.model, item.direction) == (model, direction)]
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1 - share) / len(right))


def format_directions(asked: Sequence[Asked]) -> str:
    """
    A table of models and directions.

    Args:
        asked (sequence of [`Asked`]): The questions.

    Returns:
        `str`: Markdown.
    """
    lines = ["| model | questions | forward | reversed | difference |", "|---|--:|--:|--:|--:|"]
    for model in dict.fromkeys(item.model for item in asked):
        (forward, first), (reverse, second) = (count_right(asked, model, direction) for direction in DIRECTIONS)
        number = sum((item.model, item.direction) == (model, "forward") for item in asked)
        lines.append(
            f"| {model} | {number} | {100 * forward:.1f} ± {100 * first:.1f} | {100 * reverse:.1f} ± "
            f"{100 * second:.1f} | {100 * (reverse - forward):+.1f} |"
        )
    return "\n".join(lines)


__all__ = ["DIRECTIONS", "Asked", "ask", "count_right", "format_directions"]
