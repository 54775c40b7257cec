"""What the commands that sample share: a checkpoint, settings, and how the text is shown."""

import argparse
import json
import sys
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..generation.presets import preset
from ..generation.terminal import TerminalStreamer


# fields of the generation config that have an option of their own
_FIELDS = ("max_new_tokens", "block_length", "steps", "threshold", "temperature")


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
    parser.add_argument("--seed", type=int, help="seed of what is drawn")
    parser.add_argument("--device-map", help="how to spread the model, e.g. auto (needs accelerate)")
    parser.add_argument("--no-stream", action="store_true", help="print the text only when it is finished")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that every step is shown")


def load(args: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """
    Loads what the arguments name, onto the accelerator if there is one.

    Returns:
        `tuple`: The model, its tokenizer, and keyword arguments for `generate` and `infill`.

    Raises:
        ValueError: If there is no such checkpoint, it is no masked diffusion model, or a setting is incomplete.
    """
    settings = _read_settings(args)
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForMaskedLM.from_pretrained(args.model, device_map=args.device_map, dtype="auto").eval()
    except OSError as error:
        # not every message says what was looked for
        raise ValueError(f"Cannot load {args.model}: {error}") from error
    if not hasattr(model, "infill"):
        raise ValueError(
            f"{args.model} is a `{model.config.model_type}` model, not a masked diffusion model; name a checkpoint of "
            "the LLaDA family."
        )
    if args.device_map is None:
        model.to(torch.accelerator.current_accelerator() or "cpu")
    if args.seed is not None:
        set_seed(args.seed)
    if sys.stdout.isatty() and not args.no_stream:
        settings["streamer"] = TerminalStreamer(tokenizer, delay=args.delay, mask_token_id=model.config.mask_token_id)
    return model, tokenizer, settings


def _read_settings(args: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in _FIELDS}
    settings = {name: value for name, value in values.items() if value is not None}
    for item in args.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"`--set {item}` has no value; write `--set NAME=VALUE`.")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return {"generation_config": preset(args.preset, **settings)} if args.preset else settings


def chat_inputs(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> BatchEncoding:
    """
    A conversation as the model wants it.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("The tokenizer has no chat template; use `llada generate` without `--chat`.")
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def show(tokens: torch.Tensor, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> str:
    """Prints a text, unless it was streamed, and returns it."""
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    if "streamer" not in settings:
        print(text)
    return text


__all__ = ["add_sampling_arguments", "chat_inputs", "load", "show"]
