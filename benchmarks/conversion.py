"""
Compares ways to make a diffusion model of a causal one, at equal numbers of tokens, on SmolLM2-135M-Instruct.

    python -m benchmarks.conversion direct      trains with one of the recipes, adds its figures to conversion.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset

from llada import from_causal
from llada.trainers.conversion_config import LLaDAConversionConfig
from llada.trainers.conversion_trainer import LLaDAConversionTrainer
from llada_cli.convert import has_fast_bfloat16
from llada_cli.smollm2 import UNUSED_TOKEN, library_text, load_smollm2


RESULTS = Path(__file__).parent / "conversion.json"
CACHE = Path.home() / ".cache" / "llada" / "smollm2"

# keywords of `from_causal`, and those of the arguments
RECIPES: dict[str, tuple[dict, dict]] = {
    "direct": ({}, {}),
    "shift": ({"right_shift_logits": True}, {}),
    "annealed": ({}, {"attention_annealing_steps": 100}),
    "joint": ({}, {"causal_loss_weight": 0.3}),
    "blocks": ({}, {"block_warmup_steps": 0.5}),
}


def run(name: str, steps: int, rows: int, length: int, every: int, results: Path) -> None:
    """Trains with a recipe, and notes the bound on held-out pages as it goes."""
    torch.set_num_threads(1)
    converting, training = RECIPES[name]
    causal, tokenizer = load_smollm2(CACHE)
    model = from_causal(causal, tokenizer, UNUSED_TOKEN, **converting)
    del causal
    pages, held_out = library_text()
    with tempfile.TemporaryDirectory() as folder:
        args = LLaDAConversionConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=rows,
            sequence_length=length,
            eval_strategy="steps",
            eval_steps=every,
            num_eval_draws=4,
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
        )
        trainer.eval_dataset = trainer.eval_dataset.select(range(24))
        before = trainer.evaluate()
        trainer.train()
    bounds = {0: before["eval_nll_bound"]}
    for entry in trainer.state.log_history:
        if "eval_nll_bound" in entry:
            bounds[entry["step"]] = entry["eval_nll_bound"]
    entry = {"bounds": bounds, "rows": rows, "length": length}
    known = json.loads(results.read_text()) if results.is_file() else {}
    results.write_text(json.dumps(known | {name: entry}, indent=2) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    run(options.recipe, options.steps, options.rows, options.length, options.every, options.results)


__all__ = ["RECIPES", "main", "run"]


if __name__ == "__main__":
    main()
