"""What models do with published checkpoints beyond renaming tensors, which is in `checkpoint_layouts.py`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers.modeling_utils import PreTrainedModel, load_state_dict

from .checkpoint_layouts import LAYOUTS, in_memory_names, in_memory_tensors, merged_experts, refuse_two_names
from .loading_checks import refuse_unreadable, refuse_wrong_tensors


if TYPE_CHECKING:
    from transformers import PreTrainedModel as Base
else:
    Base = object


class PublishedCheckpointsMixin(Base):
    """
    Reads published tensor names wherever tensors come from, and writes them.

    Attributes:
        published_bias_dtype (`torch.dtype`, *optional*):
            The dtype that the biases of the routers had on disk: bfloat16 in LLaDA2.0, float32 later. In memory they
            are float32; they are saved as they were found, if they still fit.
    """

    published_bias_dtype: torch.dtype | None = None

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        tensors = state_dict
        if tensors is None:
            tensors = {}
            files: dict[str, str] = {}
            for file in checkpoint_files:
                part = load_state_dict(file, map_location="meta")
                if both := sorted(tensors.keys() & part.keys()):
                    raise ValueError(
                        f"`{both[0]}` is in two files of the checkpoint, {files[both[0]]} and {file}. Remove the one "
                        "that does not belong to it."
                    )
                tensors.update(part)
                files |= dict.fromkeys(part, file)
        refuse_unreadable(tensors, load_config, getattr(model.config, "num_experts", None))
        refuse_two_names(in_memory_names(tensors, model.config.model_type))
        layout = LAYOUTS.get(model.config.model_type)
        if layout is not None and layout.has_experts:
            for name, tensor in tensors.items():
                if name.endswith(".mlp.gate.expert_bias"):
                    model.published_bias_dtype = tensor.dtype
            if any(name.endswith(".mlp.experts.gate_proj") for name in tensors):
                load_config = replace(load_config, weight_mapping=[*load_config.weight_mapping, merged_experts()])
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    def to(self, *args, **kwargs):
        """As in transformers."""
        try:
            return super().to(*args, **kwargs)
        except NotImplementedError as error:
            # `load_checkpoint_and_dispatch` leaves out tensors with published names, and then moves the model
            if all(not parameter.is_meta for parameter in self.parameters()):
                raise
            raise ValueError(
                f"This {type(self).__name__} has no weights yet, its tensors are on the meta device. Load it with "
                "`from_pretrained(folder, device_map=...)`, which reads the published names of tensors; "
                "`accelerate.load_checkpoint_and_dispatch` reads only those in memory."
            ) from error

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        refuse_wrong_tensors(model, load_config, loading_info)
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    @property
    def _weight_conversions(self) -> list | None:
        # what transformers reverses on saving; without, the layout of the family
        if self.base_model is self:
            return []
        return self.__dict__.get("_used_conversions")

    @_weight_conversions.setter
    def _weight_conversions(self, used: list) -> None:
        merged = merged_experts().source_patterns
        # merged experts are no published layout
        self.__dict__["_used_conversions"] = None if any(one.source_patterns == merged for one in used) else used

    def use_published_names(self) -> None:
        """
        Makes `save_pretrained` write published names also if the model was loaded from a file with the names in
        memory, which it would keep otherwise. Gathering the shards of FSDP or DeepSpeed gives such files.
        """
        self.__dict__["_used_conversions"] = None

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False):
        """
        As in torch, and published names do as well: trainers resume from what `save_pretrained` wrote by calling this,
        and with `strict=False`.
        """
        return super().load_state_dict(in_memory_tensors(state_dict, self), strict=strict, assign=assign)


__all__ = ["PublishedCheckpointsMixin"]
