"""What a file must hold before a model is made from it: every tensor of the model, and no other layers."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.loading_report import LoadStateDictInfo

# a name inside the layers of a backbone, in memory or published; towers for images have layers of their own
_IN_LAYER = re.compile(r"^(model\.)?(transformer\.blocks|layers)\.\d+\.")
# a tensor of one expert, whatever stands for its number
_ONE_EXPERT = re.compile(r"\.mlp\.experts\.(.+)\.(?:gate|up|down)_proj")


def refuse_unreadable(
    tensors: Mapping[str, torch.Tensor], load_config: "LoadStateDictConfig", num_experts: int | None
) -> None:
    """
    Refuses what transformers would read as something else: integers as weights, unless a quantisation reads them, and
    experts with other numbers than those of the model, which it takes as they come.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            What is in the files.
        load_config (`LoadStateDictConfig`):
            How transformers loads them.
        num_experts (`int`, *optional*):
            How many experts a layer has, if it has any.

    Raises:
        ValueError: If there is any, naming the first.
    """
    weights = {name: tensor for name, tensor in tensors.items() if name.endswith(("bias", "proj", "weight"))}
    integers = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
    if integers and load_config.hf_quantizer is None:
        raise ValueError(
            f"{_source(load_config)} holds {_listed(integers)} as {tensors[min(integers)].dtype}, which is no weight "
            "without a `quantization_config` in config.json that says how to read them; add it, or use a file with "
            "floating point weights."
        )
    numbers = {str(number) for number in range(num_experts or 0)}
    experts = {name: match[1] for name in tensors if (match := _ONE_EXPERT.search(name))}
    if others := [name for name, number in experts.items() if number not in numbers]:
        raise ValueError(
            f"{_source(load_config)} holds {_listed(others)}, and config.json has `num_experts={num_experts}`, the "
            "first of which has the number 0. Correct config.json, or download or save the checkpoint again."
        )


def refuse_wrong_tensors(
    model: "PreTrainedModel", load_config: "LoadStateDictConfig", loading_info: "LoadStateDictInfo"
) -> None:
    """
    Refuses a file that lacks tensors of the model, holds them in other shapes, or has others in its layers: what would
    be computed is not what was saved. `ignore_mismatched_sizes=True`, with which transformers is asked for fresh
    weights, asks for them here, too. Heads that a subclass adds, what its `_keys_to_ignore_on_load_missing` names, and
    one of two tied weights may be missing.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, before transformers draws what is missing.
        load_config (`LoadStateDictConfig`):
            How transformers loaded it.
        loading_info (`LoadStateDictInfo`):
            What it found. Not changed.

    Raises:
        ValueError: If the file is refused, naming the first tensors of each kind and what to do.
    """
    source = _source(load_config)
    if loading_info.conversion_errors:
        name, error = next(iter(loading_info.conversion_errors.items()))
        # the line of the traceback that is no frame
        reason = next(line for line in error.splitlines() if not line.startswith((" ", "Traceback")))
        raise ValueError(
            f"{source} holds tensors for `{name}` that do not fit together, or not this config.json "
            f"({_described(model)}): {reason}"
        )
    if load_config.ignore_mismatched_sizes:
        return
    info = copy.copy(loading_info)
    model._adjust_missing_and_unexpected_keys(info)
    pairs = [pair for pair in model.all_tied_weights_keys.items() if not info.missing_keys.issuperset(pair)]
    tied = {name for pair in pairs for name in pair}
    own = () if model.base_model is model else (f"{model.base_model_prefix}.", "lm_head.")
    missing = {name for name in info.missing_keys - tied if not own or name.startswith(own)}
    foreign = {name for name in info.unexpected_keys if _IN_LAYER.match(name)}
    fresh = "`ignore_mismatched_sizes=True` starts them with fresh weights, to be trained."
    if missing:
        others = info.unexpected_keys
        found = f" It holds {_listed(others)} instead: it has the layout of another model." if others else ""
        advice = "load it with the code that saved it" if others else "download or save it again"
        raise ValueError(
            f"{source} lacks {len(missing)} of the {len(model.state_dict())} tensors of a {type(model).__name__}: "
            f"{_listed(missing)}.{found} Compare it with its config.json ({_described(model)}), or {advice}. {fresh}"
        )
    if info.mismatched_keys:
        shapes = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in info.mismatched_keys}
        name = min(shapes)
        raise ValueError(
            f"{source} holds {_listed(shapes)} in other shapes than a {type(model).__name__} of this config.json "
            f"({_described(model)}) has: `{name}` is {shapes[name][0]} and must be {shapes[name][1]}. Correct "
            f"config.json, or download or save the checkpoint again. {fresh}"
        )
    if foreign:
        raise ValueError(
            f"{source} holds tensors in its layers that a {type(model).__name__} of this config.json "
            f"({_described(model)}) has no place for: {_listed(foreign)}. It is another model, or config.json is of "
            "another one. `ignore_mismatched_sizes=True` leaves them out."
        )


def _source(load_config: "LoadStateDictConfig") -> str:
    name = load_config.pretrained_model_name_or_path
    return "The state dict" if name is None else f"The checkpoint {str(name)!r}"


def _described(model: "PreTrainedModel") -> str:
    # under the names of the file
    names = [model.config.attribute_map.get(name, name) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
    return ", ".join(f"`{name}={getattr(model.config, name)}`" for name in names)


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    shown = ", ".join(f"`{name}`" for name in (first, *others[:2]))
    return f"{shown} and {len(others) - 2} more" if len(others) > 2 else shown


__all__ = ["refuse_unreadable", "refuse_wrong_tensors"]
