"""What stays as it is when a model is loaded in fewer bits."""

import re
from typing import TYPE_CHECKING, Any

from transformers.quantizers.quantizers_utils import should_convert_module

from .adapters import published_module_names


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# how transformers' back-ends call their list of modules that are left out
_SKIP_FIELDS = ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules")


def keep_modules_exact(model: "PreTrainedModel", settings: Any) -> None:
    """
    Completes the list of modules that a back-end leaves out: by the head, which decides about near ties, and by the
    names in memory of modules that the list names as the published code does. There `ff_out` is the head and every
    down-projection, so both stay.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model that is going to be loaded, of which only the names are read.
        settings (`QuantizationConfigMixin` or `dict`):
            The settings of the back-end. They are completed in place.
    """
    values = settings if isinstance(settings, dict) else vars(settings)
    children = [] if model.base_model is model else model.named_children()
    heads = [name for name, _ in children if name != model.base_model_prefix]
    for field in _SKIP_FIELDS:
        # where nothing is named, transformers leaves out the head
        if values.get(field) is None:
            continue
        given = list(values[field])
        published = published_module_names(model)
        names = heads + [name for name in published if not should_convert_module(published[name], given)]
        # whole names, which the back-ends that ask with the name of a weight understand, too
        values[field] = given + [re.escape(name) for name in names]


__all__ = ["keep_modules_exact"]
