"""The settings of one call of `generate` or `infill`, saved with a checkpoint in `generation_config.json`."""

import textwrap
from functools import cache
from numbers import Real
from typing import Any

from transformers import GenerationConfig

from .foreign_settings import name_unknown, refuse_autoregressive
from .rule import Fields, Setting, setting
from .rules import RULES, RuleSettings, settings
from .validity import check_combinations


# fields that say how many predictions a step keeps: at most one
SELECTIONS = tuple(
    name for rule in RULES if "how many predictions a step keeps" in rule.decides for name in rule.switches
)

# setting one of a group replaces the others, where they come from a weaker source
EXCLUSIVE = (
    ("steps", "max_denoising_steps"),
    ("max_new_tokens", "max_length"),
    ("cfg_scale", "guidance_scale"),
    SELECTIONS,
)


class LoopSettings(Fields):
    """The fields that belong to no rule."""

    block_length: int | None = setting(
        int,
        "Blocks of this many tokens are finished one after the other (semi-autoregressive remasking). A value of at "
        "least `max_new_tokens` gives the pure diffusion of the paper, one block.",
        default=32,
        least=1,
    )
    confidence_dtype: str | None = setting(
        str,
        '`"float32"` or `"float64"`, the precision of confidences. float32 by default.',
        choices=("float32", "float64"),
    )
    cfg_scale: float | None = setting(
        float,
        "Strength w of unsupervised classifier-free guidance (Eq. 16): logits of the model, plus w times their "
        "difference to those with the given text masked. Doubles the rows of a forward pass. `guidance_scale`, with 1 "
        "for off as elsewhere in transformers, is understood as w + 1.",
        default=0.0,
        least=0,
    )
    eos_early_stop: bool | None = setting(
        bool,
        "Whether a row is finished once an end-of-text token is committed and nothing before it is masked. What "
        "follows is not computed. `generate` ends with the longest row of the batch, what follows in others reads "
        "`pad_token_id`. `False` returns the whole canvas.",
        default=True,
    )
    mask_token_id: int | None = setting(
        int, "Id of the mask token, `config.mask_token_id` of the model by default.", least=0
    )
    output_trace: bool | None = setting(
        bool,
        "Whether the output holds a [`~llada.generation.listeners.trace.Trace`] of every step. Implies "
        "`return_dict_in_generate`.",
    )
    trace_top_k: int | None = setting(
        int,
        "How many of the likeliest tokens the trace keeps for each position that a step writes, with their "
        "probabilities. None by default. Every step then waits for the device once more.",
        least=1,
    )


# every field that a GenerationConfig does not have
SETTINGS: dict[str, Setting] = LoopSettings.declared() | settings()

# what `generate` runs with where neither the call nor the checkpoint says anything
DEFAULTS = {
    "max_new_tokens": 128,
    "do_sample": False,
    "remasking": "low_confidence",
    "max_post_steps": SETTINGS["max_post_steps"].default,
    **{name: field.default for name, field in LoopSettings.declared().items() if field.default is not None},
}

# the same for models with block-causal attention, after the model card of LLaDA2.0
BLOCK_CAUSAL_DEFAULTS = {"threshold": 0.95, "kv_cache": "block"}

# fields of a GenerationConfig that are numbers -> what they may be here
STOCK = {
    "epsilon_cutoff": Setting(float, "probability below which a token is not drawn"),
    "eta_cutoff": Setting(float, "the same, relative to the entropy"),
    "guidance_scale": Setting(float, "guidance, 1 for off", least=1),
    "max_length": Setting(int, "length with the prompt", least=1),
    "max_new_tokens": Setting(int, "length without", least=1),
    "max_time": Setting(float, "seconds"),
    "min_length": Setting(int, "length with the prompt", least=0),
    "min_new_tokens": Setting(int, "length without", least=0),
    "min_p": Setting(float, "probability relative to the likeliest token"),
    "no_repeat_ngram_size": Setting(int, "tokens that occur together once", least=0),
    "num_return_sequences": Setting(int, "rows for each prompt", least=1),
    "repetition_penalty": Setting(float, "divisor of logits"),
    "temperature": Setting(float, "of the draw, 0 for none", least=0, divides=True),
    "top_h": Setting(float, "share of the entropy"),
    "top_k": Setting(int, "tokens that may be drawn", least=0),
    "top_p": Setting(float, "probability of the tokens that may be drawn"),
    "typical_p": Setting(float, "the same, the most typical first"),
}


