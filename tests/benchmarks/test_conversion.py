"""The comparison of conversions: what it notes, and what it shows of runs that ended and of those that did not."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import conversion
from benchmarks.conversion_report import LABELS, table


RESULTS = {
    "direct": {"bounds": {"0": 8.7, "50": 5.5, "100": 5.1}, "steps": 100, "rows": 4, "length": 128},
    "shift": {"bounds": {"0": 8.0, "50": 5.2}, "steps": 100, "rows": 4, "length": 128},
}


def test_every_recipe_has_a_name():
    assert LABELS.keys() == conversion.RECIPES.keys()


def test_a_run_that_did_not_end_has_a_dash():
    assert table(RESULTS).splitlines()[2:] == [
        "| direct switch | 8.70 | 5.50 | **5.10** |",
        "| direct switch, shifted logits (stands at 50 of 100 steps) | **8.00** | **5.20** | – |",
    ]


def test_every_evaluation_is_noted(tmp_path):
    path = tmp_path / "conversion.json"
    path.write_text(json.dumps(RESULTS))
    notes = conversion.Notes(path, "joint", {"steps": 50, "rows": 4, "length": 128})
    for step, bound in ((0, 8.5), (50, 5.0)):
        notes.on_evaluate(None, SimpleNamespace(global_step=step), None, metrics={"eval_nll_bound": bound})
    known = json.loads(path.read_text())
    assert known["direct"] == RESULTS["direct"]
    assert known["joint"] == {"bounds": {"0": 8.5, "50": 5.0}, "steps": 50, "rows": 4, "length": 128}


def test_the_report_is_drawn_and_printed(tmp_path, capsys):
    path = tmp_path / "conversion.json"
    path.write_text(json.dumps(RESULTS))
    conversion.main(["--report", "--results", str(path)])
    assert capsys.readouterr().out == table(RESULTS) + "\n"
    plot = (tmp_path / "conversion.svg").read_text(encoding="utf-8")
    assert "direct switch, shifted logits" in plot and "tokens of training" in plot
    conversion.main(["--report", "--results", str(path)])
    assert (tmp_path / "conversion.svg").read_text(encoding="utf-8") == plot


def test_no_recipe_is_an_error(capsys):
    with pytest.raises(SystemExit):
        conversion.main([])
    assert "Write one of direct, shift, annealed, joint, blocks, or --report" in capsys.readouterr().err
