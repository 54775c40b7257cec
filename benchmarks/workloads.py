"""What is measured: workloads, and the settings of `generate` on each of them."""

from dataclasses import dataclass
from typing import Any, Literal

from llada.generation import preset

from .trained_model import CONTROL_TOKENS, TRAINED_VOCAB


# the presets for full attention that are not measured on every workload
OTHER_PRESETS = ("eb", "klass", "wino", "slowfast", "hierarchical", "credit", "streaming", "daedal")
BLOCK_CAUSAL_PRESETS = ("llada2", "llada2.1-quality", "llada2.1-speed", "llada2.2")


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
        model (`str`, *optional*, defaults to `"LLaDA"`):
            `"LLaDA"` has full attention, `"LLaDA2"` block-causal attention and experts.
        is_complete (`bool`, *optional*, defaults to `False`):
            Whether every preset is measured, or those that take most of the tables elsewhere.
    """

    prompt_length: int
    max_new_tokens: int
    batch: int
    vocab_size: int
    stops: bool = False
    model: Literal["LLaDA", "LLaDA2"] = "LLaDA"
    is_complete: bool = False

    def __str__(self) -> str:
        ends = ", short answers" if self.stops else ""
        return (
            f"{self.model}, prompt {self.prompt_length}, new {self.max_new_tokens}, batch {self.batch}, "
            f"vocabulary {self.vocab_size:,}{ends}"
        )


WORKLOADS = (
    Workload(64, 128, 1, TRAINED_VOCAB, is_complete=True),
    Workload(64, 128, 1, TRAINED_VOCAB, stops=True, is_complete=True),
    Workload(64, 128, 4, TRAINED_VOCAB),
    Workload(512, 128, 1, TRAINED_VOCAB),
    Workload(64, 128, 1, 126464),
    Workload(64, 128, 1, TRAINED_VOCAB, model="LLaDA2"),
    Workload(64, 128, 1, TRAINED_VOCAB, stops=True, model="LLaDA2"),
    Workload(512, 128, 1, TRAINED_VOCAB, model="LLaDA2"),
)
# what the smoke test runs
TINY = (
    Workload(32, 32, 2, TRAINED_VOCAB, is_complete=True),
    Workload(32, 32, 1, TRAINED_VOCAB, model="LLaDA2"),
)


def settings_for(workload: Workload, block_length: int = 32) -> dict[str, dict[str, Any]]:
    """
    The settings of `generate` to measure, by name. A preset keeps its plan, its blocks included; only
    `max_new_tokens` is that of the workload, and `preset("llada")` and the two caches of `preset("fast-dllm")` have
    the blocks of the plain loop.
    """
    new = workload.max_new_tokens
    if workload.model == "LLaDA2":
        # the rule of LLaDA2.2 needs its control tokens; this model never writes them
        controls = {"llada2.2": CONTROL_TOKENS}
        settings = {
            f'preset("{name}")': {"generation_config": preset(name, max_new_tokens=new, **controls.get(name, {}))}
            for name in BLOCK_CAUSAL_PRESETS
        }
        # in a config, no cache is the cache of the model
        return {'preset("llada2"), no cache': {**settings['preset("llada2")'], "kv_cache": None}, **settings}
    shape = {"max_new_tokens": new, "block_length": block_length}
    exact = {**shape, "max_denoising_steps": block_length}
    fast = {**shape, "threshold": 0.9}
    settings = {
        'preset("llada")': {"generation_config": preset("llada", **shape, steps=new)},
        **({"exact, whole canvas": {**exact, "eos_early_stop": False}} if workload.is_complete else {}),
        "exact": exact,
        "threshold": fast,
        'preset("fast-dllm")': {"generation_config": preset("fast-dllm", **shape)},
        'preset("fast-dllm", kv_cache="dual")': {"generation_config": preset("fast-dllm", **shape, kv_cache="dual")},
        "threshold, prefix cache": {**fast, "kv_cache": "prefix"},
        "threshold, dual cache": {**fast, "kv_cache": "dual"},
    }
    if workload.is_complete:
        settings |= {
            f'preset("{name}")': {"generation_config": preset(name, max_new_tokens=new)} for name in OTHER_PRESETS
        }
    return settings


__all__ = ["TINY", "WORKLOADS", "Workload", "settings_for"]
