"""The table, the targets, the JSON and the plot."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from .training_report import training_section


COLUMNS = {
    "setting": ("setting", "{}"),
    "speedup": ("speed-up", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "forwards": ("forwards", "{}"),
    "tokens_per_forward": ("tokens/ forward", "{:.2f}"),
    "positions": ("positions", "{:,}"),
    "logit_rows": ("logit rows", "{:,}"),
    "syncs_per_forward": ("syncs/ forward", "{:.2f}"),
    "peak_megabytes": ("peak MB", "{:.0f}"),
    "agreement": ("agree", "{:.0%}"),
    "in_model": ("in model", "{:.1%}"),
    "in_backbone": ("in backbone", "{:.1%}"),
    "over_bare_calls": ("÷ bare calls", "{:.2f}"),
    "roofline": ("roofline tokens/s", "{:.0f}"),
}
POLICY_COLUMNS = {
    "estimator": ("estimator", "{}"),
    "passes": ("passes", "{:.0f}"),
    "bias": ("bias", "{:.3f}"),
    "angle": ("angle", "{:.1f}°"),
    "noise": ("variance by noise", "{:.1f}"),
    "total": ("variance", "{:.1f}"),
    "price": ("variance × passes", "{:.1f}"),
}
STEP_HEADER = ("| step | ms | bound ms | peak GB | needed GB |", "|---|---|---|---|---|")


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": name,
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "accelerator": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(rows: list[dict[str, Any]], columns: dict[str, tuple[str, str]] = COLUMNS) -> str:
    """Rows as Markdown."""
    shown = [name for name in columns if name in rows[0]]
    lines = ["| " + " | ".join(columns[name][0] for name in shown) + " |", "|---" * len(shown) + "|"]
    for row in rows:
        cells = ("" if row[name] is None else columns[name][1].format(row[name]) for name in shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def distillation_table(rows: list[dict[str, Any]]) -> str:
    """Rows of distillation as Markdown."""
    lines = [
        "| model | prompts | right | right, one token a step | as the teacher's | tokens/ forward | s of training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = "" if row["training_seconds"] is None else f"{row['training_seconds']:.0f}"
        shares = " | ".join(f"{row[name]:.1%}" for name in ("accuracy", "slow_accuracy", "agreement"))
        lines.append(f"| {row['model']} | {row['prompts']} | {shares} | {row['tokens_per_forward']:.2f} | {seconds} |")
    return "\n".join(lines)


def targets(results: dict[str, Any]) -> str:
    """Every target, what was measured, and whether that meets it, as Markdown."""
    lines = ["| target | measured | |", "|---|---|---|"]

    def add(target: str, value: float, limit: float, form: str, at_least: bool) -> None:
        met = value >= limit if at_least else value <= limit
        missed = f"missed by {abs(value - limit):{form[2:-1]}}" if form.startswith("{:") else "missed"
        lines.append(f"| {target} | {form.format(value)} | {'met' if met else missed} |")

    for part in results["workloads"]:
        rows, shape, label = {row["setting"]: row for row in part["rows"]}, part["shape"], part["workload"]
        if "exact" in rows and not shape["stops"]:
            least = 7.0 if shape["vocab_size"] > 100_000 else 2.0
            add(f"exact decoding, {label}: at least {least:.0f}×", rows["exact"]["speedup"], least, "{:.2f}", True)
        worst = min(_ours(part), key=lambda row: row["in_model"])
        add(f"every setting in the model, {label}: at least 95 %", worst["in_model"], 0.95, "{:.1%}", True)
        lines[-1] = lines[-1].replace(" | ", f" (least: {worst['setting']}) | ", 1)
        if "threshold, dual cache" in rows:
            over = rows["threshold, dual cache"]["over_bare_calls"]
            add(f"threshold and dual cache, {label}: at most 1.1× the bare calls", over, 1.1, "{:.2f}", False)
    if not results["steps"]:
        for name in (
            "32 of 1024 positions: at most 1.3 × 3.24 ms",
            "1024 of 1024 positions: at most 1.3 × 18.8 ms",
            "memory at most 1.1 × weights and cache",
        ):
            lines.append(f"| LLaDA-8B shape, bf16, one H200, {name} | | not measured: no such GPU at hand |")
    for step in results["steps"]:
        bound = step["bound_milliseconds"]
        add(f"{step['name']}: at most 1.3 × {bound:.2f} ms", step["milliseconds"] / bound, 1.3, "{:.2f}", False)
        over = step["peak_gigabytes"] / step["needed_gigabytes"]
        add(f"{step['name']}: memory at most 1.1 × weights and cache", over, 1.1, "{:.2f}", False)
    return "\n".join(lines)


def where_the_time_goes(part: dict[str, Any]) -> str:
    """What bounds the speed-up at equal passes, and what steps do outside the model."""
    rows = {row["setting"]: row for row in part["rows"]}
    plain = rows["plain loop"]
    text = f"The backbone takes {plain['in_backbone']:.0%} of the time of the plain loop"
    if 'preset("llada")' in rows:
        same = rows['preset("llada")']
        # it makes the same passes
        share = same["in_backbone"] / same["speedup"]
        text += (
            f", {share:.0%} where the last layer computes only what is asked for: the same passes cannot be more than "
            f"{1 / share:.2f}× as fast. The head takes "
            f'{same["in_model"] - same["in_backbone"]:.0%} of `preset("llada")`, though it has few rows'
        )
    if "exact" in rows and rows["exact"]["positions"] < plain["positions"]:
        text += f"; exact decoding also stops at the end of text, after {rows['exact']['forwards']} passes"
    if 'preset("llada2")' in rows:
        share = rows['preset("llada2")']["positions"] / plain["positions"]
        text += f"; with its cache, `llada2` computes {share:.0%} of them"
    outside = {
        row["setting"]: ((1 - row["in_model"]) * row["seconds"] / row["forwards"], row["seconds"] / row["forwards"])
        for row in _ours(part)
    }
    least, most = (choose(outside, key=outside.get) for choose in (min, max))
    text += (
        f". Outside the model, a step takes from {outside[least][0] * 1e3:.2f} ms ({least}) to "
        f"{outside[most][0] * 1e3:.2f} ms ({most})"
    )
    below = [
        f"{row['setting']} {row['in_model']:.1%}, {mine * 1e3:.2f} of {whole * 1e3:.1f} ms"
        for row, (mine, whole) in zip(_ours(part), outside.values(), strict=True)
        if row["in_model"] < 0.95
    ]
    return text + (
        f". Below 95 % in the model, and what a step takes outside it: {'; '.join(below)}." if below else "."
    )


def _ours(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in part["rows"] if not row["setting"].startswith("plain loop")]


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        "# Results",
        "",
        f"Written by `{results['command']}`. {_machine(results['hardware'])} On a CPU, times "
        "are CPU time: other work on the machine disturbs them less. Medians of "
        f"{results['repetitions']} interleaved repetitions. How to read the columns: docs/performance.md.",
        "",
        "## Targets",
        "",
        targets(results),
    ]
    for part in results["workloads"]:
        parts += ["", f"## {part['workload'][0].upper()}{part['workload'][1:]}", "", table(part["rows"])]
        parts += ["", where_the_time_goes(part)]
    if results["steps"]:
        parts += [
            "",
            "## One step on the accelerator",
            "",
            *STEP_HEADER,
        ]
        for step in results["steps"]:
            parts.append(
                f"| {step['name']} | {step['milliseconds']:.2f} | {step['bound_milliseconds']:.2f} | "
                f"{step['peak_gigabytes']:.1f} | {step['needed_gigabytes']:.1f} |"
            )
    if "distillation" in results:
        part = results["distillation"]
        parts += ["", "## Distillation", "", f"Written by `{part['command']}`. {_machine(part['hardware'])}"]
        for task in part["tasks"]:
            parts += ["", f"{task['task'][0].upper()}{task['task'][1:]}:", "", distillation_table(task["rows"])]
    if "policy" in results:
        part = results["policy"]
        parts += ["", "## Policy gradients", "", f"Written by `{part['command']}`. {_machine(part['hardware'])}"]
        parts[-1] += " What the columns mean: docs/alignment.md."
        for name in dict.fromkeys(row["sampler"] for row in part["rows"]):
            rows = [row for row in part["rows"] if row["sampler"] == name]
            parts += ["", f"Answers written {name}:", "", table(rows, POLICY_COLUMNS)]
    if "training" in results:
        parts += ["", *training_section(results["training"], table)]
    return "\n".join(parts) + "\n"


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} "
        f"thread{'s' if machine['threads'] > 1 else ''} (load {machine['load']:.1f}), accelerator: "
        f"{machine['accelerator']}; torch {machine['torch']}, transformers {machine['transformers']}."
    )


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote there, or nothing."""
    file = folder / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes `results.json`, `RESULTS.md` and, where matplotlib is installed, `results.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "results.json", folder / "RESULTS.md"]
    written[0].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    written[1].write_text(markdown(results), encoding="utf-8")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return written
    workloads = results["workloads"]
    if not workloads:
        return written
    heights = [0.16 * len(part["rows"]) + 0.7 for part in workloads]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    grid = figure.subplots(len(workloads), 1, squeeze=False, height_ratios=heights)
    for axes, part in zip(grid[:, 0], workloads, strict=True):
        names = [row["setting"] for row in part["rows"]][::-1]
        bars = axes.barh(names, [row["speedup"] for row in part["rows"]][::-1])
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.margins(x=0.07, y=0.02)
        axes.set_title(part["workload"], fontsize=9)
        axes.tick_params(labelsize=7)
    axes.set_xlabel("tokens per second, over the plain loop", fontsize=8)
    written.append(folder / "results.svg")
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(written[-1])
    return written


def as_dict(row: Any) -> dict[str, Any]:
    """A dataclass as a dictionary."""
    return asdict(row)


__all__ = [
    "as_dict",
    "distillation_table",
    "hardware",
    "markdown",
    "read",
    "table",
    "targets",
    "where_the_time_goes",
    "write",
]
