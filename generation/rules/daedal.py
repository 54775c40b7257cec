"""How long an answer is to be: asked before it is filled, and corrected while it is. DAEDAL (arXiv 2508.00819)."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..canvas import Canvas
from ..forwards.full import FullForward
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability, setting
from ..scores import confidence, likeliest
from .revision import Revision


def end_confidence(logits: torch.Tensor, eos_token_ids: torch.Tensor, window: int) -> torch.Tensor:
    """
    How sure a model is that a text ends within its masks: the probabilities of an end of text at the last `window`
    positions where it is the likeliest token, summed and divided by `window` (DAEDAL, arXiv 2508.00819).

    Args:
        logits (`torch.FloatTensor` of shape `(rows, masks, vocab_size)`):
            Logits of the masks.
        eos_token_ids (`torch.LongTensor` of shape `(ids,)`):
            Ids that end the text.
        window (`int`):
            How many positions count.

    Returns:
        `torch.FloatTensor` of shape `(rows,)`.
    """
    tokens = likeliest(logits.flatten(0, 1))
    probability = confidence(logits.flatten(0, 1), tokens).view(logits.shape[:2])
    return mean_of_last(probability, torch.isin(tokens, eos_token_ids).view(logits.shape[:2]), window)


def mean_of_last(probability: torch.Tensor, is_end: torch.Tensor, window: int) -> torch.Tensor:
    """The same from the probabilities of the likeliest tokens, and whether these are ends of text."""
    # counted from the right
    number = is_end.flip(1).cumsum(1).flip(1)
    return probability.masked_fill(~is_end | (number > window), 0.0).sum(1) / window


def settle_length(
    config: Any,
    model: Callable,
    prompt: torch.Tensor,
    attention_mask: torch.Tensor | None,
    longest: int,
) -> tuple[Canvas, FullForward]:
    """
    Puts `initial_length` masks after every prompt, and more until the model is sure that the text ends within them
    (DAEDAL, arXiv 2508.00819, initial length adjustment). With `expand_threshold`, ends of text follow the masks, half
    as many as `length_window`, as in the published code, and then room for as much as rows may grow.

    Args:
        config ([`DiffusionGenerationConfig`]):
            The settings.
        model (`Callable`):
            As in [`~llada.generation.forwards.full.FullForward`].
        prompt (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        attention_mask (`torch.Tensor` of shape `(batch, prompt_length)`, *optional*):
            1 for tokens, 0 for padding.
        longest (`int`):
            Number of masks not to be exceeded.

    Returns:
        `tuple`: The canvas, in which shorter rows and rows that may grow end with padding, and the plan that counted
        the forward passes.
    """
    step, window = InitialLength.get(config, "length_step"), InitialLength.get(config, "length_window")
    threshold = InitialLength.get(config, "length_threshold")
    initial, mask_token_id = config.initial_length, config.mask_token_id
    assert initial is not None and mask_token_id is not None, "generate has looked for both"
    forward = FullForward(model, config.guidance)
    eos_token_ids = torch.tensor(config.eos_token_ids, device=prompt.device)
    lengths = [min(initial, longest)] * len(prompt)
    growing, length = list(range(len(prompt))), lengths[0]
    while growing and length < longest:
        canvas = Canvas.after_prompt(prompt, length, mask_token_id, attention_mask)
        forward.end = canvas.tokens.shape[1]
        rows = torch.zeros_like(canvas.finished)
        rows[growing] = True
        counts = [length * (row in growing) for row in range(len(prompt))]
        logits = forward(canvas, canvas.masked & rows.unsqueeze(1), counts).view(len(growing), length, -1)
        is_short = (end_confidence(logits, eos_token_ids, window) < threshold).tolist()
        growing = [row for row, short in zip(growing, is_short, strict=True) if short]
        length = min(length + step, longest)
        for row in growing:
            lengths[row] = length
    fill = config.pad_token_id if config.pad_token_id is not None else config.eos_token_ids[0]
    if config.expand_threshold is None:
        return Canvas.after_prompts(prompt, lengths, mask_token_id, fill, attention_mask), forward
    ends = [min(length + window // 2, longest) for length in lengths]
    eos = config.eos_token_ids[0]
    return Canvas.after_prompts(prompt, lengths, mask_token_id, fill, attention_mask, eos, ends, longest), forward


class Expansion(Revision):
    """
    Puts more masks where the model does not know what to write, because there is too little room (DAEDAL, arXiv
    2508.00819, iterative mask insertion): in every step, of the masks of the block that stay, the one the model is
    least sure of is replaced by several if its confidence is below a threshold and the model is not sure that the text
    ends. What follows moves to the right, out of the block if need be; the block stays as long as it is. No row grows
    beyond the canvas.

    Args:
        threshold (`float`):
            Confidence below which a mask is replaced.
        factor (`int`):
            How many masks take its place, as far as there is room.
        end_threshold (`float`):
            How sure the model has to be that the text ends for its length to be left alone, see
            [`end_confidence`]. An end of text that is committed counts as 1.
        window (`int`):
            How many positions count for that.
        eos_token_ids (`torch.LongTensor` of shape `(ids,)`):
            Ids that end the text.
    """

    def __init__(self, threshold: float, factor: int, end_threshold: float, window: int, eos_token_ids: torch.Tensor):
        self.threshold = threshold
        self.factor = factor
        self.end_threshold = end_threshold
        self.window = window
        self.eos_token_ids = eos_token_ids

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        # all masks of the rows that take part in the step and may grow
        is_open = (canvas.masked & block.reached).any(1) & (canvas.ends < canvas.tokens.shape[1])
        return canvas.masked & ~block.reached & is_open.unsqueeze(1)

    def repeats(self, proposal: Proposal, changed: torch.Tensor, canvas: Canvas, block: Block) -> torch.Tensor:
        doubt = proposal.spread(proposal.confidence, torch.inf).masked_fill(~proposal.eligible | changed, torch.inf)
        grows = (doubt.amin(1) < self.threshold) & (self._end_confidence(proposal, canvas) < self.end_threshold)
        room = canvas.tokens.shape[1] - canvas.ends
        more = torch.where(grows, room.clamp(max=self.factor - 1), 0)
        position = doubt.argmin(1, keepdim=True)
        return torch.zeros_like(canvas.tokens).scatter_(1, position, more.unsqueeze(1))

    def _end_confidence(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        """How sure the model is that the text of each row ends, `(batch,)`."""
        tokens = likeliest(proposal.logits)
        probability = proposal.spread(confidence(proposal.logits, tokens), 1.0)
        text = torch.where(canvas.masked, proposal.spread(tokens, 0), canvas.tokens)
        is_end = torch.isin(text, self.eos_token_ids) & ~canvas.frozen
        return mean_of_last(probability, is_end, self.window)


class ExpandingForward(FullForward):
    """
    Computes the canvas up to the end of its longest row: what follows is room to grow.

    Args:
        model, guidance:
            As in [`~llada.generation.forwards.full.FullForward`].
        canvas ([`~llada.generation.canvas.Canvas`]):
            The canvas before the first step.
    """

    same_shapes = False

    def __init__(self, model: Callable, canvas: Canvas, guidance: float = 0.0):
        super().__init__(model, guidance)
        self.padding = canvas.padding.tolist()

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        # in the same wait
        counts, ends = torch.stack([numbers, canvas.ends]).tolist()
        active = [row for row, count in enumerate(counts) if count]
        self.end = max((ends[row] for row in active), default=0)
        self.is_even = not any(self.padding[row] or ends[row] < self.end for row in active)
        return counts

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        if self.is_even:
            # attention without a mask has faster kernels
            canvas = copy.copy(canvas)
            canvas.attention_mask = None
        return super().__call__(canvas, wanted, counts)


class InitialLength(Rule):
    """The first stage: as many masks as the model asks for."""

    switches = ("initial_length",)
    decides = ("how many masks there are",)
    traits = frozenset({"needs_the_end", "needs_the_suffix"})
    table = Table(
        "length",
        "DAEDAL, first stage",
        "[2508.00819](https://arxiv.org/abs/2508.00819)",
        "a forward pass with the head at all masks for every 8 tokens that are added",
        "answers of unknown length, where `max_new_tokens` would be much too long to compute, or a fixed length too "
        "short",
    )

    class Settings(Fields):
        initial_length: int | None = setting(
            int,
            "Number of masks to begin with. More are added until the model is sure that the text ends within them, "
            "but not more than `max_new_tokens` in all (DAEDAL, arXiv 2508.00819, which begins with 64).",
            least=1,
        )
        length_step: int | None = setting(int, "How many masks are added at once.", default=8, least=1)
        length_threshold: float | None = probability(
            "How sure that is: the mean probability of an end of text at the last `length_window` positions where it "
            "is the likeliest token.",
            default=0.5,
        )
        length_window: int | None = setting(
            int, "How many positions these are. Missing ones count as 0.", default=32, least=1
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
        return settle_length(config, model, prompt, attention_mask, longest)


class MaskInsertion(Rule):
    """The second stage: more masks where there is too little room."""

    switches = ("expand_threshold",)
    needs = "initial_length"
    traits = frozenset({"has_its_own_steps", "moves_text", "outlasts_a_plan"})
    table = Table(
        "length",
        "DAEDAL, second stage",
        "the same",
        "the head at all masks that follow the block, until a row is as long as `max_new_tokens`; no cache",
        "the first stage estimated too short: room is made where the model is least sure. Needs the first, whose "
        "settled canvas it closes with `length_window` / 2 ends of text, as the published code does. Not for "
        "`infill`, which has no end to look for",
    )

    class Settings(Fields):
        expand_threshold: float | None = probability(
            "With `initial_length`: while a block is filled, the mask that the model is least sure of is replaced by "
            "several if its confidence is below this, and what follows moves, as long as the model is not sure that "
            "the text ends (DAEDAL, second stage, 0.1). At most one mask per step. No answer exceeds `max_new_tokens`."
        )
        expand_factor: int | None = setting(int, "How many masks take the place of one.", default=8, least=2)
        expand_end_threshold: float | None = probability(
            "How sure the model has to be that the text ends, measured as for `length_threshold`, an end that is "
            "already committed counting as 1.",
            default=0.9,
        )

    @classmethod
    def revision(cls, setup: Setup) -> Expansion:
        config = setup.config
        return Expansion(
            config.expand_threshold,
            cls.get(config, "expand_factor"),
            cls.get(config, "expand_end_threshold"),
            InitialLength.get(config, "length_window"),
            torch.tensor(config.eos_token_ids, device=setup.canvas.tokens.device),
        )

    @classmethod
    def forward(cls, setup: Setup, selector) -> ExpandingForward:
        return ExpandingForward(setup.model, setup.canvas, setup.config.guidance)


__all__ = [
    "ExpandingForward",
    "Expansion",
    "InitialLength",
    "MaskInsertion",
    "end_confidence",
    "settle_length",
]
