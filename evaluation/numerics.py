"""What dtype, batch, attention back-end and threads change in what a checkpoint computes and writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..generation.listeners.trace import Trace


@dataclass(frozen=True)
class Surroundings:
    """
    How a model is run. What is not given stays as it is in the run that is compared with.

    Args:
        dtype (`torch.dtype`, *optional*):
            The dtype it is loaded in.
        together (`bool`, *optional*, defaults to `False`):
            Whether all prompts are one batch, padded on the left, or each is alone.
        attention (`str`, *optional*):
            The attention back-end.
        num_threads (`int`, *optional*):
            The threads of torch on the CPU.
    """

    dtype: torch.dtype | None = None
    together: bool = False
    attention: str | None = None
    num_threads: int | None = None


@dataclass(frozen=True)
class Difference:
    """
    What came out otherwise than in the run that is compared with.

    Args:
        name (`str`):
            What was changed.
        largest_logit, mean_logit (`float`):
            Of the absolute differences of the logits of masked positions, halfway through the sampling.
        predictions (`float`):
            Share of these positions with another most likely token.
        steps (`float`):
            Share of the answers' positions that got their token in another step.
        tokens (`float`):
            Share of the answers' positions with another token.
        answers (`float`):
            Share of the answers that differ.
        num_positions, num_answers (`int`):
            How many logits and answers were compared.
    """

    name: str
    largest_logit: float
    mean_logit: float
    predictions: float
    steps: float
    tokens: float
    answers: float
    num_positions: int
    num_answers: int


@dataclass(frozen=True)
class Record:
    """
    What a run gave.

    Args:
        traces (`list[Trace]`):
            How each answer came about.
        logits (`list[torch.FloatTensor]`):
            For each prompt those of the masked positions of a canvas, of shape `(positions, vocab_size)`, on the CPU.
    """

    traces: list[Trace]
    logits: list[torch.Tensor]


def find_differences(
    load: Callable[[torch.dtype | None], PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    variants: Mapping[str, Surroundings],
    seed: int = 0,
    **settings: Any,
) -> Iterator[Difference]:
    """
    Runs a checkpoint as it is, one prompt at a time, and then otherwise.

    Args:
        load (`Callable`):
            Gives the model in evaluation mode, in a dtype, or in that of the file if `None`. Called once for each
            dtype; one model is in memory at a time.
        prompts (sequence of sequences of `int`):
            Ids of the prompts, without padding.
        variants (mapping of `str` to [`Surroundings`]):
            What is to be changed, by the names that the results get.
        seed (`int`, *optional*, defaults to 0):
            Seed of what is drawn. The draws of an answer do not depend on its batch.
        settings (`dict[str, Any]`, *optional*):
            Settings of [`LLaDAModelLM.generate`].

    Yields:
        [`Difference`] for each variant, those in the dtype of the file first.

    Raises:
        ValueError: If there is no prompt, or `generate` refuses one, or a setting.
    """
    if not prompts or not all(prompts):
        raise ValueError("There is nothing to compare with; give prompts of at least one token.")
    model = load(None)
    expected = _record(model, prompts, Surroundings(), seed, None, settings)
    canvases = [halfway(trace) for trace in expected.traces]
    by_dtype = sorted(variants.items(), key=lambda item: item[1].dtype not in (None, model.dtype))
    for name, variant in by_dtype:
        if variant.dtype not in (None, model.dtype):
            # one model at a time
            del model
            model = load(variant.dtype)
        yield compare(name, expected, _record(model, prompts, variant, seed, canvases, settings))


def halfway(trace: Trace) -> list[int]:
    """The canvas in the middle of the sampling: some of the answer stands there, some is to come."""
    frames = [frame for frame in trace.frames() if trace.mask_token_id in frame]
    return frames[len(frames) // 2]


def compare(name: str, expected: Record, found: Record) -> Difference:
    """Compares two runs with the same prompts and canvases. Positions that only one answer has count as different."""
    steps = tokens = answers = positions = 0
    for first, second in zip(expected.traces, found.traces, strict=True):
        start = first.start.index(first.mask_token_id)
        length = max(len(first.final), len(second.final)) - start
        other_token, other_step = (
            sum(one != other for one, other in zip(left[start:], right[start:], strict=False))
            + abs(len(left) - len(right))
            for left, right in ((first.final, second.final), (first.step_of, second.step_of))
        )
        steps, tokens, positions = steps + other_step, tokens + other_token, positions + length
        answers += other_token > 0
    logits, others = torch.cat(expected.logits), torch.cat(found.logits)
    changes = (logits - others).abs()
    return Difference(
        name=name,
        largest_logit=float(changes.max()),
        mean_logit=float(changes.mean()),
        predictions=float((logits.argmax(dim=1) != others.argmax(dim=1)).double().mean()),
        steps=steps / max(positions, 1),
        tokens=tokens / max(positions, 1),
        answers=answers / len(expected.traces),
        num_positions=len(logits),
        num_answers=len(expected.traces),
    )


def _record(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    variant: Surroundings,
    seed: int,
    canvases: list[list[int]] | None,
    settings: dict[str, Any],
) -> Record:
    """Runs a model in some surroundings, which are as they were afterwards."""
    threads, attention = torch.get_num_threads(), model.config._attn_implementation
    size = len(prompts) if variant.together else 1
    traces: list[Trace] = []
    logits: list[torch.Tensor] = []
    try:
        if variant.num_threads is not None:
            torch.set_num_threads(variant.num_threads)
        if variant.attention is not None:
            model.set_attn_implementation(variant.attention)
        for first in range(0, len(prompts), size):
            numbers = range(first, min(first + size, len(prompts)))
            chance = [torch.Generator(model.device).manual_seed(seed + number) for number in numbers]
            inputs = _as_batch(model, [prompts[number] for number in numbers])
            traces += model.generate(**inputs, generator=chance, output_trace=True, **settings).trace
        if canvases is None:
            canvases = [halfway(trace) for trace in traces]
        for first in range(0, len(prompts), size):
            logits += _masked_logits(model, canvases[first : first + size])
    finally:
        torch.set_num_threads(threads)
        model.set_attn_implementation(attention)
    return Record(traces, logits)


@torch.no_grad()
def _masked_logits(model: PreTrainedModel, canvases: list[list[int]]) -> list[torch.Tensor]:
    inputs = _as_batch(model, canvases)
    masked = inputs["input_ids"] == model.config.mask_token_id
    logits = model(**inputs, logits_to_keep=masked).logits.float().cpu()
    return list(logits.split(masked.sum(dim=1).tolist()))


def _as_batch(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Rows of unequal lengths, padded on the left."""
    tensors = [torch.tensor(list(row)) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side="left")
    ones = [torch.ones_like(row) for row in tensors]
    mask = nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side="left")
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


__all__ = ["Difference", "Record", "Surroundings", "compare", "find_differences", "halfway"]
