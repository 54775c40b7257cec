"""What a run of `--training` has measured, as Markdown."""

from typing import Any


COLUMNS = {
    "step": ("step", "{}"),
    "masked": ("masked", "{}"),
    "seconds": ("seconds", "{:.3f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "peak_megabytes": ("peak MB", "{:.0f}"),
    "time_of_full": ("time ÷ all logits", "{:.2f}"),
    "peak_of_full": ("peak ÷ all logits", "{:.2f}"),
    "per_token_of_causal": ("time per token ÷ causal", "{:.2f}"),
    "time_of_plain": ("time ÷ ours", "{:.2f}"),
}
# title, column, of which row, and the largest that meets it
_TARGETS = (
    ("peak, everything masked: at most 1/5 of all logits", "peak_of_full", ("ours", "100%"), 0.2),
    ("time, half masked: at most 0.6 of all logits", "time_of_full", ("ours", "50%"), 0.6),
    ("time per token, half masked: at most 1.15 of the causal step", "per_token_of_causal", ("ours", "50%"), 1.15),
    (
        "block diffusion, half masked: at most 2.1 of the time without blocks",
        "time_of_plain",
        ("ours, block diffusion", "50%"),
        2.1,
    ),
)


def training_section(results: dict[str, Any], table) -> list[str]:
    """
    The lines of the report.

    Args:
        results (`dict`):
            `shapes` with their rows, `large` or `None`, and what they were measured on.
        table (`Callable`):
            Makes a table of rows and columns.
    """
    machine = results["hardware"]
    lines = [
        "## Training step",
        "",
        f"Written by `{results['command']}` ({machine['cpu']}, {machine['threads']} thread, load "
        f"{machine['load']:.1f}; medians of {results['repetitions']} interleaved repetitions, CPU time). Forward and "
        "backward pass with activation checkpointing, without the step of the optimizer. **all logits**: the same "
        "trainer with the cross entropy of all positions, of which the masked ones count. **causal, stock TRL**: a "
        "Llama of the same size in `SFTTrainer`, as TRL runs it without Triton. **block diffusion**: in blocks of 32, "
        "with the clean copy of the text behind the noisy one. **peak MB**: what the step takes from "
        "torch's allocator, beside parameters and gradients.",
        "",
        "| target | measured | |",
        "|---|---|---|",
    ]
    for part in results["shapes"]:
        rows = {(row["step"], row["masked"]): row for row in part["rows"]}
        floor = rows["ours", "one of each row"]
        for title, column, row, limit in _TARGETS:
            # an earlier run may not have measured it
            if row not in rows:
                continue
            value = rows[row][column]
            verdict = "met" if value <= limit else f"missed by {value - limit:.2f}"
            if value > limit and column in ("time_of_full", "peak_of_full"):
                verdict += f" (with one token masked, without the head so to say, it is {floor[column]:.2f})"
            lines.append(f"| {title}; {part['shape']} | {value:.2f} | {verdict} |")
    large = results["large"]
    if large is None:
        lines.append(
            "| LLaDA-8B shape, LoRA, 4096 tokens: at least 40 % of 989 TFLOP/s | | not measured: no GPU at hand |"
        )
    else:
        verdict = "met" if large["utilisation"] >= 0.4 else f"missed by {0.4 - large['utilisation']:.0%}"
        lines.append(
            f"| {large['name']}: at least 40 % of 989 TFLOP/s | {large['utilisation']:.0%}, {large['seconds']:.2f} s, "
            f"{large['peak_gigabytes']:.0f} GB | {verdict} |"
        )
    for part in results["shapes"]:
        lines += [
            "",
            f"### {part['shape'][0].upper()}{part['shape'][1:]}",
            "",
            table([dict.fromkeys(COLUMNS) | row for row in part["rows"]], COLUMNS),
        ]
    return lines


__all__ = ["COLUMNS", "training_section"]
