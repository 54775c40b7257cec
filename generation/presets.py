"""
Named settings of published samplers. A preset is a plain config: print it, change it, save it.

A preset is complete: rules, caches and processors that it has no value for are off, so that what a checkpoint had set
for others has no part in it.
"""

from typing import Any

from .configuration_diffusion import DEFAULTS, DiffusionGenerationConfig, overlay
from .foreign_settings import REFUSED


PRESETS: dict[str, dict[str, Any]] = {
    # the authors' generate.py: every default, every draw, the whole canvas back
    "llada": {
        "max_new_tokens": 128,
        "steps": 128,
        "block_length": 128,
        "do_sample": False,
        "remasking": "low_confidence",
        "cfg_scale": 0.0,
        "eos_early_stop": False,
        "rng_compat": "llada",
    },
    # JustGRPO's rollouts, one token after the other
    "left-to-right": {
        "max_new_tokens": 256,
        "block_length": 1,
        "do_sample": True,
        "temperature": 1.0,
    },
    # the model card of LLaDA2.0
    "llada2": {
        "max_new_tokens": 2048,
        "block_length": 32,
        "max_denoising_steps": 32,
        "do_sample": False,
        "threshold": 0.95,
        "kv_cache": "block",
    },
    # the model card of LLaDA2.1
    "llada2.1-quality": {
        "max_new_tokens": 2048,
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.7,
        "editing_threshold": 0.5,
        "max_post_steps": 16,
        "kv_cache": "block",
    },
    "llada2.1-speed": {
        "max_new_tokens": 2048,
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.5,
        "editing_threshold": 0.0,
        "max_post_steps": 16,
        "kv_cache": "block",
    },
    # the model card of LLaDA2.2
    "llada2.2": {
        "max_new_tokens": 2048,
        "block_length": 32,
        "max_denoising_steps": 32,
        "do_sample": False,
        "threshold": 0.5,
        "editing_threshold": 0.0,
        "max_post_steps": 16,
        "kv_cache": "block",
    },
    # Fast-dLLM v1 with its prefix cache, as in its published tables
    "fast-dllm": {
        "max_new_tokens": 256,
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.9,
        "kv_cache": "prefix",
        "confidence_dtype": "float64",
    },
    # EB-Sampler: drawn tokens, the least uncertain positions first; the bound of transformers and diffusers
    "eb": {
        "max_new_tokens": 256,
        "block_length": 32,
        "do_sample": True,
        "temperature": 1.0,
        "entropy_bound": 0.1,
        "remasking": "entropy",
    },
    # KLASS on LLaDA, GSM8K
    "klass": {
        "max_new_tokens": 256,
        "block_length": 64,
        "do_sample": False,
        "threshold": 0.6,
        "kl_threshold": 0.015,
        "kl_history": 2,
        "confidence_dtype": "float64",
    },
    # WINO on LLaDA, GSM8K
    "wino": {
        "max_new_tokens": 256,
        "block_length": 128,
        "do_sample": False,
        "threshold": 0.6,
        "verify_threshold": 0.9,
        "confidence_dtype": "float64",
    },
    # SlowFast sampling, defaults of its code, one block
    "slowfast": {
        "max_new_tokens": 256,
        "block_length": 256,
        "do_sample": False,
        "threshold": 0.9,
        "exploration_steps": 6,
        "span_threshold": 0.3,
        "span_window": 2,
        "span_deviation": 1.0,
    },
    # dInfer
    "hierarchical": {
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.9,
        "low_threshold": 0.4,
        "kv_cache": "dual",
    },
    "credit": {
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.9,
        "credit_weight": 0.7,
        "credit_exponent": 0.2,
        "credit_decay": 0.8,
        "kv_cache": "dual",
    },
    # DAEDAL on LLaDA: initial length adjustment, then mask insertion
    "daedal": {
        "max_new_tokens": 2048,
        "initial_length": 64,
        "length_step": 8,
        "length_threshold": 0.5,
        "length_window": 32,
        "expand_threshold": 0.1,
        "expand_factor": 8,
        "expand_end_threshold": 0.9,
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.9,
    },
    # Streaming-dLLM on LLaDA-1.5
    "streaming": {
        "max_new_tokens": 512,
        "block_length": 32,
        "do_sample": False,
        "threshold": 0.9,
        "threshold_relaxation": 0.3,
        "suffix_window": 96,
        "kv_cache": "prefix",
        "confidence_dtype": "float64",
    },
}


