"""What twins showed: tables for a spreadsheet, charts, and a page that says what was seen."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .charts import Line, line_chart, save_chart
from .twin_scores import SHORT_ANSWER, SpeedRow


_BITS = "bits per byte, held out"
# of a curve that has turned around
_MARGIN = 0.01


def write_report(results: dict[str, dict[str, Any]], speeds: Sequence[SpeedRow], facts: str, folder: Path) -> Path:
    """
    Writes `curves.csv`, `speed.csv`, charts, and `report.md`.

    Args:
        results (`dict[str, dict[str, Any]]`):
            By name, runs of `llada twin` that are finished. The names say what they are compared in: `causal-32x2`
            and `diffusion-32x2` of one size, `…-repeated` on few rows, `diffusion-fixed` and `diffusion-unweighted`.
        speeds (sequence of [`SpeedRow`]):
            What `--iso-time` measured, or nothing.
        facts (`str`):
            How they were made, in Markdown.
        folder (`Path`):
            Where to write.

    Returns:
        `Path`: Of the page.
    """
    _write_table(
        folder / "curves.csv",
        [
            {
                **{name: result[name] for name in ("name", "kind", "width", "layers", "parameters", "epochs")},
                **point,
                "epoch": result["epochs"] * point["step"] / result["steps"],
            }
            for result in results.values()
            for point in result["curve"]
        ],
    )
    sections = [f"# Twins: a causal and a diffusion model of the same size on the same text\n\n{facts}"]
    for title, describe in (
        ("Scaling", _scaling),
        ("Repetition", _repetition),
        ("The objective", _objective),
    ):
        section = describe(results, folder)
        if section:
            sections.append(f"## {title}\n\n{section}")
    if speeds:
        _write_table(folder / "speed.csv", [asdict(row) for row in speeds])
        sections.append(f"## Speed at equal quality\n\n{_speed(speeds)}")
    sections.append(f"## What this does not say\n\n{_CAVEATS}")
    page = folder / "report.md"
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


_CAVEATS = """\
- The figure of the diffusion model is an upper bound on its bits per byte, that of the causal model is exact: a
  difference between them holds what the bound is too high by. The table of short answers has both without an estimate.
- One seed, one learning rate for all, no search for either: differences of a few hundredths of a bit are noise.
- These are models of minutes. That a diffusion model needs more compute for the same likelihood is known at sizes up
  to 10^20 operations (about 16 times, arXiv 2410.18514), and that it gains more from repeated data as well
  (arXiv 2511.03276, 2603.22075); what holds here need not hold there, and the other way round.
