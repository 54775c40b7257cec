"""
What the configurations of all families share: two vocabularies for the same fields, rope settings, `auto_map`, and the
settings of the families with experts.
"""

import math
import os
from collections.abc import MutableMapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_checks import SHARED_KEYS, check_key, check_rope_settings


# rope types whose frequencies depend on the length the checkpoint was trained at
_LENGTH_AWARE_ROPE_TYPES = ("llama3", "yarn")

# rope types that turn positions by the longest text of the batch: a row would depend on the others, and a cached part
# of a canvas would be turned otherwise than the rest
_BATCH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")


class Constant:
    """A property of a family that is no key of its files: what a file or a caller says of it changes nothing."""

    def __init__(self, value: Any):
        self.value = value

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, config_class: type | None = None) -> Any:
        return self.value

    def __set__(self, config: Any, value: Any) -> None:
        if value != self.value:
            raise ValueError(
                f"`{self.name}={value!r}` is no field of {type(config).__name__}, whose models have {self.value!r}; "
                "leave it out."
            )


class RopeParameters(dict[str, Any]):
    """
    The rope settings of a configuration as transformers' rope utilities read them. Changes change the configuration;
    copies are dicts of their own.

    Args:
        config ([`MaskedDiffusionConfig`]):
            The configuration.
    """

    def __init__(self, config: "MaskedDiffusionConfig"):
        super().__init__({"rope_type": "default", "rope_theta": config.rope_theta, **(config.rope_scaling or {})})
        super().__setitem__("rope_type", super().pop("type", self["rope_type"]))
        if config.partial_rotary_factor != 1:
            super().__setitem__("partial_rotary_factor", config.partial_rotary_factor)
        if self["rope_type"] in _LENGTH_AWARE_ROPE_TYPES:
            super().setdefault("original_max_position_embeddings", config.max_position_embeddings)
        self._config = config

    def __setitem__(self, key: str, value: Any) -> None:
        # transformers writes what is there already when it validates
        if key in self and self[key] == value:
            return
        super().__setitem__(key, value)
        self._config.rope_parameters = dict(self)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._config.rope_parameters = dict(self)

    def __ior__(self, other):  # type: ignore[misc]
        self.update(other)
        return self

    def __reduce__(self):
        return dict, (dict(self),)

    # those of dict would not call the two methods above
    clear = MutableMapping.clear
    pop = MutableMapping.pop
    popitem = MutableMapping.popitem
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update


