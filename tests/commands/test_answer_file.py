"""A file of prompts goes in, and comes back with answers, whatever happens on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo_checkpoint import DEMO_FOLDER, load_demo
from installed_wheel import ROOT

from llada_cli import main


DEMO = str(DEMO_FOLDER)
MODEL, TOKENIZER, FACTS = load_demo()
FIRST, SECOND, THIRD = FACTS.held_out[:3]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [
        {"prompt": f"{FIRST.name} is", "id": 7},
        {"messages": [{"role": "user", "content": SECOND.reverse[0]}]},
        {"text": f"___2 is {THIRD.description}"},
        {"prompt": f"{SECOND.name} is"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return source, tmp_path / "out.jsonl"


def answer(files: tuple[Path, Path], *options: str) -> int:
    return main(["generate", DEMO, "--input", str(files[0]), "--output", str(files[1]), *options])


@pytest.mark.parametrize("batch_size", ["1", "8"])
def test_every_row_gets_what_it_gets_alone(files, batch_size: str, capsys: pytest.CaptureFixture) -> None:
    assert answer(files, "--batch-size", batch_size) == 0
    assert f"4 of 4 rows are answered, in {files[1]}." in capsys.readouterr().out
    found = rows_of(files[1])
    expected = [FIRST.description, SECOND.name, THIRD.sentence, SECOND.description]
    assert [row["answer"] for row in found] == expected
    # what else a row holds stays, in the order of the input
    assert found[0]["id"] == 7 and [set(row) & {"prompt", "messages", "text"} for row in found][1] == {"messages"}
    assert [row["num_tokens"] for row in found][1] == len(SECOND.name.split())
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_what_is_drawn_depends_on_the_row_alone(files) -> None:
    for name, options in (("a", ["--batch-size", "1"]), ("b", []), ("c", ["--seed", "1"])):
        draw = ["--temperature", "3", "--set", "eos_early_stop=false"]
        assert answer((files[0], files[0].with_name(name)), *draw, *options) == 0
    alone, together, other = ([row["answer"] for row in rows_of(files[0].with_name(name))] for name in "abc")
    assert alone == together != other


def test_a_bad_row_stops_no_other(files) -> None:
    source, output = files
    with source.open("a", encoding="utf-8") as file:
        file.write('no JSON\n\n[1]\n{"prompt": 3}\n{"question": "?"}\n{"text": "no gap"}\n')
        file.write(json.dumps({"prompt": "Who " * 60}) + "\n" + json.dumps({"prompt": "a\u2028b"}) + "\n")
    assert answer(files) == 0
    found = rows_of(output)
    assert [row["answer"] for row in found[:4]] == [FIRST.description, SECOND.name, THIRD.sentence, SECOND.description]
    assert [row["error"].split(";")[0].split(",")[0] for row in found[4:10]] == [
        "This line is no JSON object",
        "This line is no JSON object",
        "`prompt` is a int",
        "A row has one of `prompt`",
        "'no gap' has no gap",
        "The canvas has 65 positions",
    ]
    assert found[4]["line"] == "no JSON" and "answer" in found[10]


def test_an_interrupted_run_goes_on(files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source, output = files
    asked = []
    generate = type(MODEL).generate

    def interrupted(self, **kwargs):
        asked.append(kwargs["input_ids"].shape[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return generate(self, **kwargs)

    monkeypatch.setattr(type(MODEL), "generate", interrupted)
    assert answer(files, "--batch-size", "1") == 130
    assert "The same command goes on where it was." in capsys.readouterr().err
    part = output.with_name("out.jsonl.part0")
    assert not output.exists() and len(rows_of(part)) == 3
    # killed in the middle of a line
    with part.open("a", encoding="utf-8") as file:
        file.write('{"index": 3, "answ')

    assert answer(files, "--batch-size", "1", "--steps", "2") == 1
    assert "part0 holds answers of another command, which differs in steps." in capsys.readouterr().err
    assert answer(files, "--batch-size", "2") == 0
    assert asked == [1, 1, 1, 1]
    assert [row["answer"] for row in rows_of(output)][0] == FIRST.description
    assert not part.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "in.jsonl"], "Where do the answers go? Write `--output FILE`."),
        (["Who", "--input", "in.jsonl", "--output", "o"], "`--input` brings its own prompts; leave out 'Who'."),
        (["--input", "in.jsonl", "--output", "in.jsonl"], "`--output` would overwrite `--input`"),
        (["--input", "in.jsonl", "--output", "o", "--batch-size", "0"], "`--batch-size 0` is no number of rows"),
        (["--input", "in.jsonl", "--output", "o", "--trace", "a.html"], "`--trace` shows how one text came about"),
        (["--input", "in.jsonl", "--output", "o", "--num-return-sequences", "2"], "A row gets one answer"),
        (["--input", "nowhere.jsonl", "--output", "o"], "There is no file nowhere.jsonl to read."),
        (
            ["--input", "empty.jsonl", "--output", "o"],
            'empty.jsonl has no rows; write one {"prompt": "..."} in a line.',
        ),
        (["--input", "in.jsonl", "--output", "no/where"], "no to write where to."),
        (
            ["--input", "bad.jsonl", "--output", "o"],
            "No row could be answered. The first: This line is no JSON object",
        ),
    ],
)
def test_what_cannot_be_is_told(
    files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(files[0].parent)
    Path("empty.jsonl").write_text("\n", encoding="utf-8")
    Path("bad.jsonl").write_text("oh\n", encoding="utf-8")
    assert main(["generate", DEMO, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("o").exists() and not list(Path().glob("*.part*"))


@pytest.mark.slow
def test_two_processes_share_the_rows(files) -> None:
    assert answer(files, "--batch-size", "1") == 0
    alone = files[1].read_text(encoding="utf-8")
    files[1].unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "llada"]
    command += ["generate", DEMO, "--input", str(files[0]), "--output", str(files[1]), "--batch-size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert files[1].read_text(encoding="utf-8") == alone
