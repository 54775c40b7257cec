"""
What estimators of the likelihood of an answer cost, and how far they are from it and from themselves.

    python -m benchmarks.estimators FOLDER          of the facts that `llada demo` trains on

Every fact that was never asked about is an answer to an empty prompt. All figures are nats per answer: `off` is the
mean of an estimator over seeds minus the exact bound, `spread` its standard deviation over seeds, both averaged over
the answers, and `claimed` the standard error that it gives of itself.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

import llada  # noqa: F401  registers the models
from llada.evaluation.likelihood import encode_pair
from llada.evaluation.reversal_facts import ReversalFacts


RESULTS = Path(__file__).parent / "estimators.json"
DRAWN = (("monte_carlo", 8), ("monte_carlo", 32), ("monte_carlo", 128), ("reference", 128), ("any_order", 8))
FIXED = ("left_to_right", "right_to_left", "pseudo", "confidence")


def measure(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]], num_seeds: int
) -> Iterator[dict]:
    """
    Compares estimators.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        prompts, answers (`list[list[int]]`):
            Ids, of answers at most 16 each.
        num_seeds (`int`):
            Seeds of those that draw, at least 2.

    Yields:
        `dict` for each estimator.
    """
    exact = model.log_likelihood(prompts, answers, estimator="exact", batch_size=256)
    mean = float(exact.log_likelihood.mean())
    same = {"mean": mean, "off": 0.0, "spread": 0.0, "claimed": 0.0}
    yield {"estimator": "exact", "num_draws": None, **same, "rows": exact.num_rows}
    for estimator, num_draws in (*DRAWN, *((name, None) for name in FIXED)):
        seeds = range(1 if num_draws is None else num_seeds)
        options = {"estimator": estimator, "num_draws": num_draws, "batch_size": 256}
        found = [model.log_likelihood(prompts, answers, seed=seed, **options) for seed in seeds]
        values = torch.stack([output.log_likelihood for output in found])
        yield {
            "estimator": estimator,
            "num_draws": num_draws,
            "mean": float(values.mean()),
            "off": float((values.mean(dim=0) - exact.log_likelihood).mean()),
            "spread": float(values.std(dim=0).mean()) if len(found) > 1 else 0.0,
            "claimed": float(torch.stack([output.standard_error for output in found]).mean()),
            "rows": found[0].num_rows,
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="the output of `llada demo`")
    parser.add_argument("--answers", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForMaskedLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    facts = ReversalFacts.load(Path(options.model) / "facts.json")
    pairs = [encode_pair(tokenizer, "", fact.sentence) for fact in facts.held_out[: options.answers]]
    prompts, answers = map(list, zip(*pairs, strict=True))
    print(f"{len(answers)} answers of {min(map(len, answers))} to {max(map(len, answers))} tokens")
    lines = []
    for line in measure(model, prompts, answers, options.seeds):
        print(json.dumps(line), flush=True)
        lines.append(line)
        options.results.write_text(json.dumps(lines, indent=2) + "\n")


__all__ = ["main", "measure"]


if __name__ == "__main__":
    main()
