"""
Rewards and preferences on the model of `llada demo --task digits`: `python -m benchmarks.alignment FOLDER` trains it
with every shipped recipe, prints a table, and draws docs/alignment.svg.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from llada import LLaDAModelLM
from llada_cli import main
from llada_cli.digits_demo import RECIPES, answer_shares


PLOT = Path(__file__).resolve().parent.parent / "docs" / "alignment.svg"
# recipe -> its name in the plot
RUNS = {
    "digits-grpo-elbo": "elbo",
    "digits-grpo-trajectory": "trajectory",
    "digits-grpo-diffu": "diffu_grpo",
    "digits-dpo": "DPO",
}


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """
    Trains the model, then teaches it with every recipe.

    Args:
        folder (`Path`): Where models go.
        seed (`int`): Seed of all runs.

    Returns:
        `dict`: For the model and every recipe, seconds of the processor and shares of answers at temperature 1; for
        recipes also the reward, or the margin, by step.
    """
    base, results = folder / "llada-digits", {}
    start = time.process_time()
    assert main(["demo", "--task", "digits", "--output-dir", str(base), "--seed", str(seed)]) == 0
    results["before"] = {"seconds": time.process_time() - start, **_answers(base)}
    for recipe in RUNS:
        command, data = ("dpo", "pairs.jsonl") if recipe == "digits-dpo" else ("grpo", "prompts.jsonl")
        output = folder / recipe
        given = {"config": RECIPES / f"{recipe}.yaml", "model_name_or_path": base, "dataset_name": base / data}
        # a checkpoint at the end, for what it logged
        given |= {"output_dir": output, "seed": seed, "save_strategy": "steps", "save_steps": 10_000}
        start = time.process_time()
        assert main([command, *(f"--{name}={value}" for name, value in given.items())]) == 0
        seconds = time.process_time() - start
        (checkpoint,) = output.glob("checkpoint-*")
        history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        name = "rewards/margins" if command == "dpo" else "reward"
        curve = [(entry["step"], entry[name]) for entry in history if name in entry]
        results[recipe] = {"seconds": seconds, "curve": curve, **_answers(output)}
    return results


def _answers(folder: Path) -> dict[str, Any]:
    return {"shares": answer_shares(LLaDAModelLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))}


def table(results: dict[str, Any]) -> str:
    """The shares of answers before and after, as Markdown."""
    lines = ["| | reversed | sorted | copied | seconds |", "|---" * 5 + "|"]
    for name, entry in results.items():
        shares = " | ".join(f"{share:.0%}" for share in entry["shares"].values())
        lines.append(f"| {RUNS.get(name, name)} | {shares} | {entry['seconds']:.0f} |")
    return "\n".join(lines)


def write_plot(results: dict[str, Any], path: Path) -> None:
    """Draws rewards, and the margin of preferences, over the steps."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    rewards, margins = figure.subplots(1, 2)
    for name, label in RUNS.items():
        axes = margins if name == "digits-dpo" else rewards
        axes.plot(*zip(*results[name]["curve"], strict=True), marker="o", markersize=2, label=label)
    rewards.set(xlabel="step of GRPO", ylabel="share of rewarded answers", ylim=(0, 1))
    rewards.legend(fontsize=8)
    margins.set(xlabel="step of DPO", ylabel="margin of the preferred answer")
    for axes in (rewards, margins):
        axes.grid(alpha=0.3)
    # text that a browser sets, and no date
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llada"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = measure(Path(sys.argv[1]))
    print(table(found))
    write_plot(found, PLOT)
