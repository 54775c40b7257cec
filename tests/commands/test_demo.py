"""The demo from the first fact to the last line it prints, with a third of the facts."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from installed_wheel import ROOT
from markdown_code import run_blocks
from transformers import AutoModelForMaskedLM, AutoTokenizer

from llada import LLaDAModelLM
from llada.evaluation import ReversalFacts, draw_facts, evaluate_reversal
from llada_cli import main
from llada_cli.demo import how_to_call


class Demo(NamedTuple):
    """A finished demo."""

    folder: Path
    printed: str
    progress: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "llada-demo"
    sizes = ["--num-facts", "40", "--steps", "400", "--causal-steps", "100", "--delay", "0"]
    printed, progress = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(progress):
        assert main(["demo", "--output-dir", str(folder), *sizes]) == 0
    return Demo(folder, printed.getvalue(), progress.getvalue())


def shares(printed: str) -> dict[str, list[str]]:
    """The rows of the printed table by what is asked."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    return {asked: values for asked, _, *values in rows}


def percent(text: str) -> float:
    return int(text.removesuffix("%")) / 100


def test_llada_answers_in_reverse_and_the_causal_model_does_not(demo: Demo) -> None:
    table = shares(demo.printed)

    assert table["asked"] == ["LLaDA", "causal"]
    llada, causal = zip(*(table[asked] for asked in ("A is ...", "Who is B?", "... is B")), strict=True)
    assert percent(llada[0]) >= 0.75 and percent(causal[0]) >= 0.95
    assert percent(llada[1]) >= 0.5 and percent(causal[1]) <= 0.1
    assert percent(llada[2]) >= 0.9 and causal[2] == "-"
    # it does know the facts
    assert table["Which name is B?"][0] == "-" and percent(table["Which name is B?"][1]) >= 0.9


def test_table_is_what_the_saved_model_answers(demo: Demo) -> None:
    facts = ReversalFacts.load(demo.folder / "facts.json")
    assert facts == draw_facts(40)

    model = AutoModelForMaskedLM.from_pretrained(demo.folder)
    measured = evaluate_reversal(model, AutoTokenizer.from_pretrained(demo.folder), facts)
    table = shares(demo.printed)
    for kind, asked in {
        "declaration": "A is ...",
        "forward_question": "Who is A?",
        "reverse_question": "Who is B?",
        "infill": "... is B",
        "reverse_declaration": "B is ...",
    }.items():
        assert table[asked][0] == f"{measured[kind]:.0%}"


@pytest.mark.parametrize("label", ["LLaDA", "causal"])
def test_losses_fall_beside_a_bar(demo: Demo, label: str) -> None:
    losses = [float(loss) for loss in re.findall(rf"{label} *: .*?loss=([\d.]+)", demo.progress)]

    assert losses[-1] < losses[0] / 2
    assert re.search(rf"{label} *: 100%\|", demo.progress)


def test_folder_has_the_published_layout(demo: Demo) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "facts.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in demo.folder.iterdir()) < 1_000_000

    config = json.loads((demo.folder / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"]
    assert (config["model_type"], config["d_model"], config["n_layers"], config["mask_token_id"]) == (
        "llada",
        64,
        2,
        2,
    )
    generation = json.loads((demo.folder / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["max_new_tokens"], generation["max_denoising_steps"]) == (False, 4, 4)
    model, loading = AutoModelForMaskedLM.from_pretrained(demo.folder, output_loading_info=True)
    assert type(model) is LLaDAModelLM
    assert not any(loading.values())


def test_answers_are_shown_growing(demo: Demo) -> None:
    fact = ReversalFacts.load(demo.folder / "facts.json").held_out[0]
    _, _, shown = demo.printed.partition(fact.reverse[0])

    steps = re.findall(r"^ +(\d)  (.*)$", shown.split("the causal model says")[0], re.MULTILINE)
    assert [number for number, _ in steps] == ["1", "2", "3", "4"]
    assert [text.count("░") + text.count("·") for _, text in steps[:1]] == [4]
    assert "░" not in steps[-1][1]


def test_what_it_says_to_try_works(demo: Demo, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^  (\S.*) ((?:generate|infill|chat) .*)$", demo.printed, re.MULTILINE)
    fact = ReversalFacts.load(demo.folder / "facts.json").held_out[0]
    commands = [shlex.split(arguments) for _, arguments in lines]
    assert [command[0] for command in commands] == ["generate", "infill", "chat"]
    # the program is found by the shell as it is written
    ((program, *_),) = {(program,) for program, _ in lines}
    version = subprocess.run(f"{program} --version", cwd=ROOT, shell=True, capture_output=True, text=True, check=True)
    assert version.stdout.startswith("llada ")

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{fact.reverse[0]}\n"))
    for command in commands:
        assert main(command) == 0
    assert capsys.readouterr().out == f"{fact.name}\n{fact.sentence}\n{fact.name}\n"

    snippet = textwrap.dedent(demo.printed[demo.printed.index("  import llada") :])
    _, printed = run_blocks(f"```python\n{snippet}```\n", "demo")
    assert printed == f"{fact.name}\n"


def test_the_program_is_called_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my env" / "bin" / "llada"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setattr("sys.argv", [str(program)])
    for folder, path, expected in (
        (tmp_path, "/usr/bin", "'my env/bin/llada'"),
        (program.parent.parent, "/usr/bin", "bin/llada"),
        (Path("/"), "/usr/bin:/bin", shlex.quote(str(program)[1:])),
        (ROOT, "/usr/bin", shlex.quote(str(program))),
        (ROOT, str(program.parent), "llada"),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", path)
        assert how_to_call()[0] == expected
    # run as `python -m llada`, from where its Python does not lie
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / "llada" / "__main__.py")])
    assert how_to_call() == (f"{sys.executable} -m llada", sys.executable)


def test_code_of_its_card_runs(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = ReversalFacts.load(demo.folder / "facts.json").held_out[0]
    monkeypatch.chdir(demo.folder.parent)
    card = (demo.folder / "README.md").read_text(encoding="utf-8")
    _, printed = run_blocks(card, "README.md")

    assert printed == f"{fact.reverse[0]}\n{fact.name}\n{fact.sentence}\n"
    assert "`llada demo --num-facts 40 --steps 400 --seed 0`" in card


def test_same_seed_gives_the_same_model(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    weights = []
    for name, seed in (("first", "3"), ("second", "3"), ("third", "4")):
        folder = tmp_path / name
        sizes = ["--num-facts", "8", "--steps", "3", "--causal-steps", "1", "--delay", "0", "--seed", seed]
        assert main(["demo", "--output-dir", str(folder), *sizes]) == 0
        weights.append((folder / "model.safetensors").read_bytes())

    assert weights[0] == weights[1] != weights[2]
