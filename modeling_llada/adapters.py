"""
PEFT adapters: which layers to adapt, and adapters that were made with published code.

That of LLaDA-8B calls the layers by other names (`attn_out`, `ff_proj`, ...). The tensors of such an adapter are
renamed like those of a checkpoint, but PEFT looks for the layers that `adapter_config.json` names, finds those whose
names are the same in both (`q_proj`, ...) and says nothing about the others. So the names are translated where this
package does the loading, and refused where PEFT does.

That of LLaDA2 and LLaDA-MoE has layers that are no layers here: one matrix for queries, keys and values, and a layer
for every expert, which here are slices of parameters. Adapters of them are refused.
"""

import copy
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers.integrations import PeftAdapterMixin

from .checkpoint_layouts import FUSED, LAYOUTS, CheckpointLayout


if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig, PreTrainedModel

# every linear layer but the head; see `lora_target_modules` for families with experts
LORA_TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# fields of PEFT configurations that name modules and that `translate_adapter_config` rewrites
_TRANSLATED_FIELDS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
# the same, but not rewritten
_REFUSED_FIELDS = ("modules_to_save", "target_parameters", "trainable_token_indices", "feedforward_modules")


def _parts(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in name.split(".")}


def _only_published(layout: CheckpointLayout) -> set[str]:
    published = (layout.layers, *layout.layer_names, *layout.model_names, layout.fused_attention or "")
    return _parts(published) - _parts(("model.layers", *layout.layer_names.values(), *layout.model_names.values(), ""))


# module names that only the published code has, by family
_PUBLISHED_NAMES = {model_type: _only_published(layout) for model_type, layout in LAYOUTS.items()}
_EXPERT_LAYERS = ("gate_proj", "up_proj", "down_proj")


def lora_target_modules(config: "PreTrainedConfig") -> list[str]:
    """
    The layers that an adapter gets if its configuration names none: every linear layer but the head or, in a model
    with experts, those of attention, which all tokens pass. Experts are adapted as parameters, with
    `target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]`.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            The configuration of the model.

    Returns:
        `list[str]`: Names for `target_modules`.
    """
    return LORA_TARGET_MODULES[:4] if "sparse" in config.mlp_layer_types else LORA_TARGET_MODULES


def published_module_names(model: "PreTrainedModel") -> dict[str, str]:
    """
    What the published code calls the modules of a model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, or its backbone.

    Returns:
        `dict[str, str]`: Name in memory of every module that has another name there -> that name.
    """
    layout = LAYOUTS.get(model.config.model_type, CheckpointLayout())
    outside = {name: published for published, name in layout.model_names.items()}
    inside = {name: published for published, name in layout.layer_names.items()}
    if layout.fused_attention:
        inside |= dict.fromkeys(FUSED, layout.fused_attention)
    # a tied head is no module in the published code
    if model.config.tie_word_embeddings:
        outside.pop("lm_head", None)
    names = {}
    for name, _ in model.named_modules():
        whole = f"model.{name}" if model.base_model is model else name
        index, _, leaf = whole.removeprefix("model.layers.").partition(".")
        if whole in outside:
            names[name] = outside[whole]
        elif leaf in inside:
            names[name] = f"{layout.layers}.{index}.{inside[leaf]}"
    return names


def published_names(
    config: "PeftConfig", fields: tuple[str, ...] = _TRANSLATED_FIELDS + _REFUSED_FIELDS, model_type: str = "llada"
) -> list[str]:
    """
    The module names in an adapter's configuration that only published code has.

    Args:
        config ([`~peft.PeftConfig`]):
            The configuration of an adapter.
        fields (`tuple[str, ...]`, *optional*):
            The fields to look at. All that can name modules if not given.
        model_type (`str`, *optional*, defaults to `"llada"`):
            The family that the code is of.

    Returns:
        `list[str]`: The names, sorted. Empty for an adapter of this package.
    """
    found: set[str] = set()
    known = _PUBLISHED_NAMES.get(model_type, set())
    for field in fields:
        entries = getattr(config, field, None) or ()
        for entry in (entries,) if isinstance(entries, str) else entries:
            # names may stand in a path or in a regular expression
            found.update(known.intersection(re.findall(r"\w+", re.sub(r"\\.", " ", str(entry)))))
    return sorted(found)


