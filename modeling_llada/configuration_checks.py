"""What a key of a configuration may hold: its type by the annotation of the field, its range by one table."""

import types
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Union, get_args, get_origin

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


# keys that transformers, trl and tokenizers read from every configuration; its annotations are not evaluated
SHARED_KEYS: dict[str, Any] = {
    "architectures": list[str] | None,
    "attn_implementation": str | dict | None,
    "auto_map": dict | None,
    "chunk_size_feed_forward": int,
    "dtype": str | torch.dtype | None,
    "experts_implementation": str | dict | None,
    "id2label": dict | None,
    "is_encoder_decoder": bool,
    "label2id": dict | None,
    # may be a `Path`
    "name_or_path": Any,
    "num_labels": int,
    "output_attentions": bool | None,
    "output_hidden_states": bool | None,
    "problem_type": str | None,
    "quantization_config": Any,
    "return_dict": bool | None,
    "tokenizer_class": str | None,
    "torch_dtype": str | torch.dtype | None,
    "transformers_version": str | None,
}
# published duplicates of fields, which are checked against them
_DUPLICATES: dict[str, Any] = {"embedding_size": int | None, "head_dim": int | None, "rotary_dim": int | None}

_WIDTHS = (
    "d_model dense_intermediate_size embedding_size expert_intermediate_size head_dim hidden_size intermediate_size "
    "max_position_embeddings max_sequence_length mlp_hidden_size mlp_ratio moe_intermediate_size rotary_dim vocab_size"
)
_COUNTS = "n_heads n_kv_heads n_layers num_attention_heads num_experts num_experts_per_tok num_hidden_layers"
_LENIENT = (
    "block_group_size block_size chunk_size_feed_forward expert_capacity first_k_dense_replace n_group num_labels "
    "num_shared_experts router_num_group router_topk_group shared_expert_intermediate_size topk_group"
)
# smallest and largest value, and whether the smallest is one of them
_RANGES: dict[str, tuple[float, float, bool]] = {
    **dict.fromkeys(_WIDTHS.split(), (1, 2**31 - 1, True)),
    **dict.fromkeys([*_COUNTS.split(), "num_key_value_heads"], (1, 2**16, True)),
    **dict.fromkeys(_LENIENT.split(), (0, 2**16, True)),
    **dict.fromkeys(("init_std", "initializer_range"), (0, 1e3, True)),
    **dict.fromkeys(("router_aux_loss_coef", "router_z_loss_coef"), (0, 1e9, True)),
    "rms_norm_eps": (0, 1, False),
    "rope_theta": (0, 1e30, False),
    "routed_scaling_factor": (0, 1e6, False),
}
_PROBABILITIES = ("attention_dropout", "embedding_dropout", "output_dropout", "resid_pdrop", "residual_dropout")
_NAMES: dict[Any, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a finite number",
    int: "a whole number",
    str: "a string",
    torch.dtype: "a dtype of torch",
    type(None): "null",
}


def _types(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    annotated = {field.name: field.type for field in fields(config_class) if not isinstance(field.type, str)}
    return _DUPLICATES | SHARED_KEYS | annotated


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        # not NaN, not infinite, and no integer that is no float
        return isinstance(value, int | float) and -1e300 < value < 1e300
    if kind is int:
        return isinstance(value, int) and abs(value) < 2**63
    return isinstance(value, kind)


def _described(kinds: Iterable[Any]) -> str:
    names = []
    for kind in kinds:
        if get_origin(kind) is list:
            names.append(f"a list, each {_NAMES[get_args(kind)[0]]}")
        elif kind is not int or float not in kinds:
            names.append(_NAMES[kind])
    return " or ".join(names)


def check_key(config_class: type[PreTrainedConfig], name: str, value: Any) -> None:
    """
    Refuses a value that the key of a configuration cannot have, whatever the others are.

    Args:
        config_class (`type`):
            The configuration.
        name (`str`):
            The key, under either of its names. One that is none of the configuration may have any value.
        value (`Any`):
            Its value.

    Raises:
        ValueError: If the value has another type, is not finite or out of range. Names the key and what to write.
    """
    field = config_class.attribute_map.get(name, name)
    known = _types(config_class)
    if field not in known:
        return
    kinds = _alternatives(known[field])
    if not any(_fits(value, kind) for kind in kinds):
        raise ValueError(f"`{name}={value!r}` is of the wrong type; write {_described(kinds)}.")
    if field in ("dtype", "torch_dtype") and isinstance(value, str):
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"`{name}={value!r}` is no dtype of torch; write one such as 'bfloat16', or null.")
    if field == "is_encoder_decoder" and value:
        raise ValueError(f"`{name}={value!r}`, but the model has no encoder; write false.")
    if field in ("hidden_act", "activation_type") and value not in ACT2FN:
        raise ValueError(f"`{name}={value!r}` is not an activation of transformers; LLaDA uses 'silu'.")
    if field in _PROBABILITIES and not 0 <= value < 1:
        raise ValueError(f"`{name}={value!r}` is a probability: write a value from 0 up to, not including, 1.")
    if field in ("attn_implementation", "experts_implementation") and isinstance(value, dict):
        if not all(_fits(part, str | None) for part in value.values()):
            raise ValueError(f"`{name}={value!r}` must name an implementation for every part; write strings or null.")
    if field == "quantization_config" and not (value is None or isinstance(value, dict) or hasattr(value, "to_dict")):
        raise ValueError(f"`{name}={value!r}` is of the wrong type; write an object or null.")
    if field == "auto_map":
        # tokenizers have a slow and a fast class, either of which may be null
        for target in (value or {}).values():
            if not all(_fits(part, str | None) for part in (target if isinstance(target, list) else [target])):
                raise ValueError(f"`auto_map={value!r}` must name a class, or a list of classes, for every key.")
    if field == "id2label" and value and not all(str(key).isdecimal() for key in value):
        raise ValueError(f"`{name}={value!r}` must have whole numbers as keys.")
    if field in _RANGES and isinstance(value, int | float):
        low, high, included = _RANGES[field]
        if not (low <= value if included else low < value) or value > high:
            raise ValueError(
                f"`{name}={value!r}` is out of range; write a value {'from' if included else 'above'} {low}, at most "
                f"{high}."
            )


def check_rope_settings(name: str, settings: Any) -> None:
    """
    Refuses rope settings that are no flat object of a type and numbers.

    Args:
        name (`str`):
            The key that has them, for the message.
        settings (`Any`):
            Its value.

    Raises:
        ValueError: If they are something else.
    """
    if not isinstance(settings, dict):
        raise ValueError(
            f"`{name}={settings!r}` is of the wrong type; write an object such as "
            '{"rope_type": "linear", "factor": 2.0}, or null.'
        )
    for key, value in settings.items():
        if key == "original_max_position_embeddings":
            is_right, wanted = _fits(value, int) and value > 0, "a whole number above 0"
        else:
            kinds = (str, type(None)) if key in ("rope_type", "type") else (float, bool, type(None))
            is_right, wanted = any(_fits(value, kind) for kind in kinds), _described(kinds)
        if not is_right:
            raise ValueError(f"`{name}[{key!r}]` is {value!r}; write {wanted}. All layers share the settings.")


__all__ = ["SHARED_KEYS", "check_key", "check_rope_settings"]