class DiffusionGenerationConfig(LoopSettings, RuleSettings, GenerationConfig):
    r"""
    Settings of [`LLaDAGenerationMixin.generate`] and [`LLaDAGenerationMixin.infill`]: a
    [`~transformers.GenerationConfig`] with the fields of masked diffusion sampling (arXiv 2502.09992, Algorithms 4 and
    5). A field that is not given takes its value from the generation config of the model, or from the defaults below;
    `None` switches it off.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128):
            Number of masks put after the prompt.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether tokens are drawn, by the Gumbel-max trick in float64, or the likeliest ones are taken.
        temperature (`float`, *optional*):
            Temperature of the draw. Given without `do_sample`, a positive value means `do_sample=True`, and 0 means
            `do_sample=False`, as in the authors' sampler. The confidence of a token is its probability before
            temperature, top-k and top-p.
        eos_token_id (`int` or `list[int]`, *optional*):
            Ids that end the text. The first is the end of text, others, e.g. the end of a turn, may follow.
        compile_config ([`~transformers.CompileConfig`], *optional*):
            Compiles the forward passes with these settings, unless `disable_compile=True`. The first call takes
            minutes on a large model; rows that are done stay in the batch. For `kv_cache` None, `"dual"` and
            `"block"`; with `"prefix"` the shapes change with every block.
        {fields}
        kwargs (`dict[str, Any]`, *optional*):
            Fields of [`~transformers.GenerationConfig`]: `top_k`, `top_p`, `repetition_penalty`, `stop_strings`,
            `num_return_sequences`, `bad_words_ids`, ...

    Raises:
        ValueError: If a field is unknown, has a value out of range, or belongs to a way of decoding that cannot work
            on a mask predictor (beams, caches, speculative decoding).

    Example:

    ```python
    >>> from llada import DiffusionGenerationConfig

    >>> config = DiffusionGenerationConfig(max_new_tokens=64, block_length=16, max_denoising_steps=8)
    >>> config.temperature = 0.5
    ```
    """

    def __init__(self, **kwargs):
        read_temperature(kwargs)
        switched_off = {name for name, value in kwargs.items() if value is None}
        for name in SETTINGS:
            setattr(self, name, kwargs.pop(name, None))
        if not kwargs.get("_from_model_config"):
            refuse_unknown(kwargs)
        super().__init__(**kwargs)
        # a `None` that somebody wrote is not a field that nobody set
        self._switched_off: set[str] = switched_off

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_switched_off" in vars(self) and not name.startswith("_"):
            (self._switched_off.discard, self._switched_off.add)[value is None](name)

    @staticmethod
    @cache
    def field_names() -> frozenset[str]:
        """`frozenset[str]`: The names of all fields, those of `GenerationConfig` included."""
        config = DiffusionGenerationConfig(_from_model_config=True)
        return frozenset(name for name in vars(config) if not name.startswith("_"))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs):
        """
        Builds a config from a dictionary. Entries of the dictionary that are no fields are kept as attributes, so that
        a published `generation_config.json` is saved back complete.

        Args:
            config_dict (`dict[str, Any]`):
                The values, e.g. read from `generation_config.json`.
            return_unused_kwargs (`bool`, *optional*, defaults to `False`):
                Whether to return the keyword arguments that are no fields as well.
            kwargs (`dict[str, Any]`, *optional*):
                Fields that replace those of the dictionary.
        """
        names = cls.field_names()
        values = {**config_dict, **kwargs}
        config = cls(
            **{name: value for name, value in values.items() if name in names or name == "_from_model_config"}
        )
        for name, value in config_dict.items():
            if name not in names and not name.startswith("_") and not values.get("_from_model_config"):
                setattr(config, name, value)
        unused = {name: value for name, value in kwargs.items() if name not in names}
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_model_config(cls, model_config) -> "DiffusionGenerationConfig":
        """The defaults, with the special tokens of a model configuration."""
        return cls().with_defaults(model_config)

    def with_defaults(self, model_config) -> "DiffusionGenerationConfig":
        """Fills what is unset from the special tokens of `model_config` and from the defaults, and returns itself."""
        tokens = (
            "mask_token_id",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "delete_token_id",
            "split_token_id",
        )
        weaker = {**DEFAULTS, **(BLOCK_CAUSAL_DEFAULTS if getattr(model_config, "block_causal", False) else {})}
        for pair in EXCLUSIVE:
            if any(getattr(self, name) is not None for name in pair):
                weaker = {name: value for name, value in weaker.items() if name not in pair}
        if self.use_cache is False:
            weaker.pop("kv_cache", None)
        weaker = {name: value for name, value in weaker.items() if name not in self._switched_off}
        weaker |= {name: getattr(model_config, name, None) for name in tokens}
        for name, value in weaker.items():
            if value is not None and getattr(self, name) is None:
                setattr(self, name, value)
        return self

    def to_dict(self) -> dict[str, Any]:
        """What is set, and as `None` what is switched off. Fields that nobody set are left out."""
        fields, values = self.field_names(), super().to_dict()
        switched_off = values.pop("_switched_off", ())
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in fields or name in switched_off
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """
        The fields that are set and differ from those of a [`~transformers.GenerationConfig`], as they are saved. Of
        what is switched off, that which has a default.
        """
        fields, values = self.field_names(), super().to_diff_dict()
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in fields or name in DEFAULTS or name in BLOCK_CAUSAL_DEFAULTS
        }

    @property
    def guidance(self) -> float:
        """`float`: The strength w of classifier-free guidance, from `cfg_scale` or `guidance_scale`."""
        if self.guidance_scale is not None:
            return self.guidance_scale - 1.0
        return self.cfg_scale or 0.0

    @property
    def eos_token_ids(self) -> list[int]:
        """`list[int]`: `eos_token_id` as a list."""
        if self.eos_token_id is None:
            return []
        return list(self.eos_token_id) if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]

    @property
    def control_token_ids(self) -> list[int]:
        """`list[int]`: `delete_token_id` and `split_token_id`, as far as they are set."""
        return [token for token in (self.delete_token_id, self.split_token_id) if token is not None]

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """
        Checks every field and every combination that a config alone can decide.

        Args:
            strict (`bool`, *optional*, defaults to `False`):
                Whether what `GenerationConfig` only warns of is an error.
            user_set_attributes (`set[str]`, *optional*):
                The fields the caller gave, to limit those warnings to them.

        Raises:
            ValueError: With the field, its value and what to write instead.
        """
        for name, field in (SETTINGS | STOCK).items():
            field.check(name, getattr(self, name))
        for pair in EXCLUSIVE:
            both = {name: getattr(self, name) for name in pair if getattr(self, name) is not None}
            # of the two lengths transformers lets `max_new_tokens` win
            if len(both) > 1 and "max_length" not in both and pair != SELECTIONS:
                raise ValueError(f"{both} set the same thing; give one of them.")
        if len(self.control_token_ids) == 1:
            raise ValueError("`delete_token_id` and `split_token_id` belong together; give both or neither.")
        if self.rng_compat is not None and self.eos_early_stop:
            raise ValueError(
                f"`rng_compat={self.rng_compat!r}` needs the draws of the whole canvas in every step; set "
                "`eos_early_stop=False`."
            )
        if self.use_cache is False and self.kv_cache is not None:
            raise ValueError(
                f"`use_cache=False` and `kv_cache={self.kv_cache!r}` exclude each other; give one of them."
            )
        check_combinations(self)
        refuse_autoregressive(self)
        super().validate(strict=strict, user_set_attributes=user_set_attributes)


