"""One step of a model of a published shape, with random weights, on an accelerator."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from transformers import CompileConfig

from llada import LLaDAConfig, LLaDAModelLM

from .roofline import Device, forward_bound


@dataclass
class StepRow:
    """
    The time of one step of `generate`.

    Args:
        name (`str`):
            What a step computes.
        milliseconds, bound_milliseconds (`float`):
            Its time, and the least the device allows.
        peak_gigabytes, needed_gigabytes (`float`):
            Most memory at one time, and that of weights and cache.
    """

    name: str
    milliseconds: float
    bound_milliseconds: float
    peak_gigabytes: float
    needed_gigabytes: float


def draw_model(config: LLaDAConfig, device: torch.device, dtype: torch.dtype) -> LLaDAModelLM:
    """A model with random weights, made on the device."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            # the rotary frequencies are made on the CPU
            return LLaDAModelLM(config).to(device).eval()
    finally:
        torch.set_default_dtype(default)


def measure_steps(
    model: LLaDAModelLM,
    limits: Device,
    length: int = 1024,
    block_length: int = 32,
    repetitions: int = 5,
    compile_config: CompileConfig | None = None,
) -> list[StepRow]:
    """
    Measures a step that computes a block and reads the rest from the cache, and one that computes the whole canvas.
    The time of a step is the difference of two runs with different numbers of steps, sampling included.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        limits ([`Device`]):
            What the device can do.
        length (`int`, *optional*, defaults to 1024):
            Positions of the canvas.
        block_length (`int`, *optional*, defaults to 32):
            Positions of a block.
        repetitions (`int`, *optional*, defaults to 5):
            How often.
        compile_config ([`~transformers.CompileConfig`], *optional*):
            Compiles the steps.

    Returns:
        `list[StepRow]`.
    """
    config, device = model.config, model.device
    prompt = torch.randint(0, config.mask_token_id, (1, length - block_length), device=device)
    few, many = block_length // 2, block_length

    def run(steps: int, kv_cache: str | None) -> float:
        _wait(device)
        start = time.perf_counter()
        model.generate(
            prompt,
            max_new_tokens=block_length,
            block_length=block_length,
            max_denoising_steps=steps,
            kv_cache=kv_cache,
            eos_early_stop=False,
            compile_config=compile_config,
        )
        _wait(device)
        return time.perf_counter() - start

    weights = sum(parameter.nbytes for parameter in model.parameters())
    width = model.dtype.itemsize
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length * width
    rows = []
    for kv_cache, computed in (("dual", block_length), (None, length)):
        run(few, kv_cache), run(many, kv_cache)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [(run(many, kv_cache) - run(few, kv_cache)) / (many - few) for _ in range(repetitions)]
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else float("nan")
        bound = forward_bound(config, limits, 1, computed, length, block_length, width)
        rows.append(
            StepRow(
                name=f"{computed} of {length} positions" + (", compiled" if compile_config else ""),
                milliseconds=median(times) * 1e3,
                bound_milliseconds=bound.seconds * 1e3,
                peak_gigabytes=peak / 1e9,
                needed_gigabytes=(weights + (cached if kv_cache else 0)) / 1e9,
            )
        )
    return rows


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


__all__ = ["StepRow", "draw_model", "measure_steps"]