def translate_adapter_config(config: "PeftConfig", model: "PreTrainedModel") -> "PeftConfig":
    """
    Make the configuration of an adapter that was made with the published LLaDA-8B code fit the model in memory.

    The layers are those that PEFT would have found in the published model. `ff_out` is the name of the
    down-projections and of the head there, so an adapter that lists it has both, and keeps both.

    Args:
        config ([`~peft.PeftConfig`]):
            The configuration, for instance of `PeftConfig.from_pretrained(adapter)`. It is not changed.
        model ([`LLaDAModelLM`]):
            The model that the adapter is for.

    Returns:
        [`~peft.PeftConfig`]: a copy with the names in memory, or `config` itself if nothing in it is published.

    Raises:
        ValueError: If a published name stands in a field that has no counterpart here, or matches no layer.
    """
    if model.config.model_type != "llada":
        _refuse_foreign_layers(config, model)
        return config
    if not published_names(config):
        return config
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    for field in _REFUSED_FIELDS:
        if names := published_names(config, (field,)):
            raise ValueError(
                f"`{field}={getattr(config, field)}` of the adapter has names of the published LLaDA code "
                f"({', '.join(names)}), which are translated in {', '.join(_TRANSLATED_FIELDS)} only. Write the names "
                "of `model.named_modules()` instead."
            )
    published = published_module_names(model)
    # a configuration may mix the two: a layer is meant if either of its names is
    adapted = {
        name: old
        for name, old in published.items()
        if check_target_module_exists(config, old) or check_target_module_exists(config, name)
    }
    if not adapted:
        raise ValueError(f"`target_modules={config.target_modules}` of the adapter match no layer of LLaDA.")

    translated = copy.deepcopy(config)
    # a short name stands for all layers that end in it, as far as all are meant
    leaves = {name.rpartition(".")[2] for name in adapted}
    whole = {leaf for leaf in leaves if all(name in adapted for name in published if name.rpartition(".")[2] == leaf)}
    translated.target_modules = whole | {name for name in adapted if name.rpartition(".")[2] not in whole}
    translated.exclude_modules = translated.layers_to_transform = translated.layers_pattern = None
    for field in ("rank_pattern", "alpha_pattern"):
        if pattern := getattr(config, field, None):
            keys = {name: get_pattern_key(pattern, old) for name, old in adapted.items()}
            setattr(translated, field, {re.escape(name): pattern[key] for name, key in keys.items() if key in pattern})
    return translated


def _refuse_foreign_layers(config: "PeftConfig", model: "PreTrainedModel") -> None:
    """Refuses layers of published code that have no counterpart in the model, which PEFT would leave out."""
    names = published_names(config, model_type=model.config.model_type)
    targets = getattr(config, "target_modules", None) or ()
    if "sparse" in model.config.mlp_layer_types and not isinstance(targets, str):
        leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        names += [name for name in _EXPERT_LAYERS if name in _parts(targets) and name not in leaves]
        names += sorted(target for target in targets if re.search(r"(^|\.)experts\.\d", target))
    if names:
        raise _foreign_layers(names, model)


def _foreign_layers(names: Iterable[str], model: "PreTrainedModel") -> ValueError:
    return ValueError(
        f"The adapter is for layers ({', '.join(names)}) that are no layers here: queries, keys and values have one "
        "each, and experts are parameters. For a new adapter write "
        f"`target_modules={lora_target_modules(model.config)}` and, for experts, "
        '`target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]`. Merge an adapter made with the '
        "published code with that code: the checkpoint it saves loads here."
    )


