"""Measures every setting against the plain loop, on the same weights and the same prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv
from statistics import median
from typing import Any

import torch
from torch import nn

from llada import LLaDA2MoeModelLM, LLaDAModelLM

from .counters import DispatchCounter, ForwardMeter, clock_of, replay
from .reference_block_loop import reference_block_generate
from .reference_loop import reference_generate
from .workloads import Workload


@dataclass
class Row:
    """
    One setting on one workload.

    Args:
        setting (`str`):
            Its name.
        seconds (`float`):
            Median time, CPU time on the CPU.
        tokens (`int`):
            Tokens of the answers, up to and including the end of text.
        tokens_per_second (`float`):
            Their ratio.
        speedup (`float`):
            Against the plain loop: the median over the repetitions, in each of which both ran.
        forwards, positions, logit_rows (`int`):
            Passes of the model, positions computed, rows of logits computed.
        tokens_per_forward (`float`):
            Tokens per pass and row.
        syncs_per_forward (`float`):
            Times the host waits for an accelerator.
        peak_megabytes (`float`):
            Most memory at one time, weights aside.
        agreement (`float`):
            Share of the answers of the plain loop that is the same, position by position up to its end of text.
        in_model, in_backbone (`float`):
            Share of the time inside the passes of the model, and inside those of the backbone, without the head.
        over_bare_calls (`float`, *optional*):
            Time, over that of the same calls of the model and nothing else. Not for the plain loop.
    """

    setting: str
    seconds: float
    tokens: int
    tokens_per_second: float
    speedup: float
    forwards: int
    positions: int
    logit_rows: int
    tokens_per_forward: float
    syncs_per_forward: float
    peak_megabytes: float
    agreement: float
    in_model: float
    in_backbone: float
    over_bare_calls: float | None


def plain_loops(
    model: LLaDAModelLM | LLaDA2MoeModelLM, workload: Workload, prompt: torch.Tensor, block_length: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """The published samplers, written plainly, by name. The first is what everything is compared with."""
    mask, eos, new = model.config.mask_token_id, model.config.eos_token_id, workload.max_new_tokens
    if workload.model == "LLaDA2":
        plain = partial(reference_block_generate, model, prompt, mask, eos, new, block_length)
        editing = partial(plain, max_post_steps=16)
        return {
            "plain loop": partial(plain, threshold=0.95, steps=block_length),
            "plain loop, 2.1 quality": partial(editing, threshold=0.7, editing_threshold=0.5),
            "plain loop, 2.1 speed": partial(editing, threshold=0.5, editing_threshold=0.0),
        }
    plain = partial(reference_generate, model, prompt, mask, new, block_length, new)
    loops = {"plain loop": plain}
    if workload.is_complete:
        # as it was published first, and as others still have it
        loops["plain loop, float64"] = partial(plain, confidence_dtype=torch.float64)
    return loops


def measure(
    model: LLaDAModelLM | LLaDA2MoeModelLM,
    workload: Workload,
    prompt: torch.Tensor,
    settings: dict[str, dict[str, Any]],
    repetitions: int,
    block_length: int = 32,
) -> list[Row]:
    """
    Measures settings, repetition by repetition in turn.

    Args:
        model ([`LLaDAModelLM`] or [`LLaDA2MoeModelLM`]):
            The model.
        workload ([`Workload`]):
            What is generated.
        prompt (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        settings (`dict[str, dict[str, Any]]`):
            Arguments of `generate`, by name.
        repetitions (`int`):
            How often.
        block_length (`int`, *optional*, defaults to 32):
            Block length of the plain loop.

    Returns:
        `list[Row]`: The plain loop first.
    """
    clock = clock_of(prompt.device)
    eos, new = model.config.eos_token_id, workload.max_new_tokens
    runs = plain_loops(model, workload, prompt, block_length)
    for name, arguments in settings.items():
        runs[name] = partial(_seeded, partial(model.generate, prompt, **arguments))

    # what does not depend on the time, and the first, slower run of everything
    answers, waits, peaks, meters = {}, {}, {}, {}
    for name, run in runs.items():
        with ForwardMeter(model, clock, record=True) as meters[name], DispatchCounter() as counter:
            answers[name] = run()[:, workload.prompt_length :]
        waits[name], peaks[name] = counter.waits.total(), counter.peak_bytes
        if prompt.device.type == "cuda":
            peaks[name] = _peak_on_device(run)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    bare: dict[str, list[float]] = {name: [] for name in runs}
    shares: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            with ForwardMeter(model, clock) as meter:
                seconds[name].append(_time(run, clock))
            shares[name].append((meter.seconds / seconds[name][-1], meter.backbone_seconds / seconds[name][-1]))
            if not name.startswith("plain loop"):
                bare[name].append(_time(partial(replay, model, meters[name].calls), clock))

    reference = "plain loop"
    lengths = {name: _lengths(answer, eos) for name, answer in answers.items()}
    # some rules choose the length of the answer
    padded = {
        name: nn.functional.pad(answer, (0, new - answer.shape[1]), value=-1) for name, answer in answers.items()
    }
    inside = torch.arange(new, device=prompt.device) < lengths[reference].unsqueeze(1)
    reference_tokens = int(lengths[reference].sum())
    rows = []
    for name in runs:
        tokens, meter = int(lengths[name].sum()), meters[name]
        speedups = [
            (tokens / mine) / (reference_tokens / theirs)
            for mine, theirs in zip(seconds[name], seconds[reference], strict=True)
        ]
        rows.append(
            Row(
                setting=name,
                seconds=median(seconds[name]),
                tokens=tokens,
                tokens_per_second=tokens / median(seconds[name]),
                speedup=median(speedups),
                forwards=meter.forwards,
                positions=meter.positions,
                logit_rows=meter.logit_rows,
                tokens_per_forward=tokens / meter.forwards / workload.batch,
                syncs_per_forward=waits[name] / meter.forwards,
                peak_megabytes=peaks[name] / 1e6,
                agreement=float((padded[name] == padded[reference])[inside].float().mean()),
                in_model=median(share for share, _ in shares[name]),
                in_backbone=median(share for _, share in shares[name]),
                over_bare_calls=median(map(truediv, seconds[name], bare[name])) if bare[name] else None,
            )
        )
    return rows


def _seeded(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Draws, where a setting draws, the same in every repetition."""
    torch.manual_seed(0)
    return run()


def _time(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def _peak_on_device(run: Callable[[], Any]) -> int:
    """Bytes at the peak, weights aside, that the allocator knows of."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - held


def _lengths(answers: torch.Tensor, eos: int) -> torch.Tensor:
    """Tokens of each answer up to and including the first end of text."""
    is_end = answers == eos
    return torch.where(is_end.any(1), is_end.int().argmax(1) + 1, answers.shape[1])


__all__ = ["Row", "measure", "plain_loops"]
