"""Fine-tune a model on prompts and completions, or on conversations."""

import argparse
from collections.abc import Sequence


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("dataset", help="a .json, .jsonl, .csv or .parquet file, or a Hub id")
    parser.add_argument("--split", default="train", help="split of the dataset (default: train)")
    parser.epilog = "Every field of LLaDASFTConfig is an option too, e.g. --output_dir, --learning_rate, --max_steps, "
    parser.epilog += "and those of trl's ModelConfig, e.g. --use_peft --lora_r 16."
    parser.set_defaults(takes_rest=True)


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
    from pathlib import Path

    from datasets import load_dataset
    from transformers import HfArgumentParser
    from trl import ModelConfig, get_peft_config

    from ..trainers.sft_config import LLaDASFTConfig
    from ..trainers.sft_trainer import LLaDASFTTrainer

    config, model_config = HfArgumentParser((LLaDASFTConfig, ModelConfig)).parse_args_into_dataclasses(list(rest))
    kind = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(Path(args.dataset).suffix)
    if kind:
        dataset = load_dataset(kind, data_files=args.dataset, split="train")
    else:
        dataset = load_dataset(args.dataset, split=args.split)
    trainer = LLaDASFTTrainer(
        model=args.model, args=config, train_dataset=dataset, peft_config=get_peft_config(model_config)
    )
    trainer.train()
    trainer.save_model()


__all__ = ["add_parser", "run"]
