"""The measured training steps: they train the same, and the report says what was met."""

import json

import pytest
import torch
from torch.nn import functional

from benchmarks.__main__ import main
from benchmarks.training import TINY_SHAPES, AllLogitsLLaDA, measure_large, peak_bytes
from benchmarks.training_report import training_section
from llada import LLaDAModelLM


def test_the_command_keeps_the_other_part_of_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["--tiny", "--training", "--repetitions", "1", "--output", str(tmp_path)])
    assert "No GPU is at hand" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (part,) = results["training"]["shapes"]
    rows = {(row["step"], row["masked"]): row for row in part["rows"]}
    assert len(rows) == 7 and all(row["seconds"] > 0 and row["peak_megabytes"] > 0 for row in rows.values())
    ours, full = rows["ours", "100%"], rows["all logits", "100%"]
    assert ours["peak_of_full"] == pytest.approx(ours["peak_megabytes"] / full["peak_megabytes"])
    # 128 rows of logits, the labels and what else there is
    assert full["peak_megabytes"] > 128 * 8192 * 4 / 1e6
    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## Training step" in report and "not measured: no GPU at hand" in report
    monkeypatch.setattr("benchmarks.__main__.draw_model", lambda *_: None)
    monkeypatch.setattr("benchmarks.__main__.measure_steps", lambda *_, **__: [])
    main(["--tiny", "--only", "something", "--accelerator", "--output", str(tmp_path)])
    assert "## Training step" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_both_steps_have_the_same_loss():
    config = TINY_SHAPES[0].config()
    torch.manual_seed(0)
    model = LLaDAModelLM(config)
    full = AllLogitsLLaDA(config)
    full.load_state_dict(model.state_dict())
    labels = torch.randint(3, 100, (2, 8))
    labels[:, 0] = -100
    masked = torch.rand(2, 8) < 0.5
    given = {"input_ids": labels.clamp(min=0).masked_fill(masked, 1), "labels": labels, "logits_to_keep": masked}
    weights = torch.rand(2, 8)
    ours, theirs = (one(**given, token_losses=True, loss_weights=weights) for one in (model, full))
    for name in ("loss", "token_losses"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.correct, theirs.correct)
    for output in (ours, theirs):
        output.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, full.get_parameter(name).grad, rtol=0, atol=1e-6)


def test_the_peak_is_that_of_the_allocator():
    def step():
        # the softmax of a copy: two tensors of 4 MB, and what is read
        given = torch.ones(1024, 1024)
        functional.softmax(given, dim=1)

    assert peak_bytes(step) == pytest.approx(2 * 4 * 2**20, rel=0.01)


def test_a_large_model_is_measured_with_an_adapter(tmp_path):
    config = TINY_SHAPES[0].config()
    row = measure_large(config, torch.device("cpu"), tmp_path, length=32, repetitions=1)
    assert row["seconds"] > 0 and 0 < row["utilisation"] < 1 and "LoRA" in row["name"]


def test_targets_are_met_or_missed():
    def rows(peak, seconds, per_token):
        names = ("peak_of_full", "time_of_full", "per_token_of_causal")
        values = dict(zip(names, (peak, seconds, per_token), strict=True))
        return [{"step": "ours", "masked": masked, **values} for masked in ("one of each row", "50%", "100%")]

    results = {
        "command": "some",
        "hardware": {"cpu": "one", "threads": 1, "load": 0.5},
        "repetitions": 1,
        "shapes": [{"shape": "met", "rows": rows(0.2, 0.6, 1.15)}, {"shape": "not", "rows": rows(0.3, 0.7, 1.25)}],
        "large": {"name": "large", "utilisation": 0.3, "seconds": 1.0, "peak_gigabytes": 20.0},
    }
    lines = [line for line in training_section(results, lambda *_: "") if line.startswith("| ")]
    verdicts = [line.split("|")[-2].strip() for line in lines[1:]]
    assert verdicts[:3] == ["met"] * 3 and verdicts[-1] == "missed by 10%"
    assert [verdict.partition(" (")[0] for verdict in verdicts[3:6]] == ["missed by 0.10"] * 3
    assert "it is 0.30" in verdicts[3]
    results["large"]["utilisation"] = 0.41
    assert "| 41%, 1.00 s, 20 GB | met |" in "\n".join(training_section(results, lambda *_: ""))
