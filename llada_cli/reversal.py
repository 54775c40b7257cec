"""Ask models in both directions: what comes after this line, and what before it?

  llada reversal                                      trains two small models on invented facts, as `llada demo` does
  llada reversal --data tang300                       the same on couplets of poems
  llada reversal GSAI-ML/LLaDA-8B-Instruct Qwen/Qwen2.5-7B-Instruct --data poem_data.json
  llada reversal llada-demo --data llada-demo/facts.json

Models that are named are asked as in arXiv 2502.09992, §3.3; each may be a LLaDA or causal. The data are couplets: the
authors' pairs, {"first": ..., "second": ...}, or poems as in Debian's fortunes-zh
(/usr/share/games/fortunes/tang300); or facts, {"name": ..., "description": ...}. The output folder gets the answers, a
chart, and report.md, which says what was seen. An interrupted command goes on where it was when it is typed again.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import check_name
from .errors import guard_logs
from .run_folder import note_settings


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llada.evaluation.reversal_facts import ReversalFacts
    from llada.evaluation.reversal_questions import Asked

_PUBLISHED = """\
Published for the 496 couplets of arXiv 2502.09992, table 4 (forward, reversed): LLaDA-8B-Instruct 51.8, 45.6;
Qwen2.5-7B-Instruct 75.9, 38.0; GPT-4o 82.7, 34.3. The file that was released has 469 of them."""
_ASKED = """\
- Counted is whether the answer is in what a model wrote, as the authors do: a model that writes the whole poem is
  right, one that names another line that would do is wrong.
- These are known poems: what a model answers, it has read many times, and not in one direction only (quotations,
  questions like these). The figures say how much lower the reversed direction is, not how it came to know.
- The standard errors are of the draw of the questions. Compare the same questions with the same settings only."""
_ASKED_FACTS = """\
- Counted is whether the answer is in what a model wrote.
- The figures mean something for facts that a model has read in one direction only. Of facts that the world writes
  about, it has read both."""
_TRAINED = """\
- "{reverse}" is the reversal curse: what has to be written was always read before. Questions in both directions
  were seen about {num_demonstrated} others, so that both models know what such a question is.
- "{ranking}" lets the causal model choose among all of them. If it chooses well, it knows them and cannot
  write them down backwards.