class MaskedDiffusionConfig(PreTrainedConfig):
    """
    Base class of the configurations of masked diffusion language models.

    A published checkpoint stores its own key names (`d_model`, `n_heads`, ...). They stay the real attributes, so that
    `config.json` keeps them, and `attribute_map` makes the standard names (`hidden_size`, `num_attention_heads`, ...)
    read and write the same values. Constructors accept either vocabulary.

    Subclasses declare `rope_theta` and `rope_scaling` as fields, the two keys that published code reads. What
    transformers' rope utilities read, `rope_parameters`, is a view of both.

    Everything in which the families differ is an attribute that the backbone reads. What a family has no key for is a
    [`Constant`]. Keys that are no field are kept for saving, and nothing reads them.

    Raises:
        ValueError: If a field is given under both of its names with different values, has a value of the wrong type or
            out of range, or no model can be built.
    """

    # names that other projects give the family in `config.json`
    other_model_types: ClassVar[tuple[str, ...]] = ()
    # whether the family was trained with block-causal attention
    block_causal = Constant(False)

    rope_theta: int | float = 10000.0
    rope_scaling: dict | None = None

    # a family whose files have the key declares the field
    attention_bias = Constant(False)
    mlp_bias = Constant(False)
    attention_dropout = Constant(0.0)
    embedding_dropout = Constant(0.0)
    residual_dropout = Constant(0.0)
    partial_rotary_factor = Constant(1.0)
    rope_full_precision = Constant(False)
    use_qk_norm = Constant(False)
    use_qkv_bias = Constant(False)
    right_shift_logits = Constant(False)
    float32_logits = Constant(False)
    block_size = Constant(None)
    expert_capacity = Constant(None)
    output_router_logits = Constant(False)

    def __new__(cls, /, **kwargs):
        if "self" in kwargs:
            raise ValueError(
                f"`self={kwargs['self']!r}` cannot be a key of {cls.__name__}, it is how Python names the object; "
                "take it out."
            )
        # here and not in `__post_init__`, which cannot tell a default from a value that was given
        for standard, published in cls.attribute_map.items():
            values = (kwargs.get(standard), kwargs.get(published))
            if None not in values and values[0] != values[1]:
                raise ValueError(
                    f"`{standard}={values[0]}` and `{published}={values[1]}` name the same field of {cls.__name__}; "
                    "give one of them."
                )
        config = super().__new__(cls)
        if kwargs:
            config.__dict__["_given_keys"] = frozenset(kwargs)
        return config

    def __setattr__(self, name: str, value: Any) -> None:
        check_key(type(self), name, value)
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs):
        given = self.__dict__.pop("_given_keys", frozenset())
        self._published_torch_dtype = "torch_dtype" in kwargs
        # files of LLaDA-MoE say "llada", and other projects have names of their own; layouts go by that of the class
        kwargs.pop("model_type", None)
        # trl reads it from every config whose model is not part of transformers; not saved if empty
        kwargs.setdefault("auto_map", {})
        for standard, published in self.attribute_map.items():
            if standard in kwargs:
                setattr(self, published, kwargs.pop(standard))
        # what newer transformers writes instead of the two published keys
        if (parameters := kwargs.pop("rope_parameters", None)) is not None:
            self.rope_parameters = parameters
        # the files of some releases store few of these ids; those of the release mean nothing in a smaller vocabulary
        for name in self._token_ids():
            if name not in given and isinstance(getattr(self, name), int) and getattr(self, name) >= self.vocab_size:
                setattr(self, name, None)
        self.derive_fields()
        for name, value in kwargs.items():
            check_key(type(self), name, value)
        self._unread = {name: kwargs.pop(name) for name in kwargs.keys() - SHARED_KEYS.keys()}
        super().__post_init__(**kwargs)
        self.validate()

    def convert_rope_params_to_dict(self, **kwargs) -> dict[str, Any]:
        """Leaves the rope settings in their fields, where transformers would move them into one key."""
        return kwargs

    def standardize_rope_params(self) -> None:
        """Changes nothing: [`RopeParameters`] are in the form that transformers wants."""

    def _token_ids(self) -> list[str]:
        return [field.name for field in fields(self) if field.name.endswith("_token_id")]

    def validate(self) -> None:
        """Refuses what no model can be built from. Runs after construction, and before the configuration is saved."""
        self.validate_architecture()
        self.validate_output_attentions()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # or transformers would warn of another family
        if config_dict.get("model_type") in cls.other_model_types:
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    def derive_fields(self) -> None:
        """Fills in fields that default to a function of other fields."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads > 0 and self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`hidden_size={self.hidden_size}` is not a multiple of "
                    f"`num_attention_heads={self.num_attention_heads}`; change one of them or give `head_dim`."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads

    def _given(self, name: str) -> str:
        """A field as it stands in the file, for messages."""
        return f"`{self.attribute_map.get(name, name)}={getattr(self, name)!r}`"

    def _refuse_other_values(self, family: str, implemented: dict[str, tuple]) -> None:
        """Refuses published keys that ask for a path that no release uses, naming the first of the values allowed."""
        refused = [
            f"`{key}={getattr(self, key)!r}` (write {values[0]!r})"
            for key, values in implemented.items()
            if getattr(self, key) not in values
        ]
        if refused:
            raise ValueError(f"No {family} release uses, and this model does not implement: {', '.join(refused)}.")

    def validate_architecture(self) -> None:
        """Refuses what no model can be built from."""
        given = self._given
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"{given('num_attention_heads')} must be a multiple of {given('num_key_value_heads')}, both positive."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"Heads are {self.head_dim} wide, but the rotary embedding turns pairs: choose an even `head_dim`, "
                "which is the width of the model divided by the number of heads."
            )
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"{given('partial_rotary_factor')} of heads {self.head_dim} wide are {self.rotary_dim} dimensions; "
                "choose a factor above 0, at most 1, that gives an even number of them."
            )
        for name in self._token_ids():
            ids = getattr(self, name)
            for token_id in ids if isinstance(ids, list) else [ids]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(
                        f"`{name}={ids}` is not in the vocabulary of {given('vocab_size')}; write an id from 0 to "
                        f"{self.vocab_size - 1}, or null."
                    )
        self._validate_rope_scaling()

    def _validate_rope_scaling(self) -> None:
        given = self._given("rope_scaling")
        rope_type, factor = self.rope_parameters["rope_type"], self.rope_parameters.get("factor")
        if rope_type in _BATCH_DEPENDENT_ROPE_TYPES:
            raise ValueError(
                f"{given} turns positions by the longest text of the batch, so that a row would depend on the others; "
                'write `"rope_type"` "linear", "llama3" or "yarn".'
            )
        rope_types = [name for name in sorted(ROPE_INIT_FUNCTIONS) if name not in _BATCH_DEPENDENT_ROPE_TYPES]
        if rope_type not in ("default", *rope_types):
            raise ValueError(f"{given} names an unknown `rope_type`; choose from default, {', '.join(rope_types)}.")
        if factor is not None and rope_type == "default":
            raise ValueError(
                f'{given} has a factor and does not say of what; add `"rope_type"`, one of {", ".join(rope_types)}.'
            )
        if factor is not None and (
            isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf
        ):
            raise ValueError(f"{given} stretches texts by a factor of {factor!r}; give a number above 0.")
        if self.rope_scaling is not None:
            check_rope_settings("rope_scaling", self.rope_scaling)
        if rope_type == "default":
            return
        try:
            self.validate_rope()
            with torch.device("cpu"):
                frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](self)
        # what transformers raises depends on the type, and is a KeyError for a setting that is missing
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{given} gives no frequencies: {type(error).__name__}: {error}") from error
        if not frequencies.isfinite().all() or len(frequencies) != self.rotary_dim // 2 or not 0 < scaling < 1e3:
            raise ValueError(f"{given} gives frequencies that are not finite; correct it.")

    @property
    def longest_text(self) -> int:
        """`int`: How many positions a text may have: those of the training, stretched by `rope_scaling`."""
        parameters = self.rope_parameters
        trained = parameters.get("original_max_position_embeddings", self.max_position_embeddings)
        return max(self.max_position_embeddings, int(trained * parameters.get("factor", 1)))

    @property
    def rotary_dim(self) -> int:
        """`int`: How many dimensions of a head are rotated, the first ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def mlp_layer_types(self) -> list[str]:
        """`list[str]`: `"dense"` or `"sparse"` (a mixture of experts), for every layer."""
        return ["dense"] * self.num_hidden_layers

    @property
    def rope_parameters(self) -> RopeParameters:
        """[`RopeParameters`]: The rope settings as transformers' rope utilities read them."""
        return RopeParameters(self)

    @rope_parameters.setter
    def rope_parameters(self, parameters: dict[str, Any]) -> None:
        if not isinstance(parameters, dict):
            check_rope_settings("rope_parameters", parameters)
        scaling = dict(parameters)
        if (theta := scaling.pop("rope_theta", None)) is not None:
            self.rope_theta = theta
        factor = scaling.pop("partial_rotary_factor", None)
        if factor not in (None, self.partial_rotary_factor):
            self.partial_rotary_factor = factor
        is_scaled = "factor" in scaling or scaling.get("rope_type", scaling.get("type", "default")) != "default"
        if not is_scaled:
            # the validation sees what is stored
            check_rope_settings("rope_parameters", scaling)
        self.rope_scaling = scaling if is_scaled else None

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("_published_torch_dtype", None)
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        # published files have no such key
        if not output.get("block_causal"):
            output.pop("block_causal", None)
        return {**output.pop("_unread", {}), **output}

    def to_diff_dict(self) -> dict[str, Any]:
        output = super().to_diff_dict()
        # the key that published code reads, beside transformers' own `dtype`
        if self._published_torch_dtype:
            output["torch_dtype"] = output.get("dtype")
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """
        Saves the configuration to `save_directory/config.json`, under the published key names.

        An `auto_map` entry is kept if it names a repository (`"GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM"`)
        or a file that lies in `save_directory`. `save_pretrained` does not copy the Python files of a checkpoint, so
        any other entry would point to code that is not there and is left out of the file.

        Args:
            save_directory (`str` or `os.PathLike`):
                Directory to write to. Created if it does not exist.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Whether to push the configuration to the Hub after saving it.
            kwargs (`dict[str, Any]`, *optional*):
                Passed on to [`~transformers.PreTrainedConfig.save_pretrained`].
        """
        auto_map = self.__dict__.get("auto_map")
        if not auto_map:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

        def resolves(target: str | list[str | None] | None) -> bool:
            if isinstance(target, list):
                return all(map(resolves, target))
            if target is None or "--" in target:
                return True
            return os.path.isfile(os.path.join(save_directory, target.split(".")[0] + ".py"))

        kept = {auto_class: target for auto_class, target in auto_map.items() if resolves(target)}
        try:
            del self.auto_map
            if kept:
                self.auto_map = kept
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.auto_map = auto_map


