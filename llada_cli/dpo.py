"""Teach a model which answers are preferred (DPO with likelihood bounds, VRPO), with the options of `trl dpo`.

  llada dpo --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset_name pairs.jsonl --output_dir tuned --use_peft

Options are the fields of LLaDADPOConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those of
masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The dataset
is a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file, with the columns `prompt`, `chosen` and `rejected`.
`--datasets` or `datasets:` in that file mixes several, as trl does.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse

from .training import add_parser, tune


def run(args: argparse.Namespace) -> None:
    from llada import LLaDADPOConfig, LLaDADPOTrainer

    tune(args, __doc__, LLaDADPOConfig, LLaDADPOTrainer)


__all__ = ["add_parser", "run"]
