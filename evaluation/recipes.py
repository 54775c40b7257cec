"""Published numbers and the settings they were measured with, as data: the YAML files in `recipes/`."""

import dataclasses
import difflib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """
    How a figure of a checkpoint on a task was measured, and what it was.

    Args:
        name (`str`):
            `CHECKPOINT/TASK`, e.g. `"llada-8b-instruct/gsm8k"`.
        checkpoint (`str`):
            Folder or repository.
        harness_task (`str`, *optional*):
            The task of lm-evaluation-harness.
        metric (`str`, *optional*):
            What of its results the figure is, with its filter: `"exact_match,flexible-extract"`.
        missing (`str`, *optional*):
            Why the harness has no such task.
        num_fewshot (`int`, *optional*):
            Examples in a prompt, those of the task if not given.
        model_args (`dict[str, Any]`, *optional*):
            Arguments of [`~llada.evaluation.harness_model.LLaDALM`]: settings of generation, or of the estimator.
        apply_chat_template (`bool`, *optional*, defaults to `False`):
            Whether prompts are conversations.
        runs_code (`bool`, *optional*, defaults to `False`):
            Whether the task runs programs that the model wrote.
        published (`float`, *optional*):
            The figure, in percent.
        published_by (`dict[str, Any]`, *optional*):
            `who` measured it, the `harness`, and the `source`.
        reproduced_by (`list[dict[str, Any]]`, *optional*):
            What others measured: `who`, the `harness`, the `length` of an answer, other `settings`, and the `value`.
    """

    name: str
    checkpoint: str
    harness_task: str | None = None
    metric: str | None = None
    missing: str | None = None
    num_fewshot: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    apply_chat_template: bool = False
    runs_code: bool = False
    published: float | None = None
    published_by: dict[str, Any] = field(default_factory=dict)
    reproduced_by: list[dict[str, Any]] = field(default_factory=list)

    def departing(self, model_args: dict[str, Any], num_fewshot: int | None = None) -> "Recipe":
        """The recipe with other settings: model arguments that replace its own, and another number of examples."""
        return dataclasses.replace(
            self,
            model_args={**self.model_args, **model_args},
            num_fewshot=self.num_fewshot if num_fewshot is None else num_fewshot,
        )

    def command(self, pretrained: str | None = None, **more: Any) -> list[str]:
        """
        The command that measures it.

        Args:
            pretrained (`str`, *optional*):
                The checkpoint, that of the recipe if not given.
            more (`dict[str, Any]`, *optional*):
                Further options of the harness: `limit`, `batch_size`, ...

        Returns:
            `list[str]`: Words for a shell.

        Raises:
            ValueError: If the harness has no such task.
        """
        if self.harness_task is None:
            raise ValueError(
                f"{self.name} cannot be run: {self.missing}. Its settings are {self.model_args}, with "
                f"{self.num_fewshot} examples."
            )
        settings = {"pretrained": pretrained or self.checkpoint, **self.model_args}
        options: dict[str, Any] = {"model": "llada", "model_args": ",".join(f"{k}={v}" for k, v in settings.items())}
        options["tasks"] = self.harness_task
        options |= {"num_fewshot": self.num_fewshot, **more}
        # the metric of such tasks asks for this, too
        words = ["HF_ALLOW_CODE_EVAL=1"] * self.runs_code + ["llada", "lm-eval", "run"]
        for name, value in options.items():
            if value is not None:
                words += [f"--{name}", str(value)]
        words += ["--apply_chat_template"] * self.apply_chat_template
        return words + ["--confirm_run_unsafe_code"] * self.runs_code


def list_recipes() -> list[Recipe]:
    """The recipes of this package."""
    return [recipe for path in sorted(RECIPES_FOLDER.glob("*.yaml")) for recipe in read_recipes(path).values()]


def read_recipes(path: Path) -> dict[str, Recipe]:
    """
    The recipes of a file.

    Args:
        path (`Path`):
            A YAML file with `checkpoint`, `published_by`, `apply_chat_template`, and `tasks`: fields of [`Recipe`] by
            the name of the task.

    Returns:
        `dict[str, Recipe]`: By the name of the task.

    Raises:
        ValueError: If the file is none, or a field is missing or unknown.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read the recipes {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or not {"checkpoint", "tasks"} <= content.keys():
        raise ValueError(f"{path} holds no recipes; write `checkpoint:` and `tasks:`.")
    common = {name: content[name] for name in ("published_by", "apply_chat_template") if name in content}
    recipes = {}
    for task, fields in content["tasks"].items():
        name = f"{path.stem}/{task}"
        try:
            recipe = Recipe(name, content["checkpoint"], **{**common, **fields})
        except TypeError as error:
            raise ValueError(f"The recipe {name} has a field that there is not: {error}.") from error
        if (recipe.harness_task is None) != (recipe.metric is None) or not (recipe.harness_task or recipe.missing):
            raise ValueError(f"The recipe {name} needs a `harness_task` and its `metric`, or why it is `missing`.")
        recipes[str(task)] = recipe
    return recipes


def load_recipe(name: str) -> Recipe:
    """
    Finds a recipe.

    Args:
        name (`str`):
            `CHECKPOINT/TASK` of a recipe of this package, or a YAML file of one's own with `/TASK` behind it.

    Returns:
        [`Recipe`].

    Raises:
        ValueError: If there is none of that name.
    """
    file, _, task = name.rpartition("/")
    path = Path(file) if file.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{file}.yaml"
    if path.parent == RECIPES_FOLDER and not path.is_file():
        known = [recipe.name for recipe in list_recipes()]
    else:
        recipes = read_recipes(path)
        if task in recipes:
            return recipes[task]
        known = [f"{file}/{other}" for other in recipes]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known[:20])}."
    raise ValueError(f"There is no recipe {name!r}; {hint} `llada eval --list` shows all.")


def shell(words: list[str]) -> str:
    """Words as one types them into a shell."""
    return shlex.join(words)


__all__ = ["RECIPES_FOLDER", "Recipe", "list_recipes", "load_recipe", "read_recipes", "shell"]
