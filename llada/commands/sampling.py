"""What the commands that sample share: loading a checkpoint, and settings on the command line."""

import argparse
import json
from typing import Any


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint and the settings of a [`~llada.DiffusionGenerationConfig`]."""
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("--preset", help="settings of a published sampler, e.g. llada or fast-dllm")
    parser.add_argument("--max-new-tokens", type=int, help="number of masks after the prompt")
    parser.add_argument("--block-length", type=int, help="tokens that are finished together")
    parser.add_argument("--steps", type=int, help="number of steps in all")
    parser.add_argument("--threshold", type=float, help="commit every token that is at least this sure")
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other field of DiffusionGenerationConfig"
    )
    parser.add_argument("--device-map", default="auto", help="where to load the model (default: auto)")
    parser.add_argument("--no-stream", action="store_true", help="print the text when it is finished")


def load(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """
    Loads what [`add_sampling_arguments`] names.

    Returns:
        `tuple`: The model, its tokenizer, and keyword arguments for `generate` and `infill`.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from ..generation.presets import preset
    from ..generation.terminal import TerminalStreamer

    settings: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("max_new_tokens", "block_length", "steps", "threshold", "temperature")
        if getattr(args, name) is not None
    }
    for item in args.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"`--set {item}` has no value; write `--set NAME=VALUE`.")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForMaskedLM.from_pretrained(args.model, device_map=args.device_map, dtype="auto").eval()
    if args.preset:
        settings = {"generation_config": preset(args.preset, **settings)}
    if not args.no_stream:
        settings["streamer"] = TerminalStreamer(tokenizer)
    return model, tokenizer, settings


__all__ = ["add_sampling_arguments", "load"]
