"""
What the configurations of all families share: two vocabularies for the same fields, rope settings, `auto_map`, and the
settings of the families with experts.
"""

import math
import os
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# rope types whose frequencies depend on the length the checkpoint was trained at
_LENGTH_AWARE_ROPE_TYPES = ("llama3", "yarn")

# rope types that turn positions by the longest text of the batch: a row would depend on the others, and a cached part
# of a canvas would be turned otherwise than the rest
_BATCH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")


@strict
class MaskedDiffusionConfig(PreTrainedConfig):
    """
    Base class of the configurations of masked diffusion language models.

    A published checkpoint stores its own key names (`d_model`, `n_heads`, ...). They stay the real attributes, so that
    `config.json` keeps them, and `attribute_map` makes the standard names (`hidden_size`, `num_attention_heads`, ...)
    read and write the same values. Constructors accept either vocabulary.

    Subclasses declare `rope_theta` and `rope_scaling` as fields, the two keys that published code reads. What
    transformers' rope utilities read, `rope_parameters`, is a view of both.

    Everything in which the families differ is an attribute that the backbone reads. What a family has no key for has
    the value it gets here.

    Raises:
        ValueError: If a field is given under both of its names with different values, or no model can be built.
    """

    # names that other projects give the family in `config.json`
    other_model_types: ClassVar[tuple[str, ...]] = ()
    # whether the family was trained with block-causal attention
    block_causal: ClassVar[bool] = False

    rope_theta: int | float = 10000.0
    rope_scaling: dict | None = None

    # not fields: a family whose files have the key declares the field
    attention_bias = mlp_bias = False
    attention_dropout = embedding_dropout = residual_dropout = 0.0
    partial_rotary_factor = 1.0
    rope_full_precision = False
    use_qk_norm = False
    float32_logits = False
    block_size = expert_capacity = None  # type: int | None

    def __new__(cls, **kwargs):
        # here and not in `__post_init__`, which cannot tell a default from a value that was given
        for standard, published in cls.attribute_map.items():
            values = (kwargs.get(standard), kwargs.get(published))
            if None not in values and values[0] != values[1]:
                raise ValueError(
                    f"`{standard}={values[0]}` and `{published}={values[1]}` name the same field of {cls.__name__}; "
                    "give one of them."
                )
        return super().__new__(cls)

    def __post_init__(self, **kwargs):
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
        self.derive_fields()
        super().__post_init__(**kwargs)
        # the validation after construction runs this again, but hides the ValueError in an error of its own
        self.validate_architecture()

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
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"{given('hidden_act')} is not an activation of transformers; LLaDA uses 'silu'.")
        self._validate_rope_scaling()
        for name in ("attention_dropout", "embedding_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{given(name)} is a probability: give a value from 0 up to, not including, 1.")

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
        if factor is None:
            return
        if rope_type == "default":
            raise ValueError(
                f'{given} has a factor and does not say of what; add `"rope_type"`, one of {", ".join(rope_types)}.'
            )
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise ValueError(f"{given} stretches texts by a factor of {factor!r}; give a number above 0.")

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
    def rope_parameters(self) -> dict[str, Any]:
        """`dict[str, Any]`: The rope settings as transformers' rope utilities read them."""
        parameters = {"rope_type": "default", "rope_theta": self.rope_theta, **(self.rope_scaling or {})}
        parameters["rope_type"] = parameters.pop("type", parameters["rope_type"])
        if self.partial_rotary_factor != 1:
            parameters["partial_rotary_factor"] = self.partial_rotary_factor
        if parameters["rope_type"] in _LENGTH_AWARE_ROPE_TYPES:
            parameters.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        return parameters

    @rope_parameters.setter
    def rope_parameters(self, parameters: dict[str, Any]) -> None:
        scaling = dict(parameters)
        self.rope_theta = scaling.pop("rope_theta", None) or self.rope_theta
        factor = scaling.pop("partial_rotary_factor", None)
        if factor not in (None, self.partial_rotary_factor):
            self.partial_rotary_factor = factor
        is_scaled = "factor" in scaling or scaling.get("rope_type", scaling.get("type", "default")) != "default"
        self.rope_scaling = scaling if is_scaled else None

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("_published_torch_dtype", None)
        if not output.get("auto_map"):
            output.pop("auto_map", None)
        return output

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

        def resolves(target: str) -> bool:
            return "--" in target or os.path.isfile(os.path.join(save_directory, target.split(".")[0] + ".py"))

        kept = {auto_class: target for auto_class, target in auto_map.items() if resolves(target)}
        try:
            del self.auto_map
            if kept:
                self.auto_map = kept
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.auto_map = auto_map


@strict
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
    accumulates_by_expert = False

    def derive_fields(self) -> None:
        super().derive_fields()
        # the files store few of these ids; those of the release mean nothing in a smaller vocabulary
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            default = getattr(type(self), name)
            if getattr(self, name) == default and default >= self.vocab_size:
                setattr(self, name, None)

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


__all__ = ["MaskedDiffusionConfig", "MixtureOfExpertsConfig"]
