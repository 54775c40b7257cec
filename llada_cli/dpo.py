"""Teach a model which answers are preferred (DPO with likelihood bounds, VRPO), with the options of `trl dpo`.

  llada dpo --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset_name pairs.jsonl --output_dir tuned --use_peft

Options are the fields of LLaDADPOConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those of
masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The dataset
is a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file, with the columns `prompt`, `chosen` and `rejected`.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse

from .training import add_parser, load_datasets, loading_options, parse, train


def run(args: argparse.Namespace) -> None:
    from llada import LLaDADPOConfig, LLaDADPOTrainer

    # isort: split
    # the names above say which extra is missing
    from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    script, model_config, config = parse(args, __doc__, ScriptArguments, ModelConfig, LLaDADPOConfig)
    if model_config.model_name_or_path is None:
        raise ValueError("What is trained? Write `--model_name_or_path`: a folder or a repository on the Hub.")
    train_dataset, eval_dataset = load_datasets(script, config)
    config.model_init_kwargs = loading_options(model_config) | (config.model_init_kwargs or {})
    trainer = LLaDADPOTrainer(
        model=model_config.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script)


__all__ = ["add_parser", "run"]
