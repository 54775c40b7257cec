"""
Compares ways to make a diffusion model of a causal one, at equal numbers of tokens, on SmolLM2-135M-Instruct.

    python -m benchmarks.conversion direct      trains with one of the recipes, adds its figures to conversion.json
    python -m benchmarks.conversion --report    the figures as a plot, conversion.svg, and as a table, which is printed
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from llada import from_causal
from llada.trainers.conversion_config import LLaDAConversionConfig
from llada.trainers.conversion_trainer import LLaDAConversionTrainer
from llada_cli.convert import has_fast_bfloat16
from llada_cli.smollm2 import UNUSED_TOKEN, library_text, load_smollm2

from .conversion_report import table, write_plot


RESULTS = Path(__file__).parent / "conversion.json"
CACHE = Path.home() / ".cache" / "llada" / "smollm2"

# rows of held-out pages
EVALUATED = 24

# keywords of `from_causal`, and those of the arguments
RECIPES: dict[str, tuple[dict, dict]] = {
    "direct": ({}, {}),
    "shift": ({"right_shift_logits": True}, {}),
    "annealed": ({}, {"attention_annealing_steps": 100}),
    "joint": ({}, {"causal_loss_weight": 0.3}),
    "blocks": ({}, {"block_warmup_steps": 0.5}),
}


class Notes(TrainerCallback):
    """Keeps the bound of every evaluation in a file, so that a run that ends early leaves what it found."""

    def __init__(self, results: Path, name: str, facts: dict[str, Any]):
        self.results, self.name, self.entry = results, name, {"bounds": {}, **facts}

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.entry["bounds"][str(state.global_step)] = metrics["eval_nll_bound"]
        known = json.loads(self.results.read_text()) if self.results.is_file() else {}
        self.results.write_text(json.dumps(known | {self.name: self.entry}, indent=1) + "\n")


def run(name: str, steps: int, rows: int, length: int, every: int, draws: int, results: Path) -> None:
    """Trains with a recipe, and notes the bound on held-out pages as it goes."""
    torch.set_num_threads(1)
    converting, training = RECIPES[name]
    causal, tokenizer = load_smollm2(CACHE)
    model = from_causal(causal, tokenizer, UNUSED_TOKEN, **converting)
    del causal
    pages, held_out = library_text()
    facts = {"steps": steps, "rows": rows, "length": length, "draws": draws}
    with tempfile.TemporaryDirectory() as folder:
        args = LLaDAConversionConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=rows,
            sequence_length=length,
            eval_strategy="steps",
            eval_steps=every,
            num_eval_draws=draws,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=has_fast_bfloat16(),
            dataloader_pin_memory=False,
            **training,
        )
        trainer = LLaDAConversionTrainer(
            model,
            args,
            train_dataset=Dataset.from_dict({"text": pages}),
            eval_dataset=Dataset.from_dict({"text": held_out}),
            processing_class=tokenizer,
            callbacks=[Notes(results, name, facts)],
        )
        trainer.eval_dataset = trainer.eval_dataset.select(range(EVALUATED))
        trainer.evaluate()
        trainer.train()


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", choices=RECIPES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--every", type=int, default=50, help="steps between two evaluations")
    parser.add_argument("--draws", type=int, default=2, help="masks of each held-out row")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="draw and print what there is, train nothing")
    options = parser.parse_args(arguments)
    if options.report:
        results = json.loads(options.results.read_text())
        write_plot(results, options.results.with_suffix(".svg"))
        print(table(results))
        return
    if options.recipe is None:
        parser.error(f"what is trained? Write one of {', '.join(RECIPES)}, or --report")
    sizes = options.steps, options.rows, options.length, options.every, options.draws
    run(options.recipe, *sizes, options.results)


__all__ = ["RECIPES", "Notes", "main", "run"]


if __name__ == "__main__":
    main()