class PublishedAdaptersMixin(PeftAdapterMixin):
    """What models do with adapters made with published code: see the module."""

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: "PeftConfig | None" = None,
        **kwargs: Any,
    ):
        """
        Load an adapter, one that was made with the published LLaDA-8B code too.

        Args:
            peft_model_id (`str`, *optional*):
                Folder or repository of the adapter.
            adapter_name (`str`, *optional*):
                Name to load it under, `"default"` if not given.
            peft_config ([`~peft.PeftConfig`], *optional*):
                Its configuration, read from `peft_model_id` if not given.
            kwargs (`dict[str, Any]`, *optional*):
                See [`~transformers.integrations.PeftAdapterMixin.load_adapter`].

        Returns:
            `LoadStateDictInfo`: which keys were missing, unexpected or mismatched.

        Raises:
            ValueError: See [`translate_adapter_config`].
        """
        load_config = kwargs.get("load_config")
        if peft_model_id is None and load_config is not None:
            peft_model_id = load_config.pretrained_model_name_or_path
        if peft_config is None and peft_model_id is not None:
            from peft import PeftConfig

            # transformers merges these only where it reads the configuration itself
            download_kwargs = kwargs.pop("download_kwargs", None) or getattr(load_config, "download_kwargs", {})
            download_kwargs = {**download_kwargs, **(kwargs.pop("adapter_kwargs", None) or {})}
            kwargs["download_kwargs"] = download_kwargs
            peft_config = PeftConfig.from_pretrained(peft_model_id, **download_kwargs)
        if peft_config is not None:
            peft_config = translate_adapter_config(peft_config, self)
        info = super().load_adapter(peft_model_id, adapter_name, peft_config, **kwargs)
        # the configuration does not tell experts from the layers without
        if experts := sorted({name.partition(".lora_")[0] for name in info.unexpected_keys if ".experts." in name}):
            raise _foreign_layers(experts, self)
        return info

    def add_adapter(self, adapter_config: "PeftConfig", adapter_name: str | None = None) -> None:
        """
        Add a fresh adapter. Its configuration may name layers as the published LLaDA-8B code does.

        transformers 5.24 asks for peft 0.22 here, and where it saves a model that holds an adapter. `get_peft_model`,
        `PeftModel` and `from_pretrained` of an adapter work with peft 0.21.

        Args:
            adapter_config ([`~peft.PeftConfig`]):
                The configuration.
            adapter_name (`str`, *optional*):
                Name of the adapter, `"default"` if not given.
        """
        super().add_adapter(translate_adapter_config(adapter_config, self), adapter_name)

    @property
    def peft_config(self) -> dict[str, "PeftConfig"]:
        """`dict[str, PeftConfig]`: The configuration of every adapter. PEFT sets it when it has added the first."""
        try:
            return self.__dict__["peft_config"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no adapter, and so no attribute `peft_config`.") from None

    @peft_config.setter
    def peft_config(self, configs: dict[str, "PeftConfig"]) -> None:
        self.__dict__["peft_config"] = configs
        self._refuse_published_names()

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["peft_config"]

    def train(self, mode: bool = True):
        # PEFT does not say when it adds a second adapter, but it calls `eval()` after loading, and trainers `train()`
        self._refuse_published_names()
        return super().train(mode)

    def _refuse_published_names(self) -> None:
        for adapter_name, config in self.__dict__.get("peft_config", {}).items():
            if self.config.model_type != "llada":
                _refuse_foreign_layers(config, self)
            elif names := published_names(config):
                raise ValueError(
                    f"The adapter {adapter_name!r} names layers as the published LLaDA code does "
                    f"({', '.join(names)}); PEFT leaves out the ones it does not know. Reload the model, then write "
                    f"`target_modules={LORA_TARGET_MODULES}`, or what you need of it, for a new adapter, "
                    "`model.load_adapter(adapter)` for a saved one, or `config = translate_adapter_config("
                    "PeftConfig.from_pretrained(adapter), model)` from llada.modeling_llada.adapters and "
                    "`PeftModel.from_pretrained(model, adapter, config=config)` for a saved one as a PeftModel."
                )


__all__ = [
    "LORA_TARGET_MODULES",
    "PublishedAdaptersMixin",
    "lora_target_modules",
    "published_module_names",
    "published_names",
    "translate_adapter_config",
]
