"""`llada lm-eval`: the command line of the harness."""

import json
import sys
from pathlib import Path

import pytest
from demo_checkpoint import DEMO_FOLDER
from lm_eval.tasks import TaskManager

from llada_cli import main


DEMO = str(DEMO_FOLDER)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    # the harness' own tasks are thousands of files
    initialise = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager, "__init__", lambda *args, **kwargs: initialise(*args, **kwargs, include_defaults=False)
    )


def test_a_task_is_run(tmp_path: Path, capsys) -> None:
    arguments = ["--tasks", "llada_facts_reverse", "--limit", "4", "--output_path", str(tmp_path), "--batch_size", "4"]
    assert (
        main(["lm-eval", *arguments, "--model_args", f"pretrained={DEMO},steps=4", "--gen_kwargs", "threshold=0.9"])
        == 0
    )
    assert "llada_facts_reverse" in capsys.readouterr().out
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["config"]["model"] == "llada"
    assert results["results"]["llada_facts_reverse"]["exact_match,none"] >= 0.5
    assert results["config"]["llada"]["sampling"]["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_args", f"pretrained={DEMO}", "--gen_kwargs", "gen_length=4"], "(write `max_new_tokens`)"),
        (["--model_args", f"pretrained={DEMO},mc_num=4"], "(write `num_draws`)"),
        (["--model", "hf", "--model_args", f"pretrained={DEMO}"], "which `--model hf` scores wrongly"),
    ],
)
def test_what_is_typed_wrong(arguments, message, capsys) -> None:
    assert main(["lm-eval", "run", "--tasks", "llada_facts_reverse", "--limit", "1", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_options_there_is_help(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["lm-eval"])
    assert end.value.code == 0 and "llada_facts_forward" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["lm-eval", "run", "--help"])
    assert end.value.code == 0 and "--num_fewshot" in capsys.readouterr().out


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "llada.evaluation.harness_model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    assert main(["lm-eval", "ls", "tasks"]) == 1
    assert "pip install 'llada-hf[eval]'" in capsys.readouterr().err