- Operations are counted as 6 per token and weight outside the input embedding. The diffusion model computes logits for
  masked tokens only, so that it takes somewhat less."""


def _last(result: dict[str, Any]) -> float:
    return result["curve"][-1]["bits_per_byte"]


def _line(result: dict[str, Any], label: str, colour: int, x: str = "flops") -> Line:
    def along(point: dict[str, Any]) -> float:
        return point[x] if x != "epoch" else result["epochs"] * point["step"] / result["steps"]

    points = [(along(point), point["bits_per_byte"]) for point in result["curve"]]
    return Line(label, points, colour, dashed=result["kind"] == "causal")


def _scaling(results: dict[str, dict[str, Any]], folder: Path) -> str:
    sizes = [name.removeprefix("causal-") for name in results if name.startswith("causal-") and "x" in name]
    sizes = [size for size in sizes if f"diffusion-{size}" in results]
    if not sizes:
        return ""
    lines, seen = [], []
    rows = ["| size | weights | operations | causal | diffusion, bound | difference |", "|---|--:|--:|--:|--:|--:|"]
    short = [
        f"| last {SHORT_ANSWER} tokens | causal | diffusion, bound | diffusion, left to right |",
        "|---|--:|--:|--:|",
    ]
    for colour, size in enumerate(sizes):
        causal, diffusion = results[f"causal-{size}"], results[f"diffusion-{size}"]
        lines += [_line(causal, f"causal {size}", colour), _line(diffusion, f"diffusion {size} (bound)", colour)]
        first, second, flops = _last(causal), _last(diffusion), diffusion["curve"][-1]["flops"]
        weights = f"{diffusion['parameters'] / 1e6:.2f}M"
        rows.append(f"| {size} | {weights} | {flops:.1e} | {first:.3f} | {second:.3f} | {second - first:+.3f} |")
        exact = (causal["short"]["exact"], diffusion["short"]["bound"], diffusion["short"]["left_to_right"])
        short.append(f"| {size} | " + " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in exact) + " |")
        earlier = [point["flops"] for point in causal["curve"] if point["bits_per_byte"] <= second]
        seen.append(
            f"- {size}: "
            + (
                f"the causal model is where the diffusion model ends after at most {earlier[0]:.1e} operations, "
                f"{earlier[0] / flops:.0%} of them."
                if earlier
                else "the causal model does not reach what the bound of the diffusion model ends at."
            )
        )
    chart = line_chart("Same text, same size", "training operations", _BITS, lines, log_x=True)
    save_chart(chart, folder / "scaling.svg")
    return "\n".join([*rows, "", *seen, "", *short, "", "![bits per byte against operations](scaling.svg)"])


def _repetition(results: dict[str, dict[str, Any]], folder: Path) -> str:
    names = {"causal": "causal-repeated", "diffusion": "diffusion-repeated"}
    if not all(name in results for name in names.values()):
        return ""
    lines, seen = [], []
    for colour, (kind, name) in enumerate(names.items()):
        result = results[name]
        lines.append(_line(result, kind, colour, "epoch"))
        best = min(result["curve"], key=lambda point: point["bits_per_byte"])
        epoch, last = result["epochs"] * best["step"] / result["steps"], _last(result)
        turned = last > best["bits_per_byte"] + _MARGIN
        seen.append(
            f"- {kind}: best at {best['bits_per_byte']:.3f} bits per byte after {epoch:.0f} passes over the text"
            + (f", then worse: {last:.3f} at the end. It overfits." if turned else "; it had not turned by the end.")
        )
    first = results[names["causal"]]
    about = f"{first['num_rows']} rows, {first['epochs']:.0f} times."
    chart = line_chart("The same few rows again", "passes over the text", _BITS, lines)
    save_chart(chart, folder / "repetition.svg")
    return "\n".join([about, "", *seen, "", "![bits per byte against passes](repetition.svg)"])


def _objective(results: dict[str, dict[str, Any]], folder: Path) -> str:
    labels = {
        "diffusion-fixed": "15 % of the tokens masked, always (BERT)",
        "diffusion-unweighted": "mean over masked tokens, without the weight 1/t (MaskGIT)",
    }
    found = [name for name in labels if name in results]
    if not found:
        return ""
    width, layers, steps = (results[found[0]][name] for name in ("width", "layers", "steps"))
    base = results[f"diffusion-{width}x{layers}"]
    lines = [_line(base, "ratio U(0, 1), weight 1/t", 0)]
    rows = ["| trained with | bound, bits per byte | difference |", "|---|--:|--:|"]
    rows.append(f"| mask ratio U(0, 1), weight 1/t (LLaDA) | {_last(base):.3f} | |")
    for colour, name in enumerate(found, 1):
        last = _last(results[name])
        lines.append(_line(results[name], labels[name].partition(",")[0], colour))
        rows.append(f"| {labels[name]} | {last:.3f} | {last - _last(base):+.3f} |")
    chart = line_chart("What is masked, and how it is weighted", "training operations", _BITS, lines)
    save_chart(chart, folder / "objective.svg")
    about = f"Size {width}x{layers}, {steps} steps each, all judged by the bound of LLaDA: ratios from U(0, 1)."
    return "\n".join([about, "", *rows, "", "![bits per byte against operations](objective.svg)"])


def _speed(speeds: Sequence[SpeedRow]) -> str:
    rows = [
        "| batch | model | forward passes | tokens per second | nats per token to the judge | entropy |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    seen = []
    for batch_size in dict.fromkeys(row.batch_size for row in speeds):
        here = [row for row in speeds if row.batch_size == batch_size]
        for row in here:
            rows.append(
                f"| {row.batch_size} | {row.kind} | {row.steps} | {row.tokens_per_second:,.0f} | "
                f"{row.judged:.2f} ± {row.judged_error:.2f} | {row.entropy:.2f} |"
            )
        (causal,) = (row for row in here if row.kind == "causal")
        equal = [
            row
            for row in here
            if row.kind == "diffusion"
            and row.judged - causal.judged <= 2 * (row.judged_error**2 + causal.judged_error**2) ** 0.5
            and row.entropy >= 0.95 * causal.entropy
        ]
        if not equal:
            seen.append(f"- Batch {batch_size}: no number of steps is as good as the causal model to this judge.")
            continue
        best = max(equal, key=lambda row: row.tokens_per_second)
        factor = best.tokens_per_second / causal.tokens_per_second
        seen.append(
            f"- Batch {batch_size}: as good within two standard errors, and as varied, with {best.steps} passes, at "
            f"{factor:.2f} times the speed of the causal model."
        )
    about = (
        "Both continue the same held-out beginnings by draws at temperature 1, the causal model with its cache, the "
        "diffusion model in one block and in random order. The judge is the largest causal model, which may prefer "
        "what its own kind writes."
    )
    return "\n".join([about, "", *rows, "", *seen])


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


__all__ = ["write_report"]
