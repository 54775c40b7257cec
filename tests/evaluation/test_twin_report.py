"""The page says what the figures are."""

import csv
from pathlib import Path
from typing import Any

from llada.evaluation.twin_report import write_report
from llada.evaluation.twin_scores import SpeedRow


def make_run(name: str, bits: list[float], **overrides: Any) -> dict[str, Any]:
    steps = 10 * len(bits)
    curve = [
        {"step": 10 * (n + 1), "tokens": 100 * (n + 1), "flops": 1e6 * (n + 1), "bits_per_byte": value}
        for n, value in enumerate(bits)
    ]
    kind = name.partition("-")[0]
    short = {"exact": [2.0, 0.1]} if kind == "causal" else {"bound": [2.3, 0.1], "left_to_right": [2.2, 0.1]}
    run = {"name": name, "kind": kind, "width": 32, "layers": 2, "steps": steps, "num_rows": None, "epochs": 40.0}
    return run | {"parameters": 50_000, "curve": curve, "short": short, "objective": {}} | overrides


RUNS = [
    make_run("causal-32x2", [4.0, 3.0, 2.5, 2.0]),
    make_run("diffusion-32x2", [5.0, 4.0, 3.5, 3.0]),
    make_run("causal-repeated", [3.0, 2.5, 2.8, 3.5], num_rows=8),
    make_run("diffusion-repeated", [4.0, 3.5, 3.2, 3.1], num_rows=8),
    make_run("diffusion-fixed", [5.0, 4.5, 4.2, 4.0]),
    make_run("diffusion-unweighted", [5.0, 4.0, 3.4, 2.9]),
]
SPEEDS = [
    SpeedRow("causal", 1, 8, 100.0, 2.0, 0.1, 3.0),
    SpeedRow("diffusion", 1, 8, 50.0, 2.1, 0.1, 3.0),
    SpeedRow("diffusion", 1, 4, 120.0, 2.2, 0.1, 3.0),
    SpeedRow("diffusion", 1, 1, 900.0, 4.0, 0.1, 3.0),
    SpeedRow("diffusion", 1, 2, 300.0, 1.0, 0.1, 0.5),
    SpeedRow("causal", 8, 8, 700.0, 2.0, 0.01, 3.0),
    SpeedRow("diffusion", 8, 8, 60.0, 2.1, 0.01, 3.0),
]


def test_page_says_what_was_seen(tmp_path: Path) -> None:
    page = write_report({run["name"]: run for run in RUNS}, SPEEDS, "Some text.", tmp_path).read_text(encoding="utf-8")

    assert "| 32x2 | 0.05M | 4.0e+06 | 2.000 | 3.000 | +1.000 |" in page
    assert "| 32x2 | 2.000 ± 0.100 | 2.300 ± 0.100 | 2.200 ± 0.100 |" in page
    assert (
        "32x2: the causal model is where the diffusion model ends after at most 2.0e+06 operations, 50% of them"
        in page
    )
    assert "- causal: best at 2.500 bits per byte after 20 passes over the text, then worse: 3.500 at the end." in page
    assert "- diffusion: best at 3.100 bits per byte after 40 passes over the text; it had not turned" in page
    assert "| 15 % of the tokens masked, always (BERT) | 4.000 | +1.000 |" in page
    assert "| mean over masked tokens, without the weight 1/t (MaskGIT) | 2.900 | -0.100 |" in page
    # four steps are within two standard errors, one is not, and with two it repeats itself
    assert "- Batch 1: as good within two standard errors, and as varied, with 4 passes, at 1.20 times" in page
    assert "- Batch 8: no number of steps is as good" in page
    with open(tmp_path / "curves.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and rows[-1]["bits_per_byte"] == "2.9" and rows[0]["epoch"] == "10.0"
    assert {path.name for path in tmp_path.iterdir()} == {
        "curves.csv", "speed.csv", "report.md", "scaling.svg", "repetition.svg", "objective.svg",
    }  # fmt: skip


def test_page_leaves_out_what_was_not_run(tmp_path: Path) -> None:
    page = write_report({run["name"]: run for run in RUNS[2:4]}, [], "", tmp_path).read_text(encoding="utf-8")

    assert "## Repetition" in page
    assert not any(title in page for title in ("## Scaling", "## The objective", "## Speed"))


def test_a_causal_model_that_stays_behind_is_said_to(tmp_path: Path) -> None:
    runs = {
        "causal-32x2": make_run("causal-32x2", [4.0, 3.5]),
        "diffusion-32x2": make_run("diffusion-32x2", [4.0, 3.0]),
    }
    page = write_report(runs, [], "", tmp_path).read_text(encoding="utf-8")

    assert "the causal model does not reach what the bound of the diffusion model ends at" in page