def list_settings() -> str:
    """The fields of the rules and of the loop, one after the other, for a terminal."""
    entries = []
    for name, field in SETTINGS.items():
        default = "" if field.default is None else f", {field.default} by default"
        text = textwrap.fill(field.help.replace("`", ""), 100, initial_indent="    ", subsequent_indent="    ")
        entries.append(f"{name}: {field.range}{default}\n{text}")
    return "\n".join(entries) + "\n"


def _documented() -> str:
    """The fields, as the docstring of the config has them."""
    entries = []
    for name, field in SETTINGS.items():
        default = f", defaults to `{field.default!r}`" if field.default is not None else ""
        text = textwrap.fill(field.help, 119, initial_indent=" " * 12, subsequent_indent=" " * 12)
        entries.append(f"        {name} (`{field.annotation}`, *optional*{default}):\n{text}")
    return "\n".join(entries)


DiffusionGenerationConfig.__doc__ = (DiffusionGenerationConfig.__doc__ or "").replace(
    "        {fields}", _documented()
)


def read_temperature(values: dict[str, Any]) -> None:
    """
    Lets a temperature alone say whether tokens are drawn, in place: positive means yes, 0 no.

    Raises:
        ValueError: If the temperature is 0 and `do_sample=True`.
    """
    temperature = values.get("temperature")
    if temperature is None:
        return
    if values.get("do_sample") and temperature == 0:
        raise ValueError("`temperature=0` is greedy and `do_sample=True` is not; leave out one of them.")
    is_number = isinstance(temperature, Real)
    if values.get("do_sample") is None and is_number:
        values["do_sample"] = bool(temperature > 0)
    if temperature == 0:
        values["temperature"] = None


