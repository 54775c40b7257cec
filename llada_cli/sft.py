"""Fine-tune a model, with the options of `trl sft`.

  llada sft --model_name_or_path GSAI-ML/LLaDA-8B-Base --dataset_name data.jsonl --output_dir tuned --use_peft

Options are the fields of LLaDASFTConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those of
masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The dataset
is a Hub id, a folder, or a .json, .jsonl, .csv, .parquet or .txt file.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse

from .training import add_parser, load_datasets, loading_options, parse, train


def run(args: argparse.Namespace) -> None:
    from llada import LLaDASFTConfig, LLaDASFTTrainer

    # isort: split
    # the names above say which extra is missing
    from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    script, model_config, config = parse(args, __doc__, ScriptArguments, ModelConfig, LLaDASFTConfig)
    if model_config.model_name_or_path is None:
        raise ValueError("What is trained? Write `--model_name_or_path`: a folder or a repository on the Hub.")
    train_dataset, eval_dataset = load_datasets(script, config)
    config.model_init_kwargs = loading_options(model_config) | (config.model_init_kwargs or {})
    trainer = LLaDASFTTrainer(
        model=model_config.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script)


__all__ = ["add_parser", "run"]
