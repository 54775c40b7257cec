"""Measure a published number: its settings, and what was published and reproduced beside what is measured.

  llada eval --list
  llada eval --recipe llada-8b-instruct/gsm8k --batch-size 8
  llada eval --recipe llada-8b-instruct/gsm8k --model FOLDER --set block_length=32 --limit 100
  llada eval --recipe my-recipes.yaml/my-task
  llada eval --compare one/result.json other/result.json

Runs lm-evaluation-harness, which loads the data of most tasks from the Hub. What is interrupted goes on when the same
command is given again. On several devices: `accelerate launch -m llada eval ...`. Results that were measured with
unequal settings are not compared.
"""

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="CHECKPOINT/TASK", help="what to measure; also FILE.yaml/TASK")
    what.add_argument("--list", action="store_true", help="show all recipes")
    what.add_argument("--compare", nargs=2, metavar="RESULT", help="two results, files that were saved")
    parser.add_argument("--model", help="another checkpoint than that of the recipe, a folder or Hub id")
    parser.add_argument("--peft", help="an adapter, a folder or Hub id")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting that is not as in the recipe"
    )
    parser.add_argument("--num-fewshot", type=int, help="another number of examples than in the recipe")
    parser.add_argument("--limit", type=float, help="only so many documents of a task, or this share of them")
    parser.add_argument("--batch-size", default="1", help="rows of a forward pass, or auto")
    parser.add_argument("--device", help="e.g. cuda:1; the accelerator if not given")
    parser.add_argument("--include-path", metavar="FOLDER", help="tasks of one's own for the harness")
    parser.add_argument("--output-dir", default="evaluations", help="where answers and results are kept")
    parser.add_argument(
        "--confirm-run-unsafe-code", action="store_true", help="run programs that the model writes, where a task does"
    )


def run(args: argparse.Namespace) -> None:
    if args.list:
        _list()
    elif args.compare:
        _compare(*args.compare)
    else:
        _measure(args)


def _measure(args: argparse.Namespace) -> None:
    from llada.evaluation.recipes import load_recipe, shell

    from .lm_eval import import_harness
    from .sampling import read_setting

    recipe = load_recipe(args.recipe)
    changed = dict(map(read_setting, args.set)) | ({} if args.peft is None else {"peft": args.peft})
    options = {
        "limit": int(args.limit) if args.limit and args.limit >= 1 else args.limit,
        "batch_size": _read_size(args.batch_size),
        "device": args.device,
        "include_path": args.include_path,
    }
    # says so if there is no way to run it
    command = shell(recipe.departing(changed, args.num_fewshot).command(args.model, **options))
    import_harness()
    if args.confirm_run_unsafe_code:
        # the metric of such tasks asks for this, too
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"

    from llada.evaluation.measuring import run_recipe

    # of several processes the first speaks
    if os.environ.get("RANK", "0") == "0":
        print(command, flush=True)
    result = run_recipe(
        recipe,
        Path(args.output_dir),
        args.model,
        changed,
        args.num_fewshot,
        runs_code=args.confirm_run_unsafe_code,
        **options,
    )
    if result is not None:
        _show(result)


def _read_size(text: str) -> int | str:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text == "auto":
        return text
    raise ValueError(f"`--batch-size {text}` is no number of rows; write at least 1, or auto.")


def _show(result: dict[str, Any]) -> None:
    """The published figure and its reproductions beside what was measured."""
    settings = result["settings"]
    print(f"{result['recipe']}: {settings['task']}, {settings['metric']}, {settings['num_fewshot']}-shot")
    if result["published"] is not None:
        _show_figure("published", f"{result['published']:6.2f}", result["published_by"])
    for entry in result["reproduced_by"]:
        _show_figure("reproduced", f"{entry['value']:6.2f}", entry)
    figure = _with_error(f"{result['measured']:6.2f}", result["standard_error"])
    print(f"  measured    {figure:16}  {result['checkpoint']}, {result['num_documents']} documents")
    if departures := result["departs_from_recipe"]:
        changed = "; ".join(f"{name} is {here!r} and not {there!r}" for name, (there, here) in departures.items())
        print(f"  The settings are not those of the recipe: {changed}.")
    print(f"The result with all settings is {result['path']}.")


def _with_error(figure: str, standard_error: float | None) -> str:
    return figure if standard_error is None else f"{figure} ± {standard_error:.2f}"


def _show_figure(kind: str, figure: str, about: dict[str, Any]) -> None:
    length = [f"length {about['length']}"] if "length" in about else []
    words = (
        [about.get(name) for name in ("who", "harness")]
        + length
        + [about.get(name) for name in ("settings", "source")]
    )
    print(f"  {kind:10}  {figure:16}  {', '.join(str(word) for word in words if word)}")


def _list() -> None:
    from llada.evaluation.recipes import list_recipes

    for recipe in list_recipes():
        published = "" if recipe.published is None else f"{recipe.published:.2f}"
        task = recipe.harness_task or "not in lm-evaluation-harness"
        print(f"{recipe.name:30} {published:>6}  {task}")


def _compare(*paths: str) -> None:
    from llada.evaluation.comparing import compare_results, load_result

    one, other = map(load_result, paths)
    difference, error = compare_results(one, other)
    for result in (one, other):
        figure = _with_error(f"{result['measured']:6.2f}", result["standard_error"])
        print(f"{figure}  {result['checkpoint']}")
    print(f"{_with_error(f'{difference:+6.2f}', error)}  the second over the first")
    for name in sorted({*one["versions"], *other["versions"]}):
        versions = [result["versions"].get(name) for result in (one, other)]
        if versions[0] != versions[1]:
            print(f"  {name} is {versions[0]} and {versions[1]}")


__all__ = ["add_parser", "run"]