def settings_of(config: GenerationConfig) -> dict[str, Any]:
    """What a config says. In one of transformers' own, `None` is what nobody set."""
    values = config.to_dict()
    if isinstance(config, DiffusionGenerationConfig):
        return values
    return {name: value for name, value in values.items() if value is not None}


def overlay(merged: dict[str, Any], source: dict[str, Any]) -> None:
    """
    Puts stronger settings over weaker ones, in place: one of an exclusive pair replaces the other, `None` switches
    off.
    """
    for pair in EXCLUSIVE:
        if any(source.get(name) is not None for name in pair):
            for name in pair:
                merged.pop(name, None)
    if source.get("use_cache") is False:
        merged.pop("kv_cache", None)
    elif source.get("kv_cache") is not None:
        merged.pop("use_cache", None)
    merged.update(source)


def refuse_unknown(values: dict[str, Any], also_allowed: tuple[str, ...] = ()) -> None:
    """
    Refuses names that are no fields of [`DiffusionGenerationConfig`] and not in `also_allowed`.

    Raises:
        ValueError: Naming each, with the name it probably stands for.
    """
    names = DiffusionGenerationConfig.field_names()
    unknown = [name for name in values if name not in names and name not in also_allowed and not name.startswith("_")]
    if unknown:
        raise ValueError(f"Unknown generation setting: {name_unknown(unknown, [*names, *also_allowed])}.")


__all__ = [
    "BLOCK_CAUSAL_DEFAULTS",
    "DEFAULTS",
    "EXCLUSIVE",
    "SETTINGS",
    "STOCK",
    "DiffusionGenerationConfig",
    "list_settings",
    "overlay",
    "read_temperature",
    "refuse_unknown",
    "settings_of",
]
