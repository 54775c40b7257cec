"""What the configurations of all families share: two vocabularies for the same fields, rope settings, `auto_map`."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# rope types whose frequencies depend on the length the checkpoint was trained at
_LENGTH_AWARE_ROPE_TYPES = ("llama3", "longrope", "yarn")


@strict
class MaskedDiffusionConfig(PreTrainedConfig):
    """
    Base class of the configurations of masked diffusion language models.

    A published checkpoint stores its own key names (`d_model`, `n_heads`, ...). They stay the real attributes, so that
    `config.json` keeps them, and `attribute_map` makes the standard names (`hidden_size`, `num_attention_heads`, ...)
    read and write the same values. Constructors accept either vocabulary.

    Subclasses declare `rope_theta` and `rope_scaling` as fields, the two keys that published code reads. What
    transformers' rope utilities read, `rope_parameters`, is a view of both.

    Raises:
        ValueError: If a field is given under both of its names with different values, or no model can be built.
    """

    rope_theta: int | float = 10000.0
    rope_scaling: dict | None = None

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
        for standard, published in self.attribute_map.items():
            if standard in kwargs:
                setattr(self, published, kwargs.pop(standard))
        self.derive_fields()
        super().__post_init__(**kwargs)
        # the validation after construction runs this again, but hides the ValueError in an error of its own
        self.validate_architecture()

    def derive_fields(self) -> None:
        """Fills in fields that default to a function of other fields."""

    def validate_architecture(self) -> None:
        """Refuses what no model can be built from."""

        def given(name: str) -> str:
            return f"`{self.attribute_map.get(name, name)}={getattr(self, name)!r}`"

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
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"{given('hidden_act')} is not an activation of transformers; LLaDA uses 'silu'.")
        rope_types = ("default", *sorted(ROPE_INIT_FUNCTIONS))
        if self.rope_parameters["rope_type"] not in rope_types:
            raise ValueError(
                f"{given('rope_scaling')} names an unknown `rope_type`; choose from {', '.join(rope_types)}."
            )
        for name in ("attention_dropout", "embedding_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{given(name)} is a probability: give a value from 0 up to, not including, 1.")

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """`dict[str, Any]`: The rope settings as transformers' rope utilities read them."""
        parameters = {"rope_type": "default", "rope_theta": self.rope_theta, **(self.rope_scaling or {})}
        parameters["rope_type"] = parameters.pop("type", parameters["rope_type"])
        if parameters["rope_type"] in _LENGTH_AWARE_ROPE_TYPES:
            parameters.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        return parameters

    @rope_parameters.setter
    def rope_parameters(self, parameters: dict[str, Any]) -> None:
        scaling = dict(parameters)
        self.rope_theta = scaling.pop("rope_theta", None) or self.rope_theta
        self.rope_scaling = scaling if scaling.get("rope_type", "default") != "default" else None

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("_published_torch_dtype", None)
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


__all__ = ["MaskedDiffusionConfig"]