- "{infill}" is what LLaDA is trained on: useful, out of reach for a causal model, and no evidence about the curse.
- "{turned}" was never shown. Reading in any order does not teach it by itself (arXiv 2602.02133).
- LLaDA learns from masked tokens only: it took {steps} steps, the causal model {causal_steps}.
- {num_held_out} questions of a kind and one seed: a share of a half may be off by {error:.0%}. Other seeds differ by
  more than that, of couplets most of all."""


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders or Hub ids (default: two are trained)")
    parser.add_argument("--data", type=Path, help="a file of couplets or facts (default: invented facts)")
    parser.add_argument("--num-pairs", type=int, help="how many (default: all; to train on: 120 facts, 64 couplets)")
    parser.add_argument("--max-new-tokens", type=int, default=28, help="length of an answer (default: 28)")
    parser.add_argument("--keep-end", action="store_true", help="let LLaDA end an answer about couplets early")
    parser.add_argument("--batch-size", type=int, default=8, help="questions at once (default: 8)")
    parser.add_argument("--device-map", help="how to spread a model, e.g. auto (needs accelerate)")
    parser.add_argument("--steps", type=int, help="training steps of LLaDA (default: 1000 on facts, 1500 on couplets)")
    parser.add_argument("--causal-steps", type=int, help="of the causal model (default: 250 and 400)")
    parser.add_argument("--pieces", default="metre", help="tokens of a line: metre (2+3, 2+2+3; default) or character")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
    parser.add_argument("--output-dir", type=Path, default=Path("reversal"), help="(default: reversal)")


def run(args: argparse.Namespace) -> None:
    for name in ("num_pairs", "max_new_tokens", "batch_size", "steps", "causal_steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"`--{name.replace('_', '-')} {value}` is too small; write at least 1.")
    if args.models and args.data is None:
        raise ValueError("What are these models asked about? Write `--data`: a file of couplets or of facts.")
    for model in args.models:
        check_name(model)
    if args.data is not None and not args.data.is_file():
        raise ValueError(
            f"There is no file {str(args.data)!r}. Debian's package fortunes-zh has poems, in "
            "/usr/share/games/fortunes/tang300; the authors' pairs are data/poem_data.json of ML-GSAI/LLaDA."
        )
    from llada.evaluation.charts import find_figure

    guard_logs()
    # the page has a chart: better told now than in hours
    find_figure()
    try:
        page = _ask_models(args) if args.models else _train_and_ask(args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted. The same command goes on where it was.") from None
    file = args.output_dir / "report.md"
    file.write_text(page, encoding="utf-8")
    print(f"{page}\nThe page is {file}, with the chart beside it.")


def _ask_models(args: argparse.Namespace) -> str:
    """Asks the models that are named, and returns the page."""
    import random

    from tqdm import tqdm

    from llada.evaluation.charts import bar_chart, save_chart
    from llada.evaluation.couplets import Couplet
    from llada.evaluation.reversal_facts import ReversalFacts, read_facts
    from llada.evaluation.reversal_questions import DIRECTIONS, Asked, ask, count_right, format_directions

    found = read_facts(args.data)
    # about the others a model saw questions
    facts = list(found.held_out if isinstance(found, ReversalFacts) else found)
    if args.num_pairs is not None and args.num_pairs < len(facts):
        facts = random.Random(args.seed).sample(facts, args.num_pairs)
    couplets = isinstance(facts[0], Couplet)
    settings = {name: getattr(args, name) for name in ("num_pairs", "max_new_tokens", "keep_end", "seed")}
    note_settings(args.output_dir, {**settings, "data": str(args.data.resolve()), "pairs": len(facts)})
    file = args.output_dir / "answers.jsonl"
    asked = []
    if file.is_file():
        # the last line may be written in part
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        file.write_text("".join(lines), encoding="utf-8")
        asked = [Asked(**json.loads(line)) for line in lines]
    for name in args.models:
        done = {(item.direction, item.number) for item in asked if item.model == name}
        left = {way: [n for n in range(len(facts)) if (way, n) not in done] for way in DIRECTIONS}
        if not any(left.values()):
            continue
        model, tokenizer = _load(name, args.device_map)
        with tqdm(total=sum(map(len, left.values())), desc=name, unit="question", dynamic_ncols=True) as bar:
            for direction in DIRECTIONS:
                for batch in ask(
                    model,
                    tokenizer,
                    facts,
                    name,
                    direction,
                    left[direction],
                    args.max_new_tokens,
                    couplets and not args.keep_end,
                    args.batch_size,
                ):
                    with open(file, "a", encoding="utf-8") as lines_of:
                        lines_of.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in batch)
                    asked += batch
                    bar.update(len(batch))
    asked = [item for item in asked if item.model in args.models]
    bars = {name: [count_right(asked, name, direction) for direction in DIRECTIONS] for name in args.models}
    chart = bar_chart("Asked in both directions", "right answers", ["forward", "reversed"], bars)
    save_chart(chart, args.output_dir / "reversal.svg")
    kind = "couplets" if couplets else "facts"
    caveats = f"{_ASKED}\n\n{_PUBLISHED}" if couplets else _ASKED_FACTS
    ends = ", no end of text is proposed by LLaDA" if couplets and not args.keep_end else ""
    return (
        f"# The reversal curse: {len(facts)} {kind}\n\n`{args.data.name}`, answers of {args.max_new_tokens} tokens, "
        f"greedy, LLaDA in one block with a token per step{ends}. Right answers in per cent.\n\n"
        f"{format_directions(asked)}\n\n{_examples(asked)}\n\n![right answers](reversal.svg)\n\n"
        f"## What this does not say\n\n{caveats}\n"
    )


def _examples(asked: "list[Asked]") -> str:
    """The first reversed question, and what everybody wrote."""
    from llada.generation.printable import printable

    first = [item for item in asked if item.direction == "reverse" and item.number == 0]
    written = [f"- {item.model}: {printable(item.written)!r}" for item in first]
    return "\n".join([f"For example, {printable(first[0].question)!r}, which is {first[0].right!r}:", "", *written])


def _load(name: str, device_map: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    # isort: off
    import llada  # noqa: F401  registers the models
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, device_map=device_map, dtype="auto", **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot load {name}: {error}") from error
    if device_map is None:
        model.to(torch.accelerator.current_accelerator() or "cpu")
    return model, tokenizer


def _read_to_train(args: argparse.Namespace) -> "ReversalFacts":
    """What two small models are to be trained on."""
    from llada.evaluation.couplets import Couplet
    from llada.evaluation.reversal_facts import ReversalFacts, draw_facts, hold_out, read_facts

    if args.data is None:
        return draw_facts(args.num_pairs or 120, seed=args.seed)
    found = read_facts(args.data)
    if isinstance(found, ReversalFacts):
        if args.num_pairs is not None:
            raise ValueError(f"`{args.data}` says what is held out; leave out `--num-pairs`.")
        return found
    if isinstance(found[0], Couplet):
        couplets = [couplet.split(args.pieces) for couplet in found if isinstance(couplet, Couplet)]
        return hold_out(couplets, args.num_pairs or 64, args.seed)
    return hold_out(found, args.num_pairs or 120, args.seed)


def _train_and_ask(args: argparse.Namespace) -> str:
    """Trains a LLaDA and a causal model, asks them, and returns the page."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.utils import logging

    from llada.evaluation.couplets import Couplet
    from llada.evaluation.reversal_scores import COUPLET_ROWS, ROWS, evaluate_reversal, format_table, longest_answer
    from llada.evaluation.reversal_facts import build_reversal_tokenizer
    from llada.evaluation.charts import bar_chart, save_chart

    from .demo_training import train_causal_twin, train_llada

    logging.disable_progress_bar()
    facts = _read_to_train(args)
    couplets = isinstance(facts.held_out[0], Couplet)
    steps = args.steps or (1500 if couplets else 1000)
    causal_steps = args.causal_steps or (400 if couplets else 250)
    data = args.data and str(args.data.resolve())
    settings = {name: getattr(args, name) for name in ("num_pairs", "pieces", "seed")}
    note_settings(args.output_dir, {**settings, "data": data, "steps": steps, "causal_steps": causal_steps})
    # a network of this size is fastest on one thread
    torch.set_num_threads(1)
    tokenizer = build_reversal_tokenizer(None if args.data is None else facts)
    ours, causal = args.output_dir / "llada", args.output_dir / "causal"
    print(f"{len(facts.names)} {'couplets' if couplets else 'facts'}, {len(tokenizer)} tokens", file=sys.stderr)
    if not (ours / "README.md").is_file():
        train_llada(
            facts,
            str(ours),
            steps,
            args.seed,
            tokenizer,
            f"`llada reversal` with {steps} steps and seed {args.seed}",
            args.output_dir / "checkpoints-llada",
        )
    if not (causal / "tokenizer.json").is_file():
        twin = train_causal_twin(facts, causal_steps, args.seed, tokenizer, args.output_dir / "checkpoints-causal")
        twin.save_pretrained(causal)
        tokenizer.save_pretrained(causal)
        _remove(args.output_dir / "checkpoints-causal")
    length = longest_answer(tokenizer, facts)
    results = {
        "LLaDA": evaluate_reversal(AutoModelForMaskedLM.from_pretrained(ours), tokenizer, facts, length),
        "causal": evaluate_reversal(AutoModelForCausalLM.from_pretrained(causal), tokenizer, facts, length),
    }
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = COUPLET_ROWS if couplets else ROWS
    num_held_out = len(facts.held_out)
    bars = {
        name: [None if kind not in shares else _with_error(shares[kind], num_held_out) for kind in rows]
        for name, shares in results.items()
    }
    chart = bar_chart("Read in one direction, asked in both", "right answers", [rows[kind][0] for kind in rows], bars)
    save_chart(chart, args.output_dir / "reversal.svg")
    example = facts.held_out[0]
    text = "invented facts" if args.data is None else f"`{args.data.name}`"
    caveats = _TRAINED.format(
        reverse=rows["reverse_question"][0],
        ranking=rows["ranking"][0],
        infill=rows["infill"][0],
        turned=rows["reverse_declaration"][0],
        num_demonstrated=len(facts.demonstrated),
        num_held_out=num_held_out,
        steps=steps,
        causal_steps=causal_steps,
        error=_with_error(0.5, num_held_out)[1],
    )
    return (
        f"# The reversal curse: two small models of the same size\n\n{len(facts.names)} pairs of {text}, each read in "
        f"one order, such as {example.sentence!r}. Right answers about {num_held_out} of them, which no question was "
        f"seen about; seed {args.seed}.\n\n{format_table(results, rows)}\n\n![right answers](reversal.svg)\n\n"
        f"## How to read it\n\n{caveats}\n"
    )


def _with_error(share: float, number: int) -> tuple[float, float]:
    return share, (share * (1 - share) / number) ** 0.5


def _remove(folder: Path) -> None:
    import shutil

    if folder.is_dir():
        shutil.rmtree(folder)


__all__ = ["add_parser", "run"]
