"""How published tensor names correspond to the names in memory, in both directions: one table per family."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    Split,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
)


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# a tensor of one expert, or of all experts before gate and up are one
_EXPERT = re.compile(r"\.mlp\.experts\.(?:(\d+)\.)?(gate|up|down)_proj(?:\.weight)?$")
# what a fused matrix is in memory
FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class _AsLoaded(ConversionOps):
    """Takes the bias of a router as it comes: transformers has brought it to float32 already."""

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: next(iter(input_dict.values()))}

    @property
    def reverse_op(self) -> ConversionOps:
        return _InPublishedDtype()


class _InPublishedDtype(ConversionOps):
    """Gives the bias of a router the dtype it was loaded from, as long as that loses nothing."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, model, **kwargs):
        (bias,) = next(iter(input_dict.values()))
        dtype = model.published_bias_dtype
        if dtype is not None and torch.equal(bias.to(dtype).to(bias.dtype), bias):
            bias = bias.to(dtype)
        return {target_patterns[0]: bias}


class _JoinHalves(ConversionOps):
    """Joins all gates and all up-projections. Not a `Concatenate`, in which PEFT would look for adapters."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return {target_patterns[0]: torch.cat([input_dict.pop(half)[0] for half in source_patterns], dim=1)}


def merged_experts() -> WeightConverter:
    """
    What dFactory's merged files need beside the published layout, for loading only: `mlp.experts.gate_proj` and
    `mlp.experts.up_proj`, each of all experts. dInfer's `mlp.w1` and `mlp.w2` look alike and are something else; a
    file with them is refused.
    """
    halves = ["mlp.experts.gate_proj", "mlp.experts.up_proj"]
    return WeightConverter(halves, "mlp.experts.gate_up_proj", [_JoinHalves()])


@dataclass(frozen=True)
class CheckpointLayout:
    """
    The tensor names of a family on disk. A name that is in none of the tables is the same in memory.

    Args:
        model_names (`Mapping[str, str]`):
            Published name of a module outside the layers -> name in memory.
        layers (`str`):
            Published name of the list of layers.
        layer_names (`Mapping[str, str]`):
            Published name of a module inside a layer -> name in memory.
        fused_attention (`str`, *optional*):
            Published name, inside a layer, of queries, keys and values in one matrix, in this order.
        has_experts (`bool`):
            Whether there are experts: a tensor for each on disk, two for all of them in memory.
    """

    model_names: Mapping[str, str] = field(default_factory=dict)
    layers: str = "model.layers"
    layer_names: Mapping[str, str] = field(default_factory=dict)
    fused_attention: str | None = None
    has_experts: bool = False

    def transforms(self) -> list[WeightTransform]:
        """
        The table in the form of transformers, which applies it on loading and reverses it on saving.

        Patterns of renamings are anchored at both ends of the module name: `ff_out` is the head at the top level and
        the down-projection inside a layer, and transformers searches patterns. Those of converters cannot be, and
        name enough modules to be unique.
        """
        layers = re.escape(self.layers)
        transforms: list[WeightTransform] = [
            WeightRenaming(rf"^{re.escape(published)}\.", f"{name}.") for published, name in self.model_names.items()
        ]
        transforms += [
            WeightRenaming(rf"^{layers}\.(\d+)\.{re.escape(published)}\.", rf"model.layers.\1.{name}.")
            for published, name in self.layer_names.items()
        ]
        if self.fused_attention:
            parts = [f"{name}.weight" for name in FUSED]
            transforms.append(WeightConverter(f"{self.fused_attention}.weight", parts, [Split(dim=0)]))
        if self.has_experts:
            halves = [f"mlp.experts.*.{half}_proj.weight" for half in ("gate", "up")]
            operations = [MergeModulelist(dim=0), Concatenate(dim=1)]
            transforms += [
                WeightConverter(halves, "mlp.experts.gate_up_proj", operations),
                WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=0)]),
                WeightConverter("mlp.gate.expert_bias", "mlp.gate.expert_bias", [_AsLoaded()]),
            ]
        return transforms


LAYOUTS = {
    # LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5
    "llada": CheckpointLayout(
        model_names={
            "model.transformer.wte": "model.embed_tokens",
            "model.transformer.ln_f": "model.norm",
            "model.transformer.ff_out": "lm_head",
        },
        layers="model.transformer.blocks",
        layer_names={
            "attn_norm": "input_layernorm",
            "q_proj": "self_attn.q_proj",
            "k_proj": "self_attn.k_proj",
            "v_proj": "self_attn.v_proj",
            "attn_out": "self_attn.o_proj",
            "ff_norm": "post_attention_layernorm",
            "ff_proj": "mlp.gate_proj",
            "up_proj": "mlp.up_proj",
            "ff_out": "mlp.down_proj",
        },
    ),
    # LLaDA-MoE-7B-A1B
    "lladamoe": CheckpointLayout(has_experts=True),
    # LLaDA2.0, 2.1 and 2.2
    "llada2_moe": CheckpointLayout(
        model_names={"model.word_embeddings": "model.embed_tokens"},
        layer_names={
            "attention.dense": "self_attn.o_proj",
            "attention.query_layernorm": "self_attn.q_norm",
            "attention.key_layernorm": "self_attn.k_norm",
        },
        fused_attention="attention.query_key_value",
        has_experts=True,
    ),
}


def in_memory_names(published: Iterable[str], model_type: str) -> dict[str, list[str]]:
    """
    The names in memory of every tensor.

    Args:
        published (`Iterable[str]`):
            Names of tensors. Those that are no published ones stand for themselves.
        model_type (`str`):
            The family.

    Returns:
        `dict[str, list[str]]`: Names in memory by the name given. There are several for a fused matrix; the experts
        of a layer share theirs.
    """
    layout = LAYOUTS.get(model_type, CheckpointLayout())
    transforms, names = [*layout.transforms(), *([merged_experts()] if layout.has_experts else [])], {}
    for name in published:
        renamed = (transform.rename_source_key(name) for transform in transforms)
        new = next((new for new, pattern in renamed if pattern is not None), name)
        names[name] = [new]
        if layout.fused_attention and f".{layout.fused_attention}." in name:
            names[name] = [new.replace(FUSED[0], part) for part in FUSED]
    return names


def refuse_two_names(names: Mapping[str, list[str]]) -> None:
    """
    Refuses tensors that are there twice, under a published name and the one in memory: nobody knows which of them is
    meant.

    Args:
        names (`Mapping[str, list[str]]`):
            What [`in_memory_names`] gives.

    Raises:
        ValueError: If there is one, with both of its names.
    """
    filled: dict[str, dict[tuple[str | None, str | None], str]] = {}
    for name, places in names.items():
        expert = _EXPERT.search(name)
        # which part of the tensor in memory: a half and an expert, or all of them
        index, half = expert.groups() if expert else (None, None)
        for place in places:
            others = filled.setdefault(place.removeprefix("model."), {})
            if half is None:
                same = next(iter(others.values()), None)
            elif index is None:
                same = next((other for (kind, _), other in others.items() if kind in (None, half)), None)
            else:
                same = next(
                    (others[key] for key in ((half, index), (half, None), (None, None)) if key in others), None
                )
            if same is not None:
                raise ValueError(
                    f"`{same}` and `{name}` are two names of one tensor, `{place}` in memory, and both are given. "
                    "Take out the one that is not meant."
                )
            others[half, index] = name


def in_memory_tensors(published: Mapping[str, torch.Tensor], model: "PreTrainedModel") -> Mapping[str, torch.Tensor]:
    """
    Brings a state dict to the names in memory.

    Args:
        published (`Mapping[str, torch.Tensor]`):
            Tensors under published names, names in memory, or both. Experts that are missing, because they are in
            another file, keep the weights they have.
        model ([`~transformers.PreTrainedModel`]):
            The model they are for.

    Raises:
        ValueError: If a tensor is there under two names.

    Returns:
        `Mapping[str, torch.Tensor]`: The tensors under names in memory, the input itself if all were so already.
    """
    names = in_memory_names(published, model.config.model_type)
    refuse_two_names(names)
    if all(new == [name] for name, new in names.items()):
        return published
    current = model.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in published.items():
        first, *others = names[name]
        expert = _EXPERT.search(name)
        if others:
            tensors.update(zip(names[name], tensor.split([len(current[part]) for part in names[name]]), strict=True))
        elif first == name or not expert or first not in current:
            tensors[first] = tensor
        else:
            index, half = expert.groups()
            experts = tensors.setdefault(first, current[first].clone())
            if half != "down":
                experts = experts.chunk(2, dim=1)[half == "up"]
            experts[slice(None) if index is None else int(index)] = tensor
    return tensors


def register_checkpoint_layouts() -> None:
    """Tells transformers and PEFT how to read and write published checkpoints. iLLaDA needs no renaming."""
    for model_type, layout in LAYOUTS.items():
        register_checkpoint_conversion_mapping(model_type, layout.transforms(), overwrite=True)


__all__ = [
    "FUSED",
    "LAYOUTS",
    "CheckpointLayout",
    "in_memory_names",
    "in_memory_tensors",
    "merged_experts",
    "refuse_two_names",
    "register_checkpoint_layouts",
]
