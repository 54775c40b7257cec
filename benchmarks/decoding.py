"""Measures every setting against the plain loop, on the same weights and the same prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv
from statistics import median
from typing import Any

import torch

from llada import LLaDAModelLM
from llada.generation import preset

from .counters import DispatchCounter, ForwardMeter, clock_of, replay
from .reference_loop import reference_generate


@dataclass(frozen=True)
class Workload:
    """
    What is generated.

    Args:
        prompt_length, max_new_tokens, batch (`int`):
            Shape.
        vocab_size (`int`):
            Rows of the embedding.
        stops (`bool`, *optional*, defaults to `False`):
            Whether the answers end within the first 32 tokens, or fill the canvas.
    """

    prompt_length: int
    max_new_tokens: int
    batch: int
    vocab_size: int
    stops: bool = False

    def __str__(self) -> str:
        ends = ", short answers" if self.stops else ""
        return (
            f"prompt {self.prompt_length}, new {self.max_new_tokens}, batch {self.batch}, "
            f"vocabulary {self.vocab_size:,}{ends}"
        )


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


def settings_for(workload: Workload, block_length: int = 32) -> dict[str, dict[str, Any]]:
    """The settings of `generate` to measure, by name."""
    new = workload.max_new_tokens
    shape = {"max_new_tokens": new, "block_length": block_length}
    exact = {**shape, "max_denoising_steps": block_length}
    fast = {**shape, "threshold": 0.9}
    return {
        'preset("llada")': {"generation_config": preset("llada", **shape, steps=new)},
        "exact, whole canvas": {**exact, "eos_early_stop": False},
        "exact": exact,
        "threshold": fast,
        'preset("fast-dllm")': {"generation_config": preset("fast-dllm", **shape)},
        'preset("fast-dllm", kv_cache="dual")': {"generation_config": preset("fast-dllm", **shape, kv_cache="dual")},
        "threshold, prefix cache": {**fast, "kv_cache": "prefix"},
        "threshold, dual cache": {**fast, "kv_cache": "dual"},
    }


def measure(
    model: LLaDAModelLM,
    workload: Workload,
    prompt: torch.Tensor,
    settings: dict[str, dict[str, Any]],
    repetitions: int,
    block_length: int = 32,
) -> list[Row]:
    """
    Measures settings, repetition by repetition in turn.

    Args:
        model ([`LLaDAModelLM`]):
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
    plain = partial(reference_generate, model, prompt, model.config.mask_token_id, new, block_length, new)
    runs: dict[str, Callable[[], torch.Tensor]] = {"plain loop": plain}
    if workload.vocab_size <= 10_000:
        # as it was published first, and as others still have it
        runs["plain loop, float64"] = partial(plain, confidence_dtype=torch.float64)
    for name, arguments in settings.items():
        runs[name] = partial(model.generate, prompt, **arguments)

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
    lengths = _lengths(answers[reference], eos)
    rows = []
    for name in runs:
        tokens, meter = int(_lengths(answers[name], eos).sum()), meters[name]
        rate = tokens / median(seconds[name])
        reference_tokens = int(lengths.sum())
        speedups = [
            (tokens / mine) / (reference_tokens / theirs)
            for mine, theirs in zip(seconds[name], seconds[reference], strict=True)
        ]
        inside = torch.arange(new, device=prompt.device) < lengths.unsqueeze(1)
        rows.append(
            Row(
                setting=name,
                seconds=median(seconds[name]),
                tokens=tokens,
                tokens_per_second=rate,
                speedup=median(speedups),
                forwards=meter.forwards,
                positions=meter.positions,
                logit_rows=meter.logit_rows,
                tokens_per_forward=tokens / meter.forwards / workload.batch,
                syncs_per_forward=waits[name] / meter.forwards,
                peak_megabytes=peaks[name] / 1e6,
                agreement=float((answers[name] == answers[reference])[inside].float().mean()),
                in_model=median(share for share, _ in shares[name]),
                in_backbone=median(share for _, share in shares[name]),
                over_bare_calls=median(map(truediv, seconds[name], bare[name])) if bare[name] else None,
            )
        )
    return rows


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


__all__ = ["Row", "Workload", "measure", "settings_for"]
