"""`llada score`: pairs from the command line and from files."""

import io
import json
import re
import sys

import pytest
from demo_checkpoint import DEMO_FOLDER, load_demo

from llada.evaluation import log_likelihood
from llada_cli import main


DEMO = str(DEMO_FOLDER)
MODEL, TOKENIZER, FACTS = load_demo()
FACT, OTHER = FACTS.held_out[0], FACTS.held_out[2]
ANSWERS = [f" {OTHER.description}", f" {FACT.description}"]


def test_the_likeliest_answer_is_marked(capsys: pytest.CaptureFixture) -> None:
    assert main(["score", DEMO, f"{FACT.name} is", *ANSWERS, "--estimator", "exact"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = log_likelihood(MODEL, TOKENIZER, f"{FACT.name} is", ANSWERS, estimator="exact")
    assert [line[0] for line in lines] == [" ", "*"]
    assert [float(line[1:].split()[0]) for line in lines] == pytest.approx(expected.log_likelihood.tolist(), abs=1e-3)
    assert lines[1].endswith(f"± 0.000     3 tokens  {ANSWERS[1]!r}")


@pytest.mark.parametrize("from_stdin", [False, True])
def test_a_file_keeps_its_lines(tmp_path, capsys, monkeypatch, from_stdin: bool) -> None:
    rows = [
        {"id": number, "prompt": question, "answer": answer}
        for number, question in enumerate(FACT.reverse[:1] * 2)
        for answer in (FACT.name, "é")
    ]
    text = "\n\n".join(map(json.dumps, rows))
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    arguments = ["--file", "-" if from_stdin else str(path), "--chat", "--num-draws", "4", "--seed", "3"]
    assert main(["score", DEMO, *arguments]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{name: row[name] for name in ("id", "prompt", "answer")} for row in found] == rows
    prompts, answers = ([row[name] for row in rows] for name in ("prompt", "answer"))
    expected = log_likelihood(MODEL, TOKENIZER, prompts, answers, apply_chat_template=True, num_draws=4, seed=3)
    for name in ("log_likelihood", "standard_error", "num_tokens"):
        assert [row[name] for row in found] == pytest.approx(getattr(expected, name).tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "What is to be scored? Write a prompt and at least one answer, or `--file`."),
        (["only a prompt"], "What is to be scored?"),
        (["a", "b", "--file", "x"], "What is to be scored?"),
        (["a", "--file", "x"], "`--file` brings its own prompts; leave out 'a'."),
        (["--file", "missing.jsonl"], "missing.jsonl"),
        (["a", "b", "--estimator", "elbo"], "`estimator='elbo'` is unknown"),
        (["a", " "], "Answer 0 has no token"),
    ],
)
def test_what_is_typed_wrong(arguments, message, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", DEMO, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Line 1 of"),
        ('\n{"prompt": "a"}', 'Line 2 of .* is no pair; write {"prompt": "...", "answer": "..."}.'),
        ('{"prompt": 1, "answer": "a"}', "is no pair"),
        ("[]", "is no pair"),
        ("\n", "holds no pair"),
    ],
)
def test_files_that_are_wrong(text, message, tmp_path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    assert main(["score", DEMO, "--file", str(path)]) == 1
    assert re.search(message, capsys.readouterr().err)
