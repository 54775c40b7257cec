"""Named settings of published samplers. A preset is a plain config: print it, change it, save it."""

from .configuration_diffusion import DiffusionGenerationConfig


PRESETS = {
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
}


def preset(name: str, **overrides) -> DiffusionGenerationConfig:
    """
    The settings of a published sampler.

    | name | sampler |
    |---|---|
    | `"llada"` | the authors' sampler, token for token (arXiv 2502.09992; `generate.py` of ML-GSAI/LLaDA) |

    Args:
        name (`str`):
            Name of the preset.
        overrides (`dict[str, Any]`, *optional*):
            Fields of [`DiffusionGenerationConfig`] to set differently.

    Returns:
        [`DiffusionGenerationConfig`]: To pass as `generation_config`, or to store in `model.generation_config`.

    Raises:
        ValueError: If there is no such preset, or an override is not a field.

    Example:

    ```python
    >>> from llada.generation import preset

    >>> model.generate(input_ids, generation_config=preset("llada", max_new_tokens=64, steps=64, block_length=32))
    ```
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {sorted(PRESETS)}.")
    settings = dict(PRESETS[name])
    if "max_denoising_steps" in overrides:
        settings.pop("steps", None)
    if "temperature" in overrides and "do_sample" not in overrides:
        settings.pop("do_sample", None)
    return DiffusionGenerationConfig(**{**settings, **overrides})


__all__ = ["preset"]
