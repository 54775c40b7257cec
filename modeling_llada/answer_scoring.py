"""Asking a model about an answer under masks: rows of unequal lengths, guidance, and the exact cache of blocks."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..generation.forwards.canvas_cache import CanvasCache
from .mask_plans import MaskPlan


@dataclass(eq=False)
class Segment:
    """A part of an answer that is scored given all before it: a block, or the whole answer."""

    pair: int
    # the text up to the end of the segment; the prompt is what guidance hides
    ids: torch.Tensor
    start: int
    prompt_length: int
    plan: MaskPlan

    def __post_init__(self):
        self.scores = torch.zeros(len(self.ids) - self.start, dtype=torch.double)
        self.replicates = torch.zeros(int(self.plan.replicate.max()) + 1, dtype=torch.double)

    def add(self, question: int, scores: torch.Tensor) -> None:
        scores = scores * self.plan.weight[question]
        self.scores += scores / len(self.replicates)
        self.replicates[self.plan.replicate[question]] += scores.sum()

    def variance(self) -> float:
        """Of the estimate, NaN if a single replicate cannot tell."""
        if self.plan.is_exact:
            return 0.0
        return float(self.replicates.var() / len(self.replicates)) if len(self.replicates) > 1 else math.nan


def ask(model: Any, segments: list[Segment], cfg_scale: float, block_length: int, batch_size: int) -> int:
    """
    Asks a model all questions of all segments, and adds the scores to the segments.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        segments (`list[Segment]`):
            What is asked.
        cfg_scale (`float`):
            Strength of the guidance, 0 for none.
        block_length (`int`):
            Length of the blocks of a block-causal model, 0 for others.
        batch_size (`int`):
            Rows of a forward pass.

    Returns:
        `int`: How many rows were computed.
    """
    if block_length:
        return sum(_ask_about_block(model, segment, cfg_scale, block_length, batch_size) for segment in segments)
    # rows of one length need no padding
    longest = sorted(segments, key=lambda segment: len(segment.ids))
    questions = [(segment, question) for segment in longest for question in range(len(segment.plan.masked))]
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        masked = [_at_the_end(segment, segment.plan.masked[question]) for segment, question in batch]
        scored = [_at_the_end(segment, segment.plan.scored[question]) for segment, question in batch]
        ids = [segment.ids for segment, _ in batch]
        prompts = [segment.prompt_length for segment, _ in batch]
        scores = MaskedTexts(model, ids, masked, scored, prompts).scores(cfg_scale)
        for (segment, question), row in zip(batch, scores, strict=True):
            segment.add(question, row[segment.start : len(segment.ids)])
    return len(questions) * (2 if cfg_scale else 1)


def ask_the_surest(model: Any, segments: list[Segment], cfg_scale: float, block_length: int, batch_size: int) -> int:
    """
    Scores every answer by the chain rule in the order in which the model is surest of it: of all tokens that are still
    masked, the likeliest is scored and shown. Arguments and result as in [`ask`]; plans are not read.
    """
    hidden = {segment: torch.ones(len(segment.scores), dtype=torch.bool) for segment in segments}
    num_rows = 0
    while open_segments := [segment for segment in segments if hidden[segment].any()]:
        for first in range(0, len(open_segments), batch_size):
            batch = open_segments[first : first + batch_size]
            masked = [_at_the_end(segment, hidden[segment]) for segment in batch]
            texts = [segment.ids for segment in batch]
            prompts = [segment.prompt_length for segment in batch]
            scores = MaskedTexts(model, texts, masked, masked, prompts, block_length).scores(cfg_scale)
            for segment, row in zip(batch, scores, strict=True):
                still = hidden[segment]
                row = row[segment.start : len(segment.ids)].masked_fill(~still, -torch.inf)
                surest = int(row.argmax())
                segment.scores[surest] = row[surest]
                still[surest] = False
        num_rows += len(open_segments) * (2 if cfg_scale else 1)
    return num_rows


def _at_the_end(segment: Segment, cells: torch.Tensor) -> torch.Tensor:
    """Cells of the segment as cells of its text."""
    return torch.cat([torch.zeros(segment.start, dtype=torch.bool), cells])


def _pad(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@dataclass(eq=False)
class MaskedTexts:
    """
    Texts of unequal lengths under masks, as a batch on the device of the model.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        ids, masked, scored (lists of `torch.Tensor` of shape `(length,)`):
            Texts, what of them stands as a mask, and what is scored (`bool`).
        prompt_lengths (`list[int]`):
            How much of each text is prompt, which guidance hides.
        block_length (`int`, *optional*, defaults to 0):
            Length of the blocks of a block-causal model.
    """

    model: Any
    ids: list[torch.Tensor]
    masked: list[torch.Tensor]
    scored: list[torch.Tensor]
    prompt_lengths: list[int]
    block_length: int = 0

    def __post_init__(self):
        device, mask_token_id = self.model.device, self.model.config.mask_token_id
        lengths = torch.tensor([len(row) for row in self.ids])
        position = torch.arange(int(lengths.max()))
        self.targets = _pad(self.ids).to(device)
        self.is_scored = _pad(self.scored).to(device)
        self.noisy = self.targets.masked_fill(_pad(self.masked).to(device), mask_token_id)
        self.inputs: dict[str, Any] = {"block_length": self.block_length} if self.block_length else {}
        if not bool((lengths == lengths[0]).all()):
            self.inputs["attention_mask"] = (position < lengths[:, None]).long().to(device)

    def logits(self, cfg_scale: float = 0.0) -> torch.Tensor:
        """Logits in float32 of all positions that are scored, `(positions, vocab_size)`."""
        logits = self.model(self.noisy, logits_to_keep=self.is_scored, **self.inputs).logits
        if not cfg_scale:
            return logits.float()
        position = torch.arange(self.noisy.shape[1])
        is_prompt = (position < torch.tensor(self.prompt_lengths)[:, None]).to(self.noisy.device)
        hidden = self.noisy.masked_fill(is_prompt, self.model.config.mask_token_id)
        without = self.model(hidden, logits_to_keep=self.is_scored, **self.inputs).logits
        return guide(logits, without, cfg_scale)

    def scores(self, cfg_scale: float = 0.0) -> torch.Tensor:
        """Log-probabilities of the right tokens, `(rows, longest)` in float64 on the CPU, 0 where none is scored."""
        if cfg_scale:
            targets = self.targets[self.is_scored]
            return _spread(log_probs(self.logits(cfg_scale), targets), self.is_scored)
        # without the logits of all positions in memory
        output = self.model(
            self.noisy, labels=self.targets, logits_to_keep=self.is_scored, token_losses=True, **self.inputs
        )
        return -output.token_losses.double().cpu()


def guide(with_prompt: torch.Tensor, without: torch.Tensor, cfg_scale: float) -> torch.Tensor:
    """Guided logits in float32 (arXiv 2502.09992, eq. 16), from those with the prompt and those without it."""
    with_prompt, without = with_prompt.float(), without.float()
    return without + (cfg_scale + 1) * (with_prompt - without)


def log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of `targets` `(positions,)` under logits `(positions, vocab_size)`."""
    return logits.log_softmax(dim=-1).gather(1, targets[:, None].to(logits.device)).squeeze(1)


