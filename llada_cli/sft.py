"""Fine-tune a model, with the options of `trl sft`.

  llada sft --model_name_or_path GSAI-ML/LLaDA-8B-Base --dataset_name data.jsonl --output_dir tuned --use_peft

Options are the fields of LLaDASFTConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those of
masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The dataset
is a Hub id, a folder, or a .json, .jsonl, .csv, .parquet or .txt file.
`--datasets` or `datasets:` in that file mixes several, as trl does.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse

from .training import add_parser, tune


def run(args: argparse.Namespace) -> None:
    from llada import LLaDASFTConfig, LLaDASFTTrainer

    tune(args, __doc__, LLaDASFTConfig, LLaDASFTTrainer)


__all__ = ["add_parser", "run"]
