"""Reading the arguments of `generate` and `infill`: settings, inputs, and parts of the caller's own."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import GenerationConfig

from .configuration_diffusion import DiffusionGenerationConfig, overlay, read_temperature, refuse_unknown, settings_of
from .denoising import Listener
from .rules import RULES
from .rules.revision import Revision
from .rules.selection import Selector
from .stored_settings import refuse_stored


# arguments of `GenerationMixin.generate` that cannot work here -> why
REFUSED_ARGUMENTS = {
    "assistant_model": "speculative decoding drafts left to right, which a mask predictor does not do",
    "assistant_tokenizer": "speculative decoding drafts left to right, which a mask predictor does not do",
    "custom_generate": "sampling is part of this model; give it a `selector`, a `revision` or `listeners` of your "
    "own, or build a loop from `llada.generation.denoising.denoise`",
    "decoder_input_ids": "pass the sequence with its masks to `infill`",
    "inputs_embeds": "tokens are replaced in every step, so give `input_ids`",
    "negative_prompt_attention_mask": "guidance masks the prompt, there is no negative prompt",
    "negative_prompt_ids": "guidance masks the prompt, there is no negative prompt",
    "position_ids": "positions are counted over the canvas; give `attention_mask` for padding",
    "prefix_allowed_tokens_fn": "it needs a finished prefix; pass a `LogitsProcessor`, it gets the text on the left",
    "synced_gpus": "the number of forward passes differs between processes; gather the parameters first",
    "token_type_ids": 'there are none; set `tokenizer.model_input_names = ["input_ids", "attention_mask"]`',
}

# what is given beside settings
INPUTS = (
    "input_ids",
    "attention_mask",
    "tokenizer",
    "cache",
    "past_key_values",
    "token_frequencies",
    "selector",
    "revision",
    "listeners",
    "generator",
)

# a part of the caller's own -> its class, and the question that it answers instead of a rule
_PARTS = {
    "selector": (Selector, "how many predictions a step keeps"),
    "revision": (Revision, "what becomes of kept predictions"),
}


def read_arguments(
    model: Any, inputs: torch.Tensor | None, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[DiffusionGenerationConfig, dict[str, Any]]:
    """Separates settings from inputs, merges the settings, and checks both."""
    for name, reason in REFUSED_ARGUMENTS.items():
        value = kwargs.pop(name, None)
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is not supported: {reason}.")
    refuse_unknown(kwargs, INPUTS)
    given = {name: kwargs.pop(name) for name in INPUTS if name in kwargs}
    replaced = check_parts(given, kwargs)
    if inputs is not None and given.get("input_ids") is not None:
        raise ValueError("Give the tokens once, either first or as `input_ids`.")
    given["input_ids"] = inputs if inputs is not None else given.get("input_ids")
    if (older := given.pop("past_key_values", None)) is not None:
        if given.get("cache") is not None:
            raise ValueError("Give the cache once, as `cache`; `past_key_values` is its older name.")
        given["cache"] = older
    config = merge_settings(model, generation_config, kwargs, replaced)
    if given.get("generator") is not None and config.rng_compat is not None:
        raise ValueError(
            f"`generator` gives each row draws of its own, and `rng_compat={config.rng_compat!r}` the draws of the "
            "authors' sampler; leave out one of them, and seed the latter with `torch.manual_seed`."
        )
    check_inputs(model, config, given)
    if config.num_return_sequences and config.num_return_sequences > 1:
        for name in ("input_ids", "attention_mask"):
            if given.get(name) is not None:
                given[name] = given[name].repeat_interleave(config.num_return_sequences, dim=0)
    return config, given


def merge_settings(
    model: Any, generation_config: GenerationConfig | None, kwargs: dict[str, Any], replaced: Iterable[str] = ()
) -> DiffusionGenerationConfig:
    """
    Keyword arguments go before a passed config, that before the model's, that before the defaults. What is `replaced`
    by a part that was given is off.
    """
    read_temperature(kwargs)
    merged: dict[str, Any] = {}
    for config in (
        DiffusionGenerationConfig.from_model_config(model.config),
        model.generation_config,
        generation_config,
    ):
        if config is not None:
            overlay(merged, settings_of(config))
    merged |= dict.fromkeys(replaced)
    overlay(merged, kwargs)
    try:
        return DiffusionGenerationConfig.from_dict(merged)
    except (TypeError, ValueError):
        # settings that cannot work do not keep a checkpoint from loading, see `read_stored_settings`
        refuse_stored(model.generation_config)
        raise


def check_inputs(model: Any, config: DiffusionGenerationConfig, given: dict[str, Any]) -> None:
    tokens, attention_mask = given["input_ids"], given.get("attention_mask")
    if tokens is None or tokens.ndim != 2 or 0 in tokens.shape:
        shape = None if tokens is None else tuple(tokens.shape)
        start = "" if config.bos_token_id is None else f" ({config.bos_token_id})"
        raise ValueError(
            f"`input_ids` must hold at least one token per row, shape `(batch, length)`, but is {shape}. For text "
            f"out of nothing give a start token{start}."
        )
    given["input_ids"] = tokens.long()
    if attention_mask is not None:
        if attention_mask.shape != tokens.shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)} and `input_ids` "
                f"{tuple(tokens.shape)}; give one 0 (padding) or 1 (token) per position."
            )
        given["attention_mask"] = attention_mask = attention_mask.long()
        if not attention_mask.any(1).all():
            raise ValueError("A row of `attention_mask` is all padding; leave the row out.")
        change = attention_mask.diff(dim=1)
        if ((change < 0).cumsum(1).bool() & (change > 0)).any():
            raise ValueError(
                "`attention_mask` has a hole: a 0 between tokens of a row. It marks padding, which stands before "
                "or behind the text; take the tokens out of the row."
            )
        if attention_mask.all():
            # attention without a mask has faster kernels
            given["attention_mask"] = None
    else:
        model.warn_if_padding_and_no_attention_mask(tokens[:, :1], None)
    if config.mask_token_id is None:
        raise ValueError("The model has no mask token; set `model.config.mask_token_id` or pass `mask_token_id`.")
    given["mask_token_id"] = config.mask_token_id
    check_ids(model, config, tokens)
    if config.suppress_eos and not config.eos_token_ids:
        raise ValueError(f"`suppress_eos={config.suppress_eos!r}` needs `eos_token_id`.")
    if config.stop_strings and given.get("tokenizer") is None:
        raise ValueError("`stop_strings` needs the tokenizer; pass `tokenizer=`.")


def check_ids(model: Any, config: DiffusionGenerationConfig, tokens: torch.Tensor) -> None:
    """No id is beyond the vocabulary, and the mask means nothing else."""
    size = model.config.vocab_size
    named: dict[str, list] = {"eos_token_id": config.eos_token_ids}
    for name in ("mask_token_id", "pad_token_id", "delete_token_id", "split_token_id"):
        named[name] = [] if getattr(config, name) is None else [getattr(config, name)]
    for name, ids in named.items():
        if not all(isinstance(token, int) and 0 <= token < size for token in ids):
            raise ValueError(f"`{name}` is {ids}, and the vocabulary has the ids 0 to {size - 1}.")
        if name != "mask_token_id" and config.mask_token_id in ids:
            raise ValueError(
                f"`{name}` and `mask_token_id` are both {config.mask_token_id}, so that what is decided looks "
                "undecided; give them different ids."
            )
    low, high = tokens.aminmax()
    if low < 0 or high >= size:
        raise ValueError(
            f"`input_ids` holds ids from {int(low)} to {int(high)}, and the vocabulary has the ids 0 to "
            f"{size - 1}. Is it the tokenizer of this model?"
        )


def check_length(
    model: Any,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_new_tokens: int = 0,
    multiple_of: int = 1,
) -> None:
    """Before anything as long is made."""
    padding = 0 if attention_mask is None else int((attention_mask.cumsum(1) == 0).sum(1).min())
    length = tokens.shape[1] - padding + num_new_tokens
    length += -length % multiple_of
    if length > model.config.longest_text:
        whole = f" in whole blocks of {multiple_of}" if multiple_of > 1 else ""
        raise ValueError(
            f"The canvas has {length} positions{whole}, more than the {model.config.longest_text} "
            "the model was trained for; shorten the prompt or lower `max_new_tokens`."
        )


def check_parts(given: dict[str, Any], kwargs: dict[str, Any]) -> list[str]:
    """
    Checks the parts that a caller gave.

    Args:
        given (`dict[str, Any]`):
            What was given beside settings.
        kwargs (`dict[str, Any]`):
            The settings that were given.

    Returns:
        `list[str]`: The settings whose rules the parts replace.

    Raises:
        ValueError: If a part is none, or a setting was given that says the same.
    """
    replaced: list[str] = []
    for name, (kind, question) in _PARTS.items():
        part = given.get(name)
        if part is None:
            continue
        if not isinstance(part, kind):
            raise ValueError(
                f"`{name}` must be a `llada.generation.{kind.__name__}`, but is {part!r}; give an object of a class "
                "derived from it."
            )
        rules = [rule for rule in RULES if question in rule.decides]
        switches = {switch for rule in rules for switch in rule.switches}
        rules += [rule for rule in RULES if rule.refines in switches]
        if name == "selector":
            rules += [rule for rule in RULES if "plans_steps" in rule.traits]
        replaced += [field for rule in rules for field in rule.fields.declared() if field not in replaced]
        both = [field for field in replaced if kwargs.get(field) is not None]
        if both:
            raise ValueError(f"`{name}` and `{both[0]}` each say {question}; give one of them.")
    listeners = given.get("listeners")
    if listeners is not None and not all(isinstance(listener, Listener) for listener in listeners):
        raise ValueError(
            f"`listeners` must hold objects of classes derived from `llada.generation.Listener`, but is {listeners!r}."
        )
    return [field for field in replaced if field not in kwargs]


__all__ = ["INPUTS", "REFUSED_ARGUMENTS", "check_inputs", "check_length", "merge_settings", "read_arguments"]
