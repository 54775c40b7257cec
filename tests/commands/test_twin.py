"""Twins from the first step to the page, with models of a few thousand weights."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from installed_wheel import ROOT

from llada_cli import main
from llada_cli.progress import LossBar
from llada_cli.texts import read_and_hold_out


TINY = ["--sizes", "16x1", "--steps", "4", "--batch-size", "2", "--sequence-length", "16", "--unique-rows", "4"]
TINY += ["--epochs", "2", "--eval-rows", "4", "--eval-draws", "2", "--evaluations", "2"]


pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Line {number} of a text that ends.\n" for number in range(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all experiments."""
    folder = tmp_path_factory.mktemp("twin")
    assert main(["twin", "--data", str(text), "--output-dir", str(folder), *TINY, "--traceback"]) == 0
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "result.json").read_text(encoding="utf-8"))


def test_every_experiment_is_run_once(finished: Path) -> None:
    names = {path.name for path in (finished / "runs").iterdir()}
    assert names == {
        "causal-16x1", "diffusion-16x1", "causal-repeated", "diffusion-repeated", "diffusion-fixed",
        "diffusion-unweighted",
    }  # fmt: skip
    causal, diffusion = read(finished, "causal-16x1"), read(finished, "diffusion-16x1")
    assert causal["parameters"] == diffusion["parameters"]
    assert [point["step"] for point in diffusion["curve"]] == [2, 4]
    assert [point["flops"] for point in causal["curve"]] == [point["flops"] for point in diffusion["curve"]]
    # a token has a byte, and a new model knows nothing of 259 of them
    assert all(7 < run["curve"][0]["bits_per_byte"] < 9 for run in (causal, diffusion))
    assert read(finished, "causal-repeated")["epochs"] == 2.0
    assert read(finished, "diffusion-fixed")["objective"]["max_mask_ratio"] == 0.1501

    page = (finished / "report.md").read_text(encoding="utf-8")
    assert f"{causal['curve'][-1]['bits_per_byte']:.3f} | {diffusion['curve'][-1]['bits_per_byte']:.3f}" in page
    with open(finished / "curves.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_only_the_model_and_what_was_found_are_kept(finished: Path) -> None:
    assert {path.name for path in (finished / "runs" / "diffusion-16x1").iterdir()} == {"model", "result.json"}


def test_an_interrupted_run_goes_on(
    finished: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["twin", "fixed-ratio", "--data", str(text), "--output-dir", str(tmp_path), *TINY]
    on_step_end = LossBar.on_step_end
    steps = []

    def interrupt(self: LossBar, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        steps.append((self.label, state.global_step))
        if steps[-1] == ("diffusion-fixed", 3) and steps.count(steps[-1]) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(LossBar, "on_step_end", interrupt)
    assert main(command) == 130
    assert "The same command goes on where it was" in capsys.readouterr().err
    assert (tmp_path / "runs" / "diffusion-fixed" / "checkpoints" / "checkpoint-2").is_dir()
    assert main(command) == 0

    # finished runs are not repeated, the other goes on from its checkpoint
    assert steps[7:] == [("diffusion-fixed", 3), ("diffusion-fixed", 4)]
    for name in ("diffusion-16x1", "diffusion-fixed"):
        there, here = read(finished, name), read(tmp_path, name)
        assert [point["bits_per_byte"] for point in here["curve"]] == pytest.approx(
            [point["bits_per_byte"] for point in there["curve"]], rel=1e-5
        )


def test_other_settings_need_another_folder(finished: Path, text: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["twin", "--data", str(text), "--output-dir", str(finished), *TINY]
    assert main([*command, "--steps", "5"]) == 1
    assert "`steps` was 4 and is 5" in capsys.readouterr().err


def test_speed_is_measured_beside_finished_runs(finished: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llada_cli.twin._NUM_PROMPTS", 2)
    command = ["twin", "scaling", "--data", str(text), "--output-dir", str(finished), *TINY, "--iso-time"]
    assert main(command) == 0

    with open(finished / "speed.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["batch_size"] for row in rows if row["kind"] == "causal"] == ["1", "8", "32"]
    assert "## Speed at equal quality" in (finished / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_two_processes_do_what_one_does(text: Path, tmp_path: Path) -> None:
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ["--data", str(text), "--output-dir", str(folder), *TINY, "--batch-size", str(4 // processes)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        run = subprocess.run(
            [*command, "-m", "llada", "twin", "scaling", *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        assert run.stdout.count("# Twins") == 1
        causal, diffusion = read(folder, "causal-16x1"), read(folder, "diffusion-16x1")
        assert diffusion["curve"][-1]["tokens"] == 4 * 4 * 16
        curves.append([point["bits_per_byte"] for point in causal["curve"]])
    # the masks of the other model are drawn by each process
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["speed"], "There is no experiment 'speed'"),
        (["--sizes", "64"], "`--sizes 64` is no size"),
        (["--sizes", "20x1"], "write a multiple of 16 before the x"),
        (["--steps", "0"], "`--steps 0` is too small; write at least 1"),
        (["--tokenizer", "there", "--vocab-size", "300"], "leave out `--vocab-size`"),
        (["--data", "nowhere"], "`--data nowhere` is neither a text file nor a folder"),
        (["--vocab-size", "200"], "write at least 259"),
        (["--unique-rows", "100000", "--sizes", "16x1"], "`--unique-rows 100000`, but the text has"),
    ],
)
def test_wrong_options_are_explained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["twin", "--output-dir", str(tmp_path / "twin"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_tenth_of_a_text_is_held_out(text: Path, tmp_path: Path) -> None:
    train, held_out = read_and_hold_out(text, "--data")
    assert (len(train), len(held_out)) == (2, 1)
    assert train[0] + held_out[0] + "".join(train[1:]) == text.read_text(encoding="utf-8")

    (tmp_path / "short.txt").write_text("A line.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="name a longer text"):
        read_and_hold_out(tmp_path / "short.txt", "--data")


def test_a_missing_chart_library_is_told_first(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in ("twin", "reversal"):
        assert main([command, "--output-dir", str(tmp_path / command)]) == 1
        assert "pip install 'llada-hf[eval]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
