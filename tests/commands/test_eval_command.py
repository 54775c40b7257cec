"""`llada eval`: recipes from the first answer to the comparison of two results."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER, load_demo

from llada.evaluation import log_likelihood
from llada.evaluation.harness_model import LLaDALM
from llada.evaluation.harness_tasks import load_facts
from llada.evaluation.measuring import read_figure
from llada.evaluation.recipes import Recipe
from llada_cli import main


DEMO = str(DEMO_FOLDER)
OWN = """
checkpoint: {demo}
published_by: {{who: we, harness: ours, source: a table}}
tasks:
  choice:
    harness_task: llada_facts_choice
    metric: acc,none
    num_fewshot: 0
    model_args: {{estimator: exact, check_greedy: false}}
    published: 96.5
    reproduced_by:
      - {{who: they, harness: theirs, length: 4, settings: all others, value: 91.25}}
  code:
    harness_task: llada_facts_reverse
    metric: exact_match,none
    runs_code: true
  wrong:
    harness_task: llada_facts_reverse
    metric: acc,none
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # asks many programs about this machine, which takes seconds
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def recipes(tmp_path: Path) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.format(demo=DEMO), encoding="utf-8")
    return str(path)


def measure(folder: Path, *arguments: str) -> int:
    return main(["eval", "--output-dir", str(folder), "--batch-size", "32", "--device", "cpu", *arguments])


def result_of(folder: Path) -> Path:
    (path,) = folder.rglob("result*.json")
    return path


