"""The answer length that the model is least uncertain about: entropy valley (arXiv 2608.22274)."""

from collections.abc import Callable
from typing import Any

import torch

from ..canvas import Canvas
from ..forwards.full import FullForward
from ..rule import Fields, Rule, Table, setting
from ..scores import entropy


class EntropyValley(Rule):
    """
    The candidate length with the least mean entropy.

    This is the published summary, read as follows: of each candidate length one forward pass, with guidance if that is
    set, of the prompt and so many masks; the entropies in nats of the distributions at these masks, the mask token and
    all that a draw would rule out included; their mean; and of the candidates the first with the least.
    """

    switches = ("length_candidates",)
    decides = ("how many masks there are",)
    traits = frozenset({"sees_both_sides"})
    table = Table(
        "length",
        "entropy valley",
        "[2608.22274](https://arxiv.org/abs/2608.22274)",
        "a forward pass with the head at all masks for each candidate",
        "answers of unknown length, where the model need not say where its text ends",
    )

    class Settings(Fields):
        length_candidates: list[int] | None = setting(
            list[int],
            "Numbers of masks to choose from, row by row: the one at which the model is least uncertain of what "
            "stands there, by the mean entropy of one forward pass, is taken (entropy valley, arXiv 2608.22274). More "
            "than `max_new_tokens` count as so many.",
            least=1,
        )

    @classmethod
    def lay_out(
        cls,
        config: Any,
        model: Callable,
        prompt: torch.Tensor,
        attention_mask: torch.Tensor | None,
        longest: int,
    ) -> tuple[Canvas, FullForward]:
        forward = FullForward(model, config.guidance)
        candidates = list(dict.fromkeys(min(length, longest) for length in config.length_candidates))
        means = []
        for length in candidates:
            canvas = Canvas.after_prompt(prompt, length, config.mask_token_id, attention_mask)
            forward.end = canvas.tokens.shape[1]
            logits = forward(canvas, canvas.masked, [length] * len(prompt))
            means.append(entropy(logits).view(len(prompt), length).mean(1))
        chosen = torch.stack(means).argmin(0).tolist()
        lengths = [candidates[number] for number in chosen]
        fill = config.pad_token_id if config.pad_token_id is not None else next(iter(config.eos_token_ids), 0)
        return Canvas.after_prompts(prompt, lengths, config.mask_token_id, fill, attention_mask), forward


__all__ = ["EntropyValley"]
