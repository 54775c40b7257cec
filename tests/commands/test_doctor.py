"""`llada doctor`: tables, JSON, and what is typed wrong."""

import json

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER, load_demo

from llada_cli import main


DEMO = str(DEMO_FOLDER)
SHORT = ["--max-new-tokens", "6", "--prompt", "Gustav Gray is", "--prompt", "Who is Hazelmere's curious dancer?"]


def test_every_change_has_a_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", DEMO, *SHORT, "--num-draws", "2", "--set", "steps=3", "--threads", "1"]) == 0
    output = capsys.readouterr()
    for name in (
        "again",
        "all in one batch",
        "eager attention, not sdpa",
        f"1 thread(s), not {torch.get_num_threads()}",
        "bfloat16, not float32",
    ):
        assert f"\n{name} " in output.out
    assert "\n2 answers" in f"\n{output.out}"
    length = load_demo()[0].config.longest_text
    assert f"Bound in nats per token, 1 x {2 * length} tokens, 2 masks each" in output.out
    assert f" {2 * length - length // 4}-{2 * length - 1} " in output.out


def test_json_lines(capsys: pytest.CaptureFixture, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Gustav Gray is Hazelmere's curious dancer. " * 40, encoding="utf-8")
    options = ["--chat", "--dtype", "float16", "--threads", "1", "--attention", "eager", "--text", str(text)]
    assert main(["doctor", DEMO, *SHORT, *options, "--num-draws", "1", "--json"]) == 0
    threads, narrow = torch.get_num_threads(), "float16, not float32"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [line["name"] for line in lines if "name" in line]
    assert names == ["again", "all in one batch", "eager attention, not sdpa", f"1 thread(s), not {threads}", narrow]
    assert lines[0]["largest_logit"] == 0 and lines[len(names) - 1]["largest_logit"] > 0
    assert len(lines) == len(names) + 8 and all("in_window" in line for line in lines[len(names) :])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length-factor", "1"], "`--length-factor 1` is no longer text; write 2 or more, or 0"),
        (["--num-texts", "0"], "`--num-texts 0` is no text"),
        (["--threads", "0"], "`--threads 0` computes nothing"),
        (["--dtype", "int8"], "`--dtype int8` is no dtype of weights"),
        (["--dtype", "nn"], "`--dtype nn` is no dtype of weights"),
        (["--num-texts", "99999"], "The documentation of Python has "),
        (["--text", "missing.txt"], "missing.txt"),
        (["--set", "steps"], "`--set steps` has no value"),
        (["--set", "stepz=3", "--length-factor", "0"], "write `steps`"),
    ],
)
def test_what_is_typed_wrong(arguments, message, capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", DEMO, *SHORT, *arguments]) == 1
    assert message in capsys.readouterr().err