def _spread(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    return torch.zeros(cells.shape, dtype=torch.double).masked_scatter(cells.cpu(), values.double().cpu())


def _ask_about_block(model: Any, segment: Segment, cfg_scale: float, block_length: int, batch_size: int) -> int:
    """
    Asks about a block of a block-causal text. The keys and values of the blocks before it do not depend on it: they
    are computed once, and nothing is approximated.
    """
    end, mask_token_id = len(segment.ids), model.config.mask_token_id
    ids = segment.ids.to(model.device)
    hidden = ids.clone()
    hidden[: segment.prompt_length] = mask_token_id
    # the block begins with what it holds of the prompt, or of an earlier part
    start = segment.start - segment.start % block_length
    texts = (ids, hidden) if cfg_scale else (ids,)
    caches = [_clean_cache(model, text[:start], end, block_length) for text in texts]
    num_questions = len(segment.plan.masked)
    block = torch.arange(start, end, device=model.device)
    before = torch.zeros(segment.start - start, dtype=torch.bool)
    for first in range(0, num_questions, batch_size):
        questions = range(first, min(first + batch_size, num_questions))
        masked, scored = (
            torch.cat([before.expand(len(questions), -1), part[first : questions.stop]], dim=1).to(model.device)
            for part in (segment.plan.masked, segment.plan.scored)
        )
        calls = [
            {
                "input_ids": text[start:].expand(len(questions), -1).masked_fill(masked, mask_token_id),
                "logits_to_keep": scored,
                "past_key_values": _repeat(cache, len(questions)),
                "cache_position": block,
                "block_length": block_length,
            }
            for text, cache in zip(texts, caches, strict=True)
        ]
        targets = ids[start:].expand(len(questions), -1)
        if cfg_scale:
            with_prompt, without = (model(**call).logits for call in calls)
            logits = guide(with_prompt, without, cfg_scale)
            scores = _spread(log_probs(logits, targets[scored]), scored)
        else:
            scores = -model(**calls[0], labels=targets, token_losses=True).token_losses.double().cpu()
        for question, row in zip(questions, scores, strict=True):
            segment.add(question, row[segment.start - start :])
    return (num_questions + (start > 0)) * len(texts)


def _clean_cache(model: Any, ids: torch.Tensor, length: int, block_length: int) -> CanvasCache:
    """Keys and values of the finished blocks of a text of `length` tokens."""
    cache = CanvasCache(torch.arange(length, device=ids.device).unsqueeze(0))
    if len(ids):
        position = torch.arange(len(ids), device=ids.device)
        cache.visible = len(ids)
        model.model(ids[None], past_key_values=cache, cache_position=position, block_length=block_length)
        cache.visible = length
    return cache


def _repeat(cache: CanvasCache, times: int) -> CanvasCache:
    """A cache of as many equal rows, to be written to."""
    copy = CanvasCache(cache.position_ids.expand(times, -1))
    copy.keys = [keys.repeat(times, 1, 1, 1) for keys in cache.keys]
    copy.values = [values.repeat(times, 1, 1, 1) for values in cache.values]
    return copy


__all__ = ["MaskedTexts", "Segment", "ask", "ask_the_surest", "guide", "log_probs"]
