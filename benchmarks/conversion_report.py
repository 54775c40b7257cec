"""The figures of `benchmarks.conversion` as a table and as a plot."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure


# what the recipes are called
LABELS = {
    "direct": "direct switch",
    "shift": "direct switch, shifted logits",
    "annealed": "attention opens in 100 steps",
    "joint": "direct switch, causal loss of weight 0.3",
    "blocks": "blocks grow in 100 steps",
}


def table(results: dict[str, Any]) -> str:
    """
    A line for each recipe, a column for each number of steps, as Markdown. A run that has not come that far has a
    dash.

    Args:
        results (`dict`): What `conversion.json` holds.
    """
    steps = sorted({int(step) for entry in results.values() for step in entry["bounds"]})
    lines = ["| recipe | " + " | ".join(f"{step} steps" for step in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    best = {step: min(entry["bounds"].get(str(step), float("inf")) for entry in results.values()) for step in steps}
    for name, entry in results.items():
        cells = []
        for step in steps:
            bound = entry["bounds"].get(str(step))
            text = "–" if bound is None else f"{bound:.2f}"
            cells.append(f"**{text}**" if bound == best[step] else text)
        ended = max(map(int, entry["bounds"]))
        note = "" if ended >= entry["steps"] else f" (stands at {ended} of {entry['steps']} steps)"
        lines.append(f"| {LABELS[name]}{note} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_plot(results: dict[str, Any], path: Path) -> None:
    """
    Draws the bounds over the tokens that were trained on.

    Args:
        results (`dict`): What `conversion.json` holds.
        path (`Path`): The file, e.g. `conversion.svg`.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, entry in results.items():
        tokens = [int(step) * entry["rows"] * entry["length"] for step in entry["bounds"]]
        axes.plot(tokens, list(entry["bounds"].values()), marker="o", markersize=3, label=LABELS[name])
    axes.set_xlabel("tokens of training")
    axes.set_ylabel("bound on held-out pages, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    # text that a browser sets, and no date
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llada"}):
        figure.savefig(path, metadata={"Date": None})


__all__ = ["LABELS", "table", "write_plot"]
