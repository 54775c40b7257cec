"""Finding and loading the checkpoint that a command names."""

import argparse
import difflib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import guard_logs


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# of these two a folder of a model holds at least one
_CONFIGS = ("config.json", "adapter_config.json")
# values of `--device-map` that are no device
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_name(name: str) -> None:
    """
    Tells a mistyped folder from a repository, before the Hub is asked.

    Raises:
        ValueError: If the name is neither a folder with a model nor can be that of a repository.
    """
    path = Path(name)
    if path.is_dir():
        if any((path / config).is_file() for config in _CONFIGS):
            return
        inside = [child.name for child in path.iterdir() if any((child / config).is_file() for config in _CONFIGS)]
        hint = f": name one of {', '.join(sorted(inside))} in it" if inside else ""
        raise ValueError(f"The folder {name!r} has no config.json, so it holds no model{hint}.")
    if path.exists():
        raise ValueError(f"{name!r} is a file; name the folder of a model.")
    siblings = [child.name for child in path.parent.iterdir() if child.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" Did you mean {str(path.parent / close[0])!r}?" if close else ""
    if not _REPO_ID.fullmatch(name):
        otherwise = " Name a folder with a model in it, or a repository on the Hub, OWNER/NAME."
        raise ValueError(f"There is no folder {name!r}.{hint or otherwise}")
    if siblings:
        print(f"There is no folder {name!r}.{hint} Asking the Hub.", file=sys.stderr)


def load_checkpoint(
    args: argparse.Namespace, dtype: "torch.dtype | str" = "auto"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """
    Loads what `args.model` names, onto the accelerator if there is one, or as `args.device_map` says. In the dtype of
    the file if none is given.

    Raises:
        ValueError: If that cannot be loaded, or is no masked diffusion model.
    """
    # isort: off
    import llada  # noqa: F401  registers the models
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    guard_logs()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if args.device_map is not None:
        _check_device_map(args.device_map)
    try:
        # code that comes with a checkpoint is not asked about either
        model = AutoModelForMaskedLM.from_pretrained(
            args.model, device_map=args.device_map, dtype=dtype, trust_remote_code=False
        ).eval()
    except Exception as error:
        raise ValueError(f"Cannot load {args.model}: {_reason(args.model, error)}") from error
    if not hasattr(model, "infill"):
        raise ValueError(_is_no_masked_diffusion_model(args.model, model.config.model_type))
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    # the tokenizers library raises nothing more special
    except Exception as error:
        raise ValueError(
            f"Cannot load the tokenizer of {args.model}, save that of the model it comes from into the folder: {error}"
        ) from error
    if args.device_map is None:
        model.to(torch.accelerator.current_accelerator() or "cpu")
    return model, tokenizer


def _check_device_map(device_map: str) -> None:
    """Refuses devices that this machine does not have: torch says so in many ways, some of them a traceback later."""
    import torch

    if device_map in _STRATEGIES:
        return
    try:
        device = torch.device(device_map)
    except RuntimeError as error:
        raise ValueError(
            f"`--device-map {device_map}` is neither a device nor one of {', '.join(_STRATEGIES)}."
        ) from error
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    if device.type == "cpu" or (accelerator and device.type == accelerator.type and (device.index or 0) < count):
        return
    here = f"has {count} {accelerator.type} device(s)" if accelerator else "has only a CPU"
    raise ValueError(f"`--device-map {device_map}`: this machine {here}; write `--device-map auto`, or leave it out.")


def _reason(name: str, error: Exception) -> str:
    from safetensors import SafetensorError
    from transformers import AutoConfig

    if isinstance(error, SafetensorError):
        return f"its weights are incomplete or no safetensors file ({error}); copy or download them again."
    # transformers takes both keys of an index for granted
    if isinstance(error, json.JSONDecodeError) or error.args in (("metadata",), ("weight_map",)):
        return f"one of its JSON files is damaged ({type(error).__name__}: {error}); copy or download it again."
    if "Unrecognized configuration class" in str(error):
        return _is_no_masked_diffusion_model(name, AutoConfig.from_pretrained(name).model_type)
    return str(error)


def _is_no_masked_diffusion_model(name: str, model_type: str) -> str:
    return f"{name} is a `{model_type}` model, not a masked diffusion model; name a checkpoint of the LLaDA family."


__all__ = ["check_name", "load_checkpoint"]
