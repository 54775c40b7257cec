"""Runs a recipe through lm-evaluation-harness, and compares what was measured."""

import datetime
import hashlib
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from .comparing import find_differences
from .harness_model import LLaDALM
from .harness_tasks import TASKS_FOLDER
from .recipes import Recipe, shell


_PACKAGES = ("llada-hf", "transformers", "torch", "lm_eval", "datasets", "peft")


def run_recipe(
    recipe: Recipe,
    output_dir: Path,
    pretrained: str | None = None,
    model_args: dict[str, Any] | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    include_path: str | None = None,
    runs_code: bool = False,
) -> dict[str, Any] | None:
    """
    Measures what a recipe is about. Answers are kept in `output_dir`: after an interruption the same call goes on.

    Args:
        recipe ([`~llada.evaluation.recipes.Recipe`]):
            The recipe.
        output_dir (`Path`):
            Folder for answers and result.
        pretrained (`str`, *optional*):
            Another checkpoint than that of the recipe.
        model_args (`dict[str, Any]`, *optional*):
            Model arguments that replace those of the recipe. The result says so.
        num_fewshot (`int`, *optional*):
            Another number of examples.
        limit (`float`, *optional*):
            Only so many documents of each task, or this share of them.
        batch_size (`int` or `str`, *optional*, defaults to 1):
            Rows of a forward pass.
        device (`str`, *optional*):
            The accelerator if there is one.
        include_path (`str`, *optional*):
            A folder with tasks of one's own.
        runs_code (`bool`, *optional*, defaults to `False`):
            Whether programs that the model writes may be run on this machine, which some recipes need.

    Returns:
        `dict[str, Any]`: The result, as it is saved: the figure with its standard error, what was published and
        reproduced, all settings, the versions, and the command. `None` in all processes but the first.

    Raises:
        ValueError: If the harness has no such task, programs may not be run, or a setting cannot work.
        KeyboardInterrupt: If it was interrupted, with what to do.
    """
    own = recipe.departing(model_args or {}, num_fewshot)
    if recipe.runs_code and not runs_code:
        raise ValueError(
            f"{recipe.name} runs programs that the model writes, on this machine; write `--confirm-run-unsafe-code` "
            "where that does no harm."
        )
    more = {"limit": limit, "batch_size": batch_size, "device": device, "include_path": include_path}
    command = shell(own.command(pretrained, **more))
    settings = {"pretrained": pretrained or recipe.checkpoint, **own.model_args}
    model = LLaDALM(**settings, batch_size=batch_size, device=device)
    asked = {
        "task": own.harness_task,
        "metric": own.metric,
        "num_fewshot": own.num_fewshot,
        "apply_chat_template": own.apply_chat_template,
    }
    folder = Path(output_dir) / recipe.name.replace("/", "--") / _digest({**asked, **model.settings()})
    paths = [str(TASKS_FOLDER), *([include_path] if include_path else [])]
    try:
        results: Any = simple_evaluate(
            model,
            tasks=[own.harness_task],
            num_fewshot=own.num_fewshot,
            limit=limit,
            use_cache=str(folder / "answers"),
            apply_chat_template=own.apply_chat_template,
            task_manager=_find_task(str(own.harness_task), paths, settings),
            confirm_run_unsafe_code=runs_code,
        )
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(
            f"What is answered so far is in {folder}; the same command goes on from there."
        ) from interruption
    if results is None:
        return None
    value, standard_error, num_documents = read_figure(results, own)
    info = results["config"]["llada"]
    result = {
        "recipe": recipe.name,
        "checkpoint": info["pretrained"],
        "revision": info["revision"],
        "adapter": info["peft"],
        "measured": 100 * value,
        "standard_error": None if standard_error is None else 100 * standard_error,
        "num_documents": num_documents,
        "published": recipe.published,
        "published_by": recipe.published_by,
        "reproduced_by": recipe.reproduced_by,
        "departs_from_recipe": _departures(recipe, own, limit),
        "settings": {
            **asked,
            "limit": limit,
            "examples": results["n-shot"],
            "task_versions": results["versions"],
            **{name: info[name] for name in ("dtype", "max_length", "scoring", "writing")},
        },
        "versions": _versions(),
        "command": command,
        "device": str(model.device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    name = "result.json" if limit is None else f"result-limit-{limit:g}.json"
    (folder / name).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {**result, "path": str(folder / name)}


def _find_task(name: str, paths: list[str], settings: dict[str, Any]) -> TaskManager:
    """Reads the tasks in these folders, and the thousands of the harness only if the task is not among them."""
    ours = TaskManager(include_path=paths, include_defaults=False, metadata=settings)
    if ours.match_tasks([name]):
        return ours
    whole = TaskManager(include_path=paths, metadata=settings)
    if not whole.match_tasks([name]):
        raise ValueError(
            f"The harness has no task {name!r}; name the folder of your own tasks with `--include-path`, or see "
            "`llada lm-eval ls tasks`."
        )
    return whole


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def read_figure(results: dict[str, Any], recipe: Recipe) -> tuple[float, float | None, int]:
    """
    Finds the figure of a recipe in the results of the harness: that of its task, or the mean over the documents of all
    tasks that a tag stands for.

    Args:
        results (`dict[str, Any]`):
            What `simple_evaluate` returned.
        recipe ([`~llada.evaluation.recipes.Recipe`]):
            The recipe.

    Returns:
        `tuple`: The figure, its standard error (`None` if it has none), and the number of documents.

    Raises:
        ValueError: If the task has no such metric.
    """
    assert recipe.metric is not None and recipe.harness_task is not None, "a recipe that was run has both"
    name, _, kind = recipe.metric.partition(",")
    error_name = f"{name}_stderr,{kind}"
    counts = {task: count["effective"] for task, count in results["n-samples"].items()}
    rows = results["results"]
    names = [recipe.harness_task]
    if recipe.metric not in rows.get(recipe.harness_task, {}):
        names = [task for task in counts if recipe.metric in rows[task]]
    if not names:
        known = sorted({key for row in rows.values() for key in row if "," in key and "_stderr" not in key})
        raise ValueError(
            f"The task {recipe.harness_task} has no {recipe.metric!r}, the metric of {recipe.name}; it has {known}."
        )
    sizes = [counts.get(task, 1) for task in names]
    values, errors = ([rows[task].get(key) for task in names] for key in (recipe.metric, error_name))
    total = sum(sizes)
    value = sum(size * one for size, one in zip(sizes, values, strict=True)) / total
    error = None
    # a metric that is no mean has none, which the harness writes as text
    if all(isinstance(one, float) for one in errors):
        error = math.sqrt(sum((size * one) ** 2 for size, one in zip(sizes, errors, strict=True))) / total
    return float(value), error, sum(counts.values())


def _departures(recipe: Recipe, own: Recipe, limit: float | None) -> dict[str, Any]:
    """What is not as the recipe says -> the values there and here."""
    found = find_differences(recipe.model_args, own.model_args)
    found |= find_differences({"num_fewshot": recipe.num_fewshot}, {"num_fewshot": own.num_fewshot})
    return {**found, **({} if limit is None else {"limit": (None, limit)})}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # a bare checkout is not installed
            found[name] = "not installed"
    return found


__all__ = ["read_figure", "run_recipe"]