def test_a_figure_beside_what_was_published(recipes: str, tmp_path: Path, capsys) -> None:
    assert measure(tmp_path / "all", "--recipe", f"{recipes}/choice") == 0
    output = capsys.readouterr().out
    assert output.startswith(
        f"llada lm-eval run --model llada --model_args pretrained={DEMO},estimator=exact,check_greedy=False --tasks "
        "llada_facts_choice --num_fewshot 0 --batch_size 32 --device cpu\n"
    )
    result = json.loads(result_of(tmp_path / "all").read_text())
    assert "  published    96.50            we, ours, a table\n" in output
    assert "  reproduced   91.25            they, theirs, length 4, all others\n" in output
    measured = f"  measured    {result['measured']:6.2f} ± {result['standard_error']:.2f}"
    assert measured in output and "30 documents" in output and "not those of the recipe" not in output
    rows = load_facts(DEMO)["test"]
    pairs = [(row["reverse"], choice) for row in rows for choice in row["choices"]]
    model, tokenizer, _ = load_demo()
    scores = log_likelihood(model, tokenizer, *zip(*pairs, strict=True), estimator="exact", batch_size=64)
    share = (scores.log_likelihood.view(-1, 4).argmax(dim=1) == torch.tensor(list(rows["answer"]))).double().mean()
    assert result["measured"] == pytest.approx(100 * float(share))
    assert result["standard_error"] == pytest.approx(100 * float(share * (1 - share) / 29) ** 0.5, abs=1e-6)
    settings = result["settings"]
    assert settings["scoring"] == {
        "estimator": "exact", "num_draws": None, "cfg_scale": 0.0, "seed": 0, "check_greedy": False
    }  # fmt: skip
    assert (settings["task"], settings["num_fewshot"], settings["limit"]) == ("llada_facts_choice", 0, None)
    assert {"llada-hf", "transformers", "torch", "lm_eval", "python"} <= result["versions"].keys()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results of the same recipe: as it is, with other settings, and of less documents."""
    folder, found = tmp_path_factory.mktemp("two"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        for name, more in (("plain", []), ("again", []), ("slow", ["--set", "block_length=1"]), ("less", ["-1"])):
            limit = ["--limit", "4" if more == ["-1"] else "6"]
            more = [] if more == ["-1"] else more
            assert measure(folder / name, "--recipe", "llada-demo/reverse", "--model", DEMO, *limit, *more) == 0
            found[name] = result_of(folder / name)
    return found


def test_results_of_equal_settings_are_compared(two, tmp_path: Path, capsys) -> None:
    other = json.loads(two["again"].read_text())
    # another checkpoint, with special tokens of its own
    other |= {"checkpoint": "another", "measured": other["measured"] - 30.0, "standard_error": 4.0}
    other["settings"]["writing"]["mask_token_id"] = 5
    other["versions"]["torch"] = "2.0"
    (tmp_path / "other.json").write_text(json.dumps(other))
    one = json.loads(two["plain"].read_text())
    one["standard_error"] = 3.0
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert main(["eval", "--compare", str(tmp_path / "one.json"), str(tmp_path / "other.json")]) == 0
    output = capsys.readouterr().out
    assert "-30.00 ± 5.00  the second over the first\n" in output
    assert f"  torch is {torch.__version__} and 2.0\n" in output and "transformers is" not in output


def test_a_figure_without_an_error_is_shown_without(two, tmp_path: Path, capsys) -> None:
    result = json.loads(two["plain"].read_text())
    result["standard_error"] = None
    (tmp_path / "one.json").write_text(json.dumps(result))
    assert main(["eval", "--compare", str(tmp_path / "one.json"), str(two["again"])]) == 0
    first, _, last = capsys.readouterr().out.splitlines()
    assert "±" not in first + last and last == " +0.00  the second over the first"


def test_a_task_that_stands_for_several_is_their_mean() -> None:
    rows = {"a": {"acc,none": 0.5, "acc_stderr,none": 0.1}, "b": {"acc,none": 0.8, "acc_stderr,none": 0.2}}
    results = {"results": rows, "n-samples": {"a": {"effective": 30}, "b": {"effective": 10}}}
    recipe = Recipe("own/both", "model", harness_task="both", metric="acc,none")
    expected = (0.575, ((30 * 0.1) ** 2 + (10 * 0.2) ** 2) ** 0.5 / 40, 40)
    assert read_figure(results, recipe) == pytest.approx(expected)
    rows["b"]["acc_stderr,none"] = "N/A"
    assert read_figure(results, recipe) == (pytest.approx(0.575), None, 40)


@pytest.mark.parametrize(
    ("name", "difference"),
    [("slow", "writing.block_length is 4 and 1"), ("less", "limit is 6 and 4")],
)
def test_results_of_unequal_settings_are_not_compared(two, name, difference, capsys) -> None:
    assert main(["eval", "--compare", str(two["plain"]), str(two[name])]) == 1
    output = capsys.readouterr()
    assert f"The two were measured with unequal settings: {difference}. Measure one of them again." in output.err
    assert "±" not in output.out


def test_what_departs_from_the_recipe_is_said(two) -> None:
    departures = {name: json.loads(path.read_text())["departs_from_recipe"] for name, path in two.items()}
    assert departures["plain"] == {"limit": [None, 6]}
    assert departures["slow"] == {"block_length": [4, 1], "limit": [None, 6]}


def test_programs_are_run_where_that_was_said(recipes: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    assert measure(tmp_path, "--recipe", f"{recipes}/code", "--limit", "1", "--confirm-run-unsafe-code") == 0
    assert capsys.readouterr().out.startswith("HF_ALLOW_CODE_EVAL=1 llada lm-eval run --model llada")
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    arguments = ["--recipe", "llada-demo/choice", "--model", DEMO, "--limit", "4"]
    score_all, calls = LLaDALM._score, []

    def stop_in_the_second_batch(self, pairs, numbers):
        calls.append(numbers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score_all(self, pairs, numbers)

    monkeypatch.setattr(LLaDALM, "_score", stop_in_the_second_batch)
    command = ["eval", "--output-dir", str(tmp_path), "--batch-size", "5", "--device", "cpu", *arguments]
    assert main(command) == 130
    assert re.search(r"answered so far is in .*; the same command goes on", capsys.readouterr().err)
    assert main(command) == 0
    # of 16 pairs 5 were kept
    assert [len(numbers) for (numbers,) in calls] == [5, 5, 5, 5, 1]
    assert result_of(tmp_path).name == "result-limit-4.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "llada-8b-instruct/gsmk8"], "did you mean llada-8b-instruct/gsm8k?"),
        (["--recipe", "llada-8b-base/humaneval_fim"], "llada-8b-base/humaneval_fim cannot be run"),
        (["--recipe", "llada-demo/reverse", "--model", DEMO, "--batch-size", "0"], "is no number of rows"),
        (["--recipe", "llada-demo/reverse", "--model", DEMO, "--set", "gen_length=3"], "(write `max_new_tokens`)"),
        (["--recipe", "{recipes}/code"], "runs programs that the model writes, on this machine"),
        (["--recipe", "{recipes}/wrong", "--limit", "1"], "has no 'acc,none', the metric of own/wrong; it has"),
        (["--compare", "missing.json", "missing.json"], "Cannot read the result missing.json: No such file"),
        (["--compare", "{recipes}", "{recipes}"], "is no result of `llada eval`"),
    ],
)
def test_what_is_typed_wrong(arguments, message, recipes: str, tmp_path: Path, capsys) -> None:
    arguments = [argument.format(recipes=recipes) for argument in arguments]
    assert main(["eval", "--device", "cpu", "--output-dir", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_json_file_that_is_no_result(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main(["eval", "--compare", *[str(tmp_path / "a.json")] * 2]) == 1
    assert "name a result.json that it saved" in capsys.readouterr().err


def test_all_recipes_are_listed(capsys) -> None:
    assert main(["eval", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "llada-8b-instruct/gsm8k         69.40  gsm8k_cot" in lines
    assert "llada-8b-base/humaneval_fim     73.80  not in lm-evaluation-harness" in lines
    assert len(lines) == 15 + 9 + 6 + 10 + 9 + 3