# what a preset leaves to the checkpoint and the call: special tokens, the length if it has none of its own, when to
# stop, and the form of the output
_NOT_SAMPLING = frozenset(
    {
        "bos_token_id",
        "compile_config",
        "delete_token_id",
        "disable_compile",
        "eos_token_id",
        "mask_token_id",
        "max_length",
        "max_new_tokens",
        "max_time",
        "num_return_sequences",
        "output_trace",
        "pad_token_id",
        "return_dict_in_generate",
        "split_token_id",
        "stop_strings",
        "trace_top_k",
        "transformers_version",
        *REFUSED,
    }
)


def preset(name: str, **overrides) -> DiffusionGenerationConfig:
    """
    The settings of a published sampler. All other rules are off, whatever the checkpoint has set.

    | name | sampler |
    |---|---|
    | `"llada"` | the authors' sampler, token for token (arXiv 2502.09992; `generate.py` of ML-GSAI/LLaDA) |
    | `"left-to-right"` | one token after the other, drawn at temperature 1: the rollouts of JustGRPO |
    | `"fast-dllm"` | threshold and prefix cache of Fast-dLLM (arXiv 2505.22618); `kv_cache="dual"` for the other |
    | `"eb"` | EB-Sampler (arXiv 2505.24857) |
    | `"klass"` | KLASS (arXiv 2511.05664) |
    | `"wino"` | WINO, drafts that are verified and taken back (arXiv 2507.18578) |
    | `"slowfast"` | SlowFast sampling (arXiv 2506.10848) |
    | `"hierarchical"`, `"credit"` | two rules of dInfer on its dual cache (arXiv 2510.08666, 2510.06133) |
    | `"daedal"` | threshold, on as many masks as the answer takes, and room made where needed (arXiv 2508.00819) |
    | `"streaming"` | Streaming-dLLM: prefix cache, suffix window, falling threshold (arXiv 2601.17917) |
    | `"llada2"` | blocks, threshold and exact cache of LLaDA2.0 (arXiv 2512.15745) |
    | `"llada2.1-quality"`, `"llada2.1-speed"` | the same with token editing, two settings (arXiv 2602.08676) |
    | `"llada2.2"` | editing that inserts and deletes (LLaDA2.2 report, §3.1) |

    Args:
        name (`str`):
            Name of the preset.
        overrides (`dict[str, Any]`, *optional*):
            Fields of [`DiffusionGenerationConfig`] to set differently. One of an exclusive pair replaces the other:
            `max_length` the preset's `max_new_tokens`, `factor` its `threshold`.

    Returns:
        [`DiffusionGenerationConfig`]: To pass as `generation_config`, or to store in `model.generation_config`.

    Raises:
        ValueError: If there is no such preset, or an override is not a field.

    Example:

    ```python
    >>> from llada import preset

    >>> model.generate(input_ids, generation_config=preset("llada", max_new_tokens=64, steps=64, block_length=32))
    ```
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {sorted(PRESETS)}.")
    settings = {field: DEFAULTS.get(field) for field in DiffusionGenerationConfig.field_names() - _NOT_SAMPLING}
    overlay(settings, PRESETS[name])
    if overrides.get("temperature") is not None and "do_sample" not in overrides:
        del settings["do_sample"]
    overlay(settings, overrides)
    return DiffusionGenerationConfig(**settings)


__all__ = ["preset"]
