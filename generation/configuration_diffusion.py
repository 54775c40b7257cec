"""The settings of one call of `generate` or `infill`, saved with a checkpoint in `generation_config.json`."""

from functools import cache
from numbers import Real
from typing import Any

from transformers import GenerationConfig

from .foreign_settings import name_unknown, refuse_autoregressive
from .validity import RULE_DEFAULTS, SELECTIONS, check_combinations, check_values


# what `generate` runs with where neither the call nor the checkpoint says anything
DEFAULTS = {
    "max_new_tokens": 128,
    "block_length": 32,
    "do_sample": False,
    "remasking": "low_confidence",
    "cfg_scale": 0.0,
    "eos_early_stop": True,
    "max_post_steps": 16,
}

# the same for models with block-causal attention, after the model card of LLaDA2.0
BLOCK_CAUSAL_DEFAULTS = {"threshold": 0.95, "kv_cache": "block"}

# setting one of a group replaces the others, where they come from a weaker source
EXCLUSIVE = (
    ("steps", "max_denoising_steps"),
    ("max_new_tokens", "max_length"),
    ("cfg_scale", "guidance_scale"),
    SELECTIONS,
)


class DiffusionGenerationConfig(GenerationConfig):
    r"""
    Settings of [`LLaDAGenerationMixin.generate`] and [`LLaDAGenerationMixin.infill`]: a
    [`~transformers.GenerationConfig`] with the fields of masked diffusion sampling (arXiv 2502.09992, Algorithms 4 and
    5). A field that is not given takes its value from the generation config of the model, or from the defaults below;
    `None` switches it off.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128):
            Number of masks put after the prompt.
        initial_length (`int`, *optional*):
            Number of masks to begin with. More are added until the model is sure that the text ends within them, but
            not more than `max_new_tokens` in all (DAEDAL, arXiv 2508.00819, which begins with 64).
        length_step (`int`, *optional*, defaults to 8):
            How many masks are added at once.
        length_threshold (`float`, *optional*, defaults to 0.5):
            How sure that is: the mean probability of an end of text at the last `length_window` positions where it is
            the likeliest token.
        length_window (`int`, *optional*, defaults to 32):
            How many positions these are. Missing ones count as 0.
        expand_threshold (`float`, *optional*):
            With `initial_length`: while a block is filled, the mask that the model is least sure of is replaced by
            several if its confidence is below this, and what follows moves, as long as the model is not sure that the
            text ends (DAEDAL, second stage, 0.1). At most one mask per step. No answer exceeds `max_new_tokens`.
        expand_factor (`int`, *optional*, defaults to 8):
            How many masks take the place of one.
        expand_end_threshold (`float`, *optional*, defaults to 0.9):
            How sure the model has to be that the text ends, measured as for `length_threshold`, an end that is already
            committed counting as 1.
        block_length (`int`, *optional*, defaults to 32):
            Blocks of this many tokens are finished one after the other (semi-autoregressive remasking). A value of at
            least `max_new_tokens` gives the pure diffusion of the paper, one block.
        max_denoising_steps (`int`, *optional*):
            Number of steps per block. One token per step if neither this nor `steps` is given.
        steps (`int`, *optional*):
            Number of steps in all, the paper's parameter, shared out over the blocks. The first blocks get one more
            if it does not divide. Excludes `max_denoising_steps`.
        remasking (`str`, *optional*, defaults to `"low_confidence"`):
            Which predictions of a step are kept first: those with the highest probability, `"margin"` those with the
            largest distance to the second token, `"entropy"` those with the lowest entropy, or `"random"` ones.
            `"position_calibrated"` prefers positions near the start of the block and tokens that are rare in ordinary
            text; `generate` is given their `token_frequencies` (PC-Sampler, arXiv 2508.13021).
        position_decay (`float`, *optional*, defaults to 0.25):
            How fast scores of `remasking="position_calibrated"` fall with the distance from the start of the block.
        frequency_cap (`float`, *optional*, defaults to 10.0):
            The largest of these scores at the start.
        threshold (`float`, *optional*):
            Keeps every prediction of a step whose confidence reaches this, and at least one (Fast-dLLM, arXiv
            2505.22618), or the share of a step if `max_denoising_steps` or `steps` is given. 0.95 by default for
            models with block-causal attention, where it must be exceeded (LLaDA2.0, arXiv 2512.15745).
        factor (`float`, *optional*):
            Instead of `threshold`: keeps the n best predictions, for the largest n with (n + 1)(1 - confidence of the
            n-th) < `factor` (Fast-dLLM, Theorem 1, which proves 1.0).
        factor_compat (`str`, *optional*):
            `"fast_dllm"` counts as Fast-dLLM's code does, which keeps one more where that is the last of a block.
        frechet_margin (`float`, *optional*):
            Instead of `threshold`: keeps the n best predictions as long as the probability that all are right exceeds
            that of the last one being wrong by this margin, both bounded by Fréchet (arXiv 2606.02955).
        entropy_bound (`float`, *optional*):
            Instead of `threshold`: keeps the best predictions as long as their entropies, without the largest, sum up
            to at most this many nats (EB-Sampler, arXiv 2505.24857). Ranked by `remasking`.
        low_threshold (`float`, *optional*):
            With `threshold`: of every run of neighbouring masks the best prediction is kept, too, if it is surer than
            this (hierarchical decoding, dInfer, arXiv 2510.08666).
        threshold_relaxation (`float`, *optional*):
            With `threshold`: lowers it by up to this share as the masks of the block are filled (Streaming-dLLM,
            arXiv 2601.17917).
        kl_threshold (`float`, *optional*):
            With `threshold`: keeps only predictions whose distribution has moved by less than this many nats since the
            step before, in each of the last `kl_history` steps, and the share of a step where there are none (KLASS,
            arXiv 2511.05664).
        kl_history (`int`, *optional*, defaults to 2):
            Number of these steps.
        verify_threshold (`float`, *optional*):
            With a low `threshold`: takes back the tokens of the block that the model gives less probability than this
            when they are hidden from it (WINO, arXiv 2507.18578). A forward pass computes the block twice.
        exploration_steps (`int`, *optional*):
            With `threshold`: number of steps that look how far the text is clear before that span is filled (SlowFast
            sampling, arXiv 2506.10848; 6 in its code).
        span_threshold (`float`, *optional*, defaults to 0.3):
            Confidence up to which the text is clear in SlowFast sampling.
        span_window (`int`, *optional*, defaults to 2):
            Number of estimates of the span that are compared.
        span_deviation (`float`, *optional*, defaults to 1.0):
            Standard deviation of these estimates below which the span is found.
        span_stops_early (`bool`, *optional*, defaults to `False`):
            Whether exploring ends there, as in the paper, or takes all its steps, as in its code.
        credit_weight (`float`, *optional*):
            Raises the logits of what was the likeliest token of a position in earlier steps, by this times the
            logarithm of one plus its credit (credit decoding, arXiv 2510.06133).
        credit_exponent (`float`, *optional*, defaults to 0.2):
            Power of the probability that the likeliest token gains as credit in a step.
        credit_decay (`float`, *optional*, defaults to 0.8):
            Share of the credit that is left after a step.
        commit_gaps (`list[float]`, *optional*):
            Keeps all predictions of a block once the mean distance between their two largest logits exceeds the bound
            for the share of the block that is filled, e.g. `[7.5, 5.0, 2.5]` for thirds (Prophet, arXiv 2508.19982).
        stable_steps (`int`, *optional*):
            Keeps all predictions of a block once the likeliest tokens at its masks have not changed for so many steps
            and their mean entropy is below `stable_entropy` (DiffusionGemma, 1).
        stable_entropy (`float`, *optional*, defaults to 0.005):
            That bound, in nats.
        step_schedule (`str`, *optional*):
            How a fixed number of steps shares out the masks. In equal parts by default; `"dream"`: by the time grid of
            Dream (arXiv 2508.15487); `"bernoulli"`: by chance, each mask for itself with the probability of that grid.
        remasking_temperature (`float`, *optional*):
            Draws the positions to keep from the softmax of their scores at this temperature (`alg_temp` of Dream).
        remask_threshold (`float`, *optional*):
            With `threshold`, `factor`, `frechet_margin` or `entropy_bound`: takes back tokens of the current block
            whose probability has fallen below this, fewer per step than it keeps.
        editing_threshold (`float`, *optional*):
            Replaces committed tokens of the current block by predictions that differ and are surer than this
            (LLaDA2.1, arXiv 2602.08676). 0 replaces all that differ, `None` none. Needs `threshold`.
        max_post_steps (`int`, *optional*, defaults to 16):
            Steps that may follow in a block after its masks are filled, to edit.
        kv_cache (`str`, *optional*):
            What is not computed again in every step. `"prefix"`: what comes before the current block; `"dual"`: what
            comes before and after (both arXiv 2505.22618, approximations that are refreshed with every block);
            `"vicinity"`: what is farther away from it than `vicinity` positions (dInfer, arXiv 2510.08666);
            `"delayed"`: tokens from the second step after they were committed, for one row (dKV-Cache, arXiv
            2505.15781);
            `"block"`: finished blocks of a model with block-causal attention, which is exact and its default.
        vicinity (`int`, *optional*, defaults to 16):
            Positions on either side of the block that `kv_cache="vicinity"` computes in every step.
        cache_warmup (`int`, *optional*):
            Steps at the beginning of a block that compute the whole canvas, with `kv_cache="vicinity"` (1 by default)
            and `"delayed"` (2).
        refresh_interval (`int`, *optional*):
            Steps of a block after which these two compute the whole canvas again: never and 8 by default.
        suffix_window (`int`, *optional*):
            Leaves out what stands farther behind the current block than this many positions, except for the last one
            of the canvas (Streaming-dLLM, arXiv 2601.17917). Goes with every cache but `"delayed"` and `"block"`.
        confidence_dtype (`str`, *optional*):
            `"float32"` or `"float64"`, the precision of confidences. float32 by default.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether tokens are drawn, by the Gumbel-max trick in float64, or the likeliest ones are taken.
        temperature (`float`, *optional*):
            Temperature of the draw. Given without `do_sample`, a positive value means `do_sample=True`, and 0 means
            `do_sample=False`, as in the authors' sampler. The confidence of a token is its probability before
            temperature, top-k and top-p.
        cfg_scale (`float`, *optional*, defaults to 0.0):
            Strength w of unsupervised classifier-free guidance (Eq. 16): logits of the model, plus w times their
            difference to those with the given text masked. Doubles the rows of a forward pass. `guidance_scale`, with
            1 for off as elsewhere in transformers, is understood as w + 1.
        suppress_eos (`str`, *optional*):
            What is done against ending too early: `"logits"` never proposes an end-of-text token, `"confidence"`
            proposes it but commits it last, `"rising"` multiplies its confidence by a weight that rises from
            `eos_weight` to 1 over the steps (arXiv 2509.23924).
        eos_weight (`float`, *optional*, defaults to 0.4):
            That weight in the first step.
        eos_early_stop (`bool`, *optional*, defaults to `True`):
            Whether a row is finished once an end-of-text token is committed and nothing before it is masked. What
            follows is not computed. `generate` ends with the longest row of the batch, what follows in others reads
            `pad_token_id`. `False` returns the whole canvas.
        eos_token_id (`int` or `list[int]`, *optional*):
            Ids that end the text. The first is the end of text, others, e.g. the end of a turn, may follow.
        mask_token_id (`int`, *optional*):
            Id of the mask token, `config.mask_token_id` of the model by default.
        delete_token_id, split_token_id (`int`, *optional*):
            Ids of the tokens by which LLaDA2.2 deletes a token and makes room before one, those of the model by
            default. With `editing_threshold`, such proposals are carried out; they are never written.
        rng_compat (`str`, *optional*):
            `"llada"` reproduces the authors' sampler draw for draw: noise is drawn for the whole canvas, also where it
            is not needed, a draw of the mask token itself leaves a position masked, which is an error at the end, and
            `suppress_eos` acts as in the published code (see [`~llada.generation.proposals.ReferenceProposer`]). Needs
            `eos_early_stop=False`.
        output_trace (`bool`, *optional*):
            Whether the output holds a [`~llada.generation.trace.Trace`] of every step. Implies
            `return_dict_in_generate`.
        compile_config ([`~transformers.CompileConfig`], *optional*):
            Compiles the forward passes with these settings, unless `disable_compile=True`. The first call takes
            minutes on a large model; rows that are done stay in the batch. For `kv_cache` None, `"dual"` and
            `"block"`; with `"prefix"` the shapes change with every block.
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
        self.initial_length: int | None = kwargs.pop("initial_length", None)
        self.length_step: int | None = kwargs.pop("length_step", None)
        self.length_threshold: float | None = kwargs.pop("length_threshold", None)
        self.length_window: int | None = kwargs.pop("length_window", None)
        self.expand_threshold: float | None = kwargs.pop("expand_threshold", None)
        self.expand_factor: int | None = kwargs.pop("expand_factor", None)
        self.expand_end_threshold: float | None = kwargs.pop("expand_end_threshold", None)
        self.block_length: int | None = kwargs.pop("block_length", None)
        self.max_denoising_steps: int | None = kwargs.pop("max_denoising_steps", None)
        self.steps: int | None = kwargs.pop("steps", None)
        self.remasking: str | None = kwargs.pop("remasking", None)
        self.position_decay: float | None = kwargs.pop("position_decay", None)
        self.frequency_cap: float | None = kwargs.pop("frequency_cap", None)
        self.threshold: float | None = kwargs.pop("threshold", None)
        self.factor: float | None = kwargs.pop("factor", None)
        self.factor_compat: str | None = kwargs.pop("factor_compat", None)
        self.frechet_margin: float | None = kwargs.pop("frechet_margin", None)
        self.entropy_bound: float | None = kwargs.pop("entropy_bound", None)
        self.low_threshold: float | None = kwargs.pop("low_threshold", None)
        self.threshold_relaxation: float | None = kwargs.pop("threshold_relaxation", None)
        self.kl_threshold: float | None = kwargs.pop("kl_threshold", None)
        self.kl_history: int | None = kwargs.pop("kl_history", None)
        self.verify_threshold: float | None = kwargs.pop("verify_threshold", None)
        self.exploration_steps: int | None = kwargs.pop("exploration_steps", None)
        self.span_threshold: float | None = kwargs.pop("span_threshold", None)
        self.span_window: int | None = kwargs.pop("span_window", None)
        self.span_deviation: float | None = kwargs.pop("span_deviation", None)
        self.span_stops_early: bool | None = kwargs.pop("span_stops_early", None)
        self.credit_weight: float | None = kwargs.pop("credit_weight", None)
        self.credit_exponent: float | None = kwargs.pop("credit_exponent", None)
        self.credit_decay: float | None = kwargs.pop("credit_decay", None)
        self.commit_gaps: list[float] | None = kwargs.pop("commit_gaps", None)
        self.stable_steps: int | None = kwargs.pop("stable_steps", None)
        self.stable_entropy: float | None = kwargs.pop("stable_entropy", None)
        self.step_schedule: str | None = kwargs.pop("step_schedule", None)
        self.remasking_temperature: float | None = kwargs.pop("remasking_temperature", None)
        self.remask_threshold: float | None = kwargs.pop("remask_threshold", None)
        self.editing_threshold: float | None = kwargs.pop("editing_threshold", None)
        self.max_post_steps: int | None = kwargs.pop("max_post_steps", None)
        self.kv_cache: str | None = kwargs.pop("kv_cache", None)
        self.vicinity: int | None = kwargs.pop("vicinity", None)
        self.cache_warmup: int | None = kwargs.pop("cache_warmup", None)
        self.refresh_interval: int | None = kwargs.pop("refresh_interval", None)
        self.suffix_window: int | None = kwargs.pop("suffix_window", None)
        self.confidence_dtype: str | None = kwargs.pop("confidence_dtype", None)
        self.cfg_scale: float | None = kwargs.pop("cfg_scale", None)
        self.suppress_eos: str | None = kwargs.pop("suppress_eos", None)
        self.eos_weight: float | None = kwargs.pop("eos_weight", None)
        self.eos_early_stop: bool | None = kwargs.pop("eos_early_stop", None)
        self.mask_token_id: int | None = kwargs.pop("mask_token_id", None)
        self.delete_token_id: int | None = kwargs.pop("delete_token_id", None)
        self.split_token_id: int | None = kwargs.pop("split_token_id", None)
        self.rng_compat: str | None = kwargs.pop("rng_compat", None)
        self.output_trace: bool | None = kwargs.pop("output_trace", None)
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

    def rule_setting(self, name: str) -> Any:
        """A finer setting of a rule, or its default."""
        value, default = getattr(self, name), RULE_DEFAULTS[name]
        if value is None:
            value = default.get(self.kv_cache) if isinstance(default, dict) else default
        return value

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
        check_values(self)
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
    if values.get("do_sample") is None and isinstance(temperature, Real):
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
    "DiffusionGenerationConfig",
    "overlay",
    "read_temperature",
    "refuse_unknown",
    "settings_of",
]