class MixtureOfExpertsConfig(MaskedDiffusionConfig):
    """
    Base class of the configurations of families with experts.

    Raises:
        ValueError: If the numbers of experts, groups and experts per token do not fit each other.
    """

    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }

    # the order in which the outputs of a token's experts are added: of the experts or of their scores
    accumulates_by_expert = Constant(False)

    def validate_architecture(self) -> None:
        """Refuses experts that no router can choose from, and what no model can be built from."""
        super().validate_architecture()
        given = self._given
        experts, chosen = self.num_experts, self.num_experts_per_tok
        if not 1 <= chosen <= experts:
            raise ValueError(f"{given('num_experts_per_tok')} must be at least 1, at most {given('num_experts')}.")
        if self.expert_capacity:
            if not chosen <= self.expert_capacity <= experts:
                raise ValueError(
                    f"{given('expert_capacity')} is the number of experts that the tokens of a block share: give at "
                    f"least {given('num_experts_per_tok')}, at most {given('num_experts')}."
                )
            if not self.block_size or self.block_size < 1:
                raise ValueError(
                    f"{given('expert_capacity')} limits the experts of a block, and {given('block_size')}; give the "
                    "length of a block, which is 32 in LLaDA2.2."
                )
        elif self.n_group is not None and self.n_group > 1:
            size = experts // self.n_group
            if experts % self.n_group or size < 2:
                raise ValueError(
                    f"{given('num_experts')} must be a multiple of {given('n_group')}, at least two experts per group."
                )
            if self.topk_group is None or not 1 <= self.topk_group <= self.n_group or chosen > self.topk_group * size:
                raise ValueError(
                    f"{given('topk_group')} groups of {size} experts must be at most {given('n_group')} and hold "
                    f"{given('num_experts_per_tok')} experts."
                )


__all__ = ["Constant", "MaskedDiffusionConfig", "MixtureOfExpertsConfig", "RopeParameters"]
