"""What the commands that sample share: settings, how text goes in, and how it is shown."""

import argparse
import json
import sys
import time
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from .checkpoints import check_name, load_checkpoint
from .errors import check_text


if TYPE_CHECKING:
    import torch
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

    from llada.generation.mixin import DiffusionGenerateOutput

# fields of the generation config that have an option of their own
_FIELDS = ("max_new_tokens", "block_length", "steps", "threshold", "temperature", "num_return_sequences")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint and the settings of a [`~llada.DiffusionGenerationConfig`]."""
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("--preset", help="settings of a published sampler, e.g. llada or fast-dllm")
    parser.add_argument("--max-new-tokens", type=int, help="number of masks after the prompt")
    parser.add_argument("--block-length", type=int, help="tokens that are finished together")
    parser.add_argument("--steps", type=int, help="number of steps in all")
    parser.add_argument("--threshold", type=float, help="commit every token that is at least this sure")
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature")
    parser.add_argument("--num-return-sequences", type=int, help="number of texts, with a temperature")
    parser.add_argument(
        "--set",
        action=_Set,
        default=[],
        metavar="NAME=VALUE",
        help="any other field of DiffusionGenerationConfig; `--set help` lists them",
    )
    parser.add_argument("--seed", type=int, help="seed of what is drawn")
    parser.add_argument("--device-map", help="how to spread the model, e.g. auto (needs accelerate)")
    parser.add_argument("--no-stream", action="store_true", help="print the text only when it is finished")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that every step is shown")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write how it came about: .html to step through, .svg to watch, .png or .json",
    )
    parser.add_argument("--stats", action="store_true", help="say how many forward passes and seconds it took")


class _Set(argparse.Action):
    """Collects settings, and lists what there is if asked for help."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if values == "help":
            from llada.generation.configuration_diffusion import list_settings

            print(list_settings(), end="")
            parser.exit()
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def read_text(text: str) -> str:
    """
    The text that an argument gives, or standard input if that is `-`.

    Raises:
        ValueError: If it is no UTF-8.
    """
    return sys.stdin.read().rstrip("\n") if text == "-" else check_text(text)


def load(args: argparse.Namespace) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]":
    """
    Loads what the arguments name, onto the accelerator if there is one.

    Returns:
        `tuple`: The model, its tokenizer, and keyword arguments for `generate` and `infill`.

    Raises:
        ValueError: If there is no such checkpoint, it is no masked diffusion model, or a setting is incomplete.
    """
    check_name(args.model)
    given = [getattr(args, name) for name in _FIELDS]
    settings = {name: value for name, value in zip(_FIELDS, given, strict=True) if value is not None}
    settings.update(map(read_setting, args.set))

    from transformers import set_seed

    from llada.generation.listeners.terminal import TerminalStreamer
    from llada.generation.presets import preset

    if args.preset:
        settings = {"generation_config": preset(args.preset, **settings)}
    model, tokenizer = load_checkpoint(args)
    if args.seed is not None:
        set_seed(args.seed)
    configs = (settings.get("generation_config"), model.generation_config)
    counts = [settings.get("num_return_sequences"), *(config.num_return_sequences for config in configs if config)]
    shows_one = next((count for count in counts if count is not None), 1) == 1
    if sys.stdout.isatty() and shows_one and not args.no_stream:
        settings["streamer"] = TerminalStreamer(tokenizer, delay=args.delay, mask_token_id=model.config.mask_token_id)
    if args.trace:
        if not shows_one:
            raise ValueError("`--trace` shows how one text came about; leave out `--num-return-sequences`.")
        check_picture(args.trace)
        settings |= {"output_trace": True, "trace_top_k": 5}
    return model, tokenizer, settings


def check_picture(path: Path) -> None:
    """
    Sees to it that a trace can be written, before there is one.

    Raises:
        ValueError: If the name does not say in which format, or there is no such folder.
    """
    from llada.generation.views.replay import check_format

    check_format(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {path.absolute().parent} to write {path.name} to; make it first.")


def read_setting(item: str) -> tuple[str, Any]:
    """
    Name and value of a setting, read as JSON where it is some.

    Raises:
        ValueError: If there is no value.
    """
    name, separator, value = item.partition("=")
    if not separator:
        raise ValueError(f"`--set {item}` has no value; write `--set NAME=VALUE`.")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


def check_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """
    Sees to it that there can be a conversation.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("The tokenizer has no chat template; use `llada generate` without `--chat`.")


def chat_inputs(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> "BatchEncoding":
    """
    A conversation as the model wants it.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """
    check_chat_template(tokenizer)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def sample(
    function: MethodType,
    inputs: "BatchEncoding",
    tokenizer: "PreTrainedTokenizerBase",
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> "DiffusionGenerateOutput":
    """
    Calls `model.generate` or `model.infill`, reports what it took and writes how it came about, if asked to.

    Returns:
        [`~llada.generation.mixin.DiffusionGenerateOutput`]: The sequences, and their traces if they are asked for.

    Raises:
        ValueError: If the tokens are not those of the model.
    """
    model: Any = function.__self__
    tokens, num_embeddings = inputs["input_ids"], model.get_input_embeddings().num_embeddings
    if tokens.numel() and tokens.max() >= num_embeddings:
        raise ValueError(
            f"The tokenizer gives token {tokens.max()}, and the model knows {num_embeddings}: it was trained with "
            "another tokenizer, save that into the folder."
        )
    start = time.perf_counter()
    output = function(**inputs.to(model.device), **{**settings, "return_dict_in_generate": True})
    seconds = time.perf_counter() - start
    if args.stats:
        print(
            f"{output.num_forwards} forward passes in {seconds:.2f} s, "
            f"{output.tokens_per_forward.mean():.1f} tokens each",
            file=sys.stderr,
        )
    if args.trace:
        from llada.generation.views.replay import Replay

        Replay(output.trace[0], tokenizer).save(args.trace)
        print(f"How it came about is in {args.trace}.", file=sys.stderr)
    return output


def show(rows: "torch.Tensor", tokenizer: "PreTrainedTokenizerBase", settings: dict[str, Any]) -> list[str]:
    """Prints texts, unless they were streamed, and returns them."""
    from llada.generation.printable import printable

    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    if "streamer" not in settings:
        for number, text in enumerate(texts, start=1):
            if len(texts) > 1:
                print(f"--- {number} of {len(texts)} ---")
            print(printable(text))
    return texts


__all__ = [
    "add_sampling_arguments",
    "chat_inputs",
    "check_chat_template",
    "load",
    "read_setting",
    "read_text",
    "sample",
    "show",
]
