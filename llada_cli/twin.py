"""Train a diffusion model and a causal twin on the same text, and compare them.

  llada twin                                          minutes on a processor, on pages about Python
  llada twin --data books/ --vocab-size 4096 --sizes 256x6 384x8 512x10 --steps 20000 --bf16
  accelerate launch -m llada twin --data books/ ...   the same on several accelerators

Experiments: `scaling` (bits per byte against training operations, three sizes), `repetition` (few rows, many passes),
`fixed-ratio` (15 % masked against a ratio from U(0, 1)), `weighting` (the weight 1/t, on and off). `--iso-time` adds
tokens per second at equal quality. The output folder gets curves.csv, charts and report.md, which says what was seen.
An interrupted command goes on where it was when it is typed again.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import guard_logs
from .run_folder import note_settings


if TYPE_CHECKING:
    from llada.evaluation.twin_scores import SpeedRow

    from .twin_runs import TwinData, TwinRun

EXPERIMENTS = ("scaling", "repetition", "fixed-ratio", "weighting")
# as narrow as a ratio of 15 % can be drawn, and the mean over masked tokens, as in BERT
_UNWEIGHTED: dict[str, Any] = {"loss_weighting": "uniform", "loss_normalization": "masked"}
_FIXED: dict[str, Any] = {"min_mask_ratio": 0.1499, "max_mask_ratio": 0.1501, **_UNWEIGHTED}
# one for each row of the largest batch
_NUM_PROMPTS = 32


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"{', '.join(EXPERIMENTS)} (default: all)"
    )
    parser.add_argument("--iso-time", action="store_true", help="also compare tokens per second at equal quality")
    parser.add_argument(
        "--data", type=Path, help="a text file, or a folder with .txt files (default: pages about Python)"
    )
    parser.add_argument("--vocab-size", type=int, help="learn a vocabulary of this size (default: one token per byte)")
    parser.add_argument("--tokenizer", help="take this tokenizer instead, a folder or a Hub id")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["32x2", "48x2", "64x3"],
        metavar="WIDTHxLAYERS",
        help="sizes of the models; what is not about sizes takes the second (default: 32x2 48x2 64x3)",
    )
    parser.add_argument("--steps", type=int, default=800, help="steps of a run (default: 800)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows in a step, of each process (default: 16)")
    parser.add_argument("--accumulation", type=int, default=1, help="batches in a step (default: 1)")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens in a row (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(default: 3e-3)")
    parser.add_argument("--unique-rows", type=int, default=64, help="rows that are repeated (default: 64)")
    parser.add_argument("--epochs", type=int, default=300, help="times they are (default: 300)")
    parser.add_argument("--eval-rows", type=int, default=64, help="held-out rows, at most (default: 64)")
    parser.add_argument("--eval-draws", type=int, default=4, help="masks of each in an evaluation (default: 4)")
    parser.add_argument("--evaluations", type=int, default=10, help="evaluations in a run (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and masks (default: 0)")
    parser.add_argument("--output-dir", type=Path, default=Path("twin"), help="(default: twin)")


def run(args: argparse.Namespace) -> None:
    experiments = args.experiments or EXPERIMENTS
    unknown = [name for name in experiments if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"There is no experiment {unknown[0]!r}; write some of {', '.join(EXPERIMENTS)}, or none.")
    if args.tokenizer is not None and args.vocab_size is not None:
        raise ValueError("`--tokenizer` has a vocabulary of its own; leave out `--vocab-size`.")
    sizes = [_read_size(size) for size in args.sizes]
    least = {"steps": 1, "batch_size": 1, "accumulation": 1, "sequence_length": 16, "unique_rows": 1, "epochs": 1}
    least |= {"eval_rows": 1, "eval_draws": 1, "evaluations": 1}
    for name, lowest in least.items():
        if (value := getattr(args, name)) < lowest:
            raise ValueError(f"`--{name.replace('_', '-')} {value}` is too small; write at least {lowest}.")

    from .texts import read_and_hold_out

    texts = read_and_hold_out(args.data, "--data")
    # says which extra is missing
    from .twin_runs import TwinSettings, train_twin

    # isort: split
    from accelerate import PartialState
    from transformers.utils import logging

    from llada.evaluation.charts import find_figure
    from llada.evaluation.twin_report import write_report

    guard_logs()
    # the page has charts: better told now than in hours
    find_figure()
    # of weights that are read and written
    logging.disable_progress_bar()
    state = PartialState()
    if state.is_main_process:
        kept = {"experiments", "iso_time", "output_dir", "command", "rest", "traceback"}
        given = {name: value for name, value in vars(args).items() if name not in kept}
        given |= {"data": args.data and str(args.data.resolve()), "characters": sum(map(len, texts[0]))}
        note_settings(args.output_dir, given)
    state.wait_for_everyone()
    data = _prepare(args, *texts)
    settings = TwinSettings(
        sequence_length=args.sequence_length,
        batch_size=args.batch_size,
        accumulation=args.accumulation,
        learning_rate=args.learning_rate,
        seed=args.seed,
        num_evaluations=args.evaluations,
        num_eval_draws=args.eval_draws,
    )
    planned = plan(experiments, sizes, args, state.num_processes, len(data.train))
    results = {}
    try:
        for number, item in enumerate(planned, 1):
            if state.is_main_process:
                print(f"[{number}/{len(planned)}] {item.name}", file=sys.stderr)
            results[item.name] = train_twin(item, settings, data, args.output_dir / "runs" / item.name)
        if not state.is_main_process:
            return
        speeds = _measure(args, sizes, data) if args.iso_time else []
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. The same command goes on where it was.") from None
    page = write_report(results, speeds, _describe(args, data, state.num_processes), args.output_dir)
    print(page.read_text(encoding="utf-8"))
    print(f"The page is {page}, with curves.csv and charts beside it.")


def _read_size(text: str) -> tuple[int, int]:
    width, _, layers = text.partition("x")
    if not (width.isdigit() and layers.isdigit() and int(layers) > 0 and int(width) > 0):
        raise ValueError(f"`--sizes {text}` is no size; write width and layers, such as 64x3.")
    multiple = 64 if int(width) >= 512 else 16
    if int(width) % multiple:
        raise ValueError(f"`--sizes {text}`: heads are {multiple} wide; write a multiple of {multiple} before the x.")
    return int(width), int(layers)


def plan(
    experiments: Any, sizes: list[tuple[int, int]], args: argparse.Namespace, num_processes: int, num_rows: int
) -> "list[TwinRun]":
    """
    The runs that experiments take, each once.

    Args:
        experiments (sequence of `str`): Names of experiments.
        sizes (`list[tuple[int, int]]`): Widths and layers.
        args (`argparse.Namespace`): What was typed.
        num_processes (`int`): Processes that share a step.
        num_rows (`int`): Rows of the text.

    Raises:
        ValueError: If the text has less rows than are to be repeated.
    """
    from .twin_runs import CAUSAL, DIFFUSION, TwinRun

    base = sizes[min(1, len(sizes) - 1)]
    wanted = list(sizes) if "scaling" in experiments or args.iso_time else []
    both = (CAUSAL, DIFFUSION)
    runs = [
        TwinRun(f"{kind}-{width}x{layers}", kind, width, layers, args.steps)
        for width, layers in wanted
        for kind in both
    ]
    if "repetition" in experiments:
        if args.unique_rows > num_rows:
            raise ValueError(
                f"`--unique-rows {args.unique_rows}`, but the text has {num_rows} rows of {args.sequence_length} "
                "tokens; write fewer, or name a longer text."
            )
        per_step = args.batch_size * args.accumulation * num_processes
        steps = max(1, args.unique_rows * args.epochs // per_step)
        runs += [TwinRun(f"{kind}-repeated", kind, *base, steps, args.unique_rows) for kind in both]
    objectives = {"fixed-ratio": ("fixed", _FIXED), "weighting": ("unweighted", _UNWEIGHTED)}
    for name, (label, objective) in objectives.items():
        if name in experiments:
            runs.append(TwinRun(f"{DIFFUSION}-{label}", DIFFUSION, *base, args.steps, objective=objective))
    if not wanted and {*objectives} & {*experiments}:
        runs.insert(0, TwinRun(f"{DIFFUSION}-{base[0]}x{base[1]}", DIFFUSION, *base, args.steps))
    return runs


def _prepare(args: argparse.Namespace, texts: list[str], held_out: list[str]) -> "TwinData":
    from accelerate import PartialState
    from transformers import AutoTokenizer

    from llada.evaluation.text_tokenizer import build_text_tokenizer

    from .twin_runs import prepare_data

    folder = args.output_dir / "tokenizer"
    with PartialState().main_process_first():
        if args.tokenizer is not None:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
            if tokenizer.mask_token is None:
                tokenizer.add_special_tokens({"mask_token": "<|mdm_mask|>"})
            if tokenizer.bos_token_id is None:
                tokenizer.bos_token = tokenizer.eos_token
        elif folder.is_dir():
            tokenizer = AutoTokenizer.from_pretrained(folder)
        else:
            tokenizer = build_text_tokenizer(texts, args.vocab_size)
            tokenizer.save_pretrained(folder)
        return prepare_data(texts, held_out, tokenizer, args.sequence_length, args.eval_rows, args.seed)


def _measure(args: argparse.Namespace, sizes: list[tuple[int, int]], data: "TwinData") -> "list[SpeedRow]":
    """What was measured before, or now."""
    import torch
    from tqdm import tqdm

    from llada.evaluation.twin_scores import SpeedRow, measure_speed

    from .twin_runs import CAUSAL, DIFFUSION, load_twin

    file = args.output_dir / "speed.json"
    if file.is_file():
        return [SpeedRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    base, largest = sizes[min(1, len(sizes) - 1)], sizes[-1]
    folders = {
        (kind, size): args.output_dir / "runs" / f"{kind}-{size[0]}x{size[1]}"
        for kind in (CAUSAL, DIFFUSION)
        for size in (base, largest)
    }
    rows = [data.held_out[number % len(data.held_out)]["input_ids"] for number in range(_NUM_PROMPTS)]
    given = args.sequence_length // 4
    measured = measure_speed(
        load_twin(CAUSAL, folders[CAUSAL, base]),
        load_twin(DIFFUSION, folders[DIFFUSION, base]),
        load_twin(CAUSAL, folders[CAUSAL, largest]),
        torch.tensor(rows)[:, :given],
        args.sequence_length - given,
        seed=args.seed,
    )
    speeds = list(tqdm(measured, desc="speed", unit="setting", dynamic_ncols=True))
    file.write_text(json.dumps([asdict(row) for row in speeds], indent=1) + "\n", encoding="utf-8")
    return speeds


def _describe(args: argparse.Namespace, data: "TwinData", num_processes: int) -> str:
    import torch

    device = torch.accelerator.current_accelerator()
    where = (
        f"{torch.get_num_threads()} threads of a processor" if device is None else f"{num_processes} x {device.type}"
    )
    text = "the pages of `pydoc_data.topics`" if args.data is None else f"`{args.data.name}`"
    return (
        f"Text: {text}, {len(data.train):,} rows of {args.sequence_length} tokens to train on, {len(data.held_out)} "
        f"held out, {len(data.tokenizer):,} tokens in the vocabulary, {data.bytes_per_token:.2f} bytes per token. "
        f"Steps of {args.batch_size * args.accumulation * num_processes} rows, peak learning rate "
        f"{args.learning_rate:g}, cosine to a tenth, seed {args.seed}; {where}. An evaluation draws "
        f"{args.eval_draws} masks per row."
    )


__all__ = ["EXPERIMENTS", "add_parser", "plan", "run"]
