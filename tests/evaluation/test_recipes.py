"""Published numbers as data: that they are complete, right, and can be run."""

import re
from pathlib import Path

import pytest
from installed_wheel import ROOT
from lm_eval._cli.harness import HarnessCLI

from llada import DiffusionGenerationConfig, preset
from llada.evaluation.recipes import list_recipes, load_recipe, read_recipes, shell
from llada.modeling_llada.log_likelihood import check_estimator


RECIPES = {recipe.name: recipe for recipe in list_recipes()}

# arXiv 2502.09992, tables 1 and 2; EVAL.md of ML-GSAI/LLaDA and LLaDA-1.5; arXiv 2512.15745
PUBLISHED = {
    "llada-8b-base": {
        "mmlu": 65.9, "bbh": 49.7, "arc_challenge": 45.9, "hellaswag": 70.5, "truthfulqa": 46.1, "winogrande": 74.8,
        "piqa": 73.6, "gsm8k": 70.3, "math": 31.4, "gpqa": 25.2, "humaneval": 35.4, "humaneval_fim": 73.8,
        "mbpp": 40.0, "cmmlu": 69.9, "ceval": 70.5,
    },
    "llada-8b-instruct": {
        "mmlu": 65.5, "mmlu_pro": 37.0, "hellaswag": 74.6, "arc_challenge": 88.5, "gsm8k": 69.4, "math": 31.9,
        "gpqa": 33.3, "humaneval": 49.4, "mbpp": 41.0,
    },
    "llada-1.5": {"gsm8k": 83.8, "math": 42.6, "gpqa": 36.9, "humaneval": 52.4, "mbpp": 42.8, "ifeval": 66.2},
    "llada2.0-mini": {"mmlu": 80.53, "gsm8k": 94.24, "math": 93.22, "humaneval": 86.59, "ifeval": 80.78},
    "llada2.1-mini": {},
}  # fmt: skip
# dllm's examples/llada/README.md, and DARE with OpenCompass
REPRODUCED = {
    ("llada-8b-base", "dllm"): {
        "mmlu": 65.9, "bbh": 47.2, "arc_challenge": 44.1, "hellaswag": 69.2, "truthfulqa": 45.6, "winogrande": 70.4,
        "piqa": 70.7, "gsm8k": 70.7, "math": 32.4, "gpqa": 31.9, "humaneval": 32.9, "mbpp": 38.8, "ceval": 70.4,
        "cmmlu": 69.8,
    },
    ("llada-8b-instruct", "dllm"): {
        "mmlu": 69.8, "mmlu_pro": 36.2, "arc_challenge": 86.4, "hellaswag": 76.7, "gsm8k": 74.7, "math": 31.9,
        "gpqa": 30.6, "humaneval": 47.0, "mbpp": 40.0,
    },
    ("llada-8b-instruct", "DARE"): {
        "mmlu": 65.24, "mmlu_pro": 36.82, "hellaswag": 75.30, "arc_challenge": 87.80, "gsm8k": 79.68, "math": 41.08,
        "gpqa": 31.82, "humaneval": 46.34, "mbpp": 38.80,
    },
    ("llada2.0-mini", "DARE"): {
        "mmlu": 72.54, "mmlu_pro": 57.10, "hellaswag": 82.35, "arc_challenge": 85.76, "gsm8k": 88.48, "math": 81.50,
        "gpqa": 34.34, "humaneval": 81.10, "mbpp": 64.80,
    },
    ("llada2.1-mini", "DARE"): {
        "mmlu": 69.91, "mmlu_pro": 57.52, "hellaswag": 78.00, "arc_challenge": 83.39, "gsm8k": 86.13, "math": 84.56,
        "gpqa": 34.34, "humaneval": 81.10, "mbpp": 62.60,
    },
}  # fmt: skip
# of an answer, of a block, and the end-of-text flag
LENGTHS = {
    "llada-8b-instruct": {
        "mmlu": (3, 3, None), "mmlu_pro": (256, 256, None), "hellaswag": (3, 3, None),
        "arc_challenge": (512, 512, None), "gsm8k": (512, 512, "confidence"), "math": (512, 512, "confidence"),
        "gpqa": (64, 64, "confidence"), "humaneval": (512, 512, "logits"), "mbpp": (256, 256, "confidence"),
    },
    "llada-1.5": {
        "gsm8k": (256, 16, "confidence"), "math": (1024, 128, "confidence"), "gpqa": (256, 16, None),
        "humaneval": (512, 32, "confidence"), "mbpp": (512, 32, "confidence"), "ifeval": (256, 16, "confidence"),
    },
}  # fmt: skip
GUIDANCE = {
    "arc_challenge": 0.5, "hellaswag": 0.5, "truthfulqa": 2.0, "winogrande": 0.0, "gpqa": 0.5, "piqa": 0.5,
    "mmlu": 0.0, "cmmlu": 0.0, "ceval": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_published_figures(checkpoint: str) -> None:
    found = {name.split("/")[1]: recipe for name, recipe in RECIPES.items() if name.split("/")[0] == checkpoint}
    assert {task: recipe.published for task, recipe in found.items() if recipe.published} == PUBLISHED[checkpoint]
    assert all(recipe.published_by["who"] for recipe in found.values() if recipe.published)


@pytest.mark.parametrize(("checkpoint", "who"), REPRODUCED)
def test_reproductions(checkpoint: str, who: str) -> None:
    found = {
        name.split("/")[1]: entry["value"]
        for name, recipe in RECIPES.items()
        if name.split("/")[0] == checkpoint
        for entry in recipe.reproduced_by
        if entry["who"] == who
    }
    assert found == REPRODUCED[checkpoint, who]


def test_lengths_and_flags() -> None:
    for checkpoint, tasks in LENGTHS.items():
        for task, (length, block, flag) in tasks.items():
            settings = RECIPES[f"{checkpoint}/{task}"].model_args
            assert (settings["max_new_tokens"], settings["block_length"], settings["steps"]) == (length, block, length)
            assert settings.get("suppress_eos") == flag
    for task in ("bbh", "gsm8k", "math", "humaneval", "mbpp", "humaneval_fim"):
        settings = RECIPES[f"llada-8b-base/{task}"].model_args
        assert {settings[name] for name in ("max_new_tokens", "block_length", "steps")} == {1024}


def test_guidance_and_draws() -> None:
    for task, guidance in GUIDANCE.items():
        settings = RECIPES[f"llada-8b-base/{task}"].model_args
        assert settings["cfg_scale"] == guidance
        assert settings["num_draws"] == (1 if task in ("mmlu", "cmmlu", "ceval") else 128)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[name]
    assert load_recipe(name) == recipe
    settings = dict(recipe.model_args)
    settings.pop("check_greedy", None)
    if estimator := settings.pop("estimator", None):
        check_estimator(estimator, settings.pop("num_draws", None), settings.pop("cfg_scale", 0.0))
        assert not settings
    elif preset_name := settings.pop("preset", None):
        preset(preset_name, **settings)
    else:
        DiffusionGenerationConfig(**settings)
    if recipe.harness_task is None:
        with pytest.raises(ValueError, match=f"{name} cannot be run: {recipe.missing}"):
            recipe.command()
        return
    words = recipe.command(limit=5)
    monkeypatch.setattr("sys.argv", words[words.index("lm-eval") :])
    options = HarnessCLI().parse_args()
    assert options.model == "llada" and options.model_args == {"pretrained": recipe.checkpoint, **recipe.model_args}
    assert (options.tasks, options.num_fewshot, options.limit) == ([recipe.harness_task], recipe.num_fewshot, 5.0)
    assert getattr(options, "apply_chat_template", False) == recipe.apply_chat_template
    assert getattr(options, "confirm_run_unsafe_code", False) == recipe.runs_code
    assert (words[0] == "HF_ALLOW_CODE_EVAL=1") == recipe.runs_code


def test_the_command_of_an_example() -> None:
    assert shell(load_recipe("llada-8b-instruct/gsm8k").command()) == (
        "llada lm-eval run --model llada --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct,remasking=low_confidence,"
        "temperature=0.0,cfg_scale=0.0,max_new_tokens=512,block_length=512,steps=512,suppress_eos=confidence --tasks "
        "gsm8k_cot --num_fewshot 5 --apply_chat_template"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llada-8b-instruct/gsmk8", r"There is no recipe .*; did you mean llada-8b-instruct/gsm8k\?"),
        ("llada-8B-instruct/gsm8k", r"did you mean llada-8b-instruct/gsm8k\?"),
        ("xyz", "`llada eval --list` shows all"),
        ("missing.yaml/gsm8k", "Cannot read the recipes missing.yaml: No such file"),
    ],
)
def test_recipes_that_there_are_not(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no YAML"),
        ("- 1", "holds no recipes; write `checkpoint:` and `tasks:`"),
        ("checkpoint: a\ntasks: {b: {shots: 3}}", "The recipe own/b has a field that there is not: .*shots"),
        ("checkpoint: a\ntasks: {b: {harness_task: c}}", "own/b needs a `harness_task` and its `metric`"),
        ("checkpoint: a\ntasks: {b: {num_fewshot: 3}}", "or why it is `missing`"),
    ],
)
def test_files_that_are_wrong(text, message, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_recipes(path)


def row_of(recipe) -> str:
    """The line of a recipe in the table of docs/evaluation.md."""
    settings = recipe.model_args
    if "estimator" in settings:
        how = "one masked token" if settings["num_draws"] == 1 else f"{settings['num_draws']} draws"
        how += f", guidance {settings['cfg_scale']}" if settings["cfg_scale"] else ""
    elif "preset" in settings:
        how = f"preset `{settings['preset']}`"
    else:
        how = f"{settings['max_new_tokens']} tokens, blocks of {settings['block_length']}"
        how += f", `suppress_eos={settings['suppress_eos']}`" if "suppress_eos" in settings else ""
    task = f"`{recipe.harness_task}`" if recipe.harness_task else "not in the harness"
    published = "" if recipe.published is None else f"{recipe.published:g}"
    others = ", ".join(
        f"{entry['value']:g} ({entry['who']}{', ' + str(entry['length']) if 'length' in entry else ''})"
        for entry in recipe.reproduced_by
    )
    return f"| `{recipe.name}` | {task} | {recipe.num_fewshot} | {how} | {published} | {others} |"


def test_the_table_of_the_documentation_is_that_of_the_files() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if re.match(r"\| `llada[^`]*/", line)]
    assert shown == [row_of(recipe) for recipe in RECIPES.values() if not recipe.name.startswith("llada-demo/")]
