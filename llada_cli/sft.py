"""Fine-tune a model, with the options of `trl sft`.

  llada sft --model_name_or_path GSAI-ML/LLaDA-8B-Base --dataset_name data.jsonl --output_dir tuned --use_peft

Options are the fields of LLaDASFTConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those of
masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up. The dataset
is a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any


_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the options are those of the dataclasses."""


def run(args: argparse.Namespace) -> None:
    from llada import LLaDASFTConfig, LLaDASFTTrainer

    # isort: split
    # the names above say which extra is missing
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_peft_config, get_quantization_config

    parser = TrlParser((ScriptArguments, LLaDASFTConfig, ModelConfig), prog="llada sft", description=__doc__)
    _group_ours(parser, {field.name for field in fields(LLaDASFTConfig)} - {field.name for field in fields(SFTConfig)})
    script, config, model_config = parser.parse_args_and_config(args.rest)
    if script.dataset_name is None or model_config.model_name_or_path is None:
        raise ValueError("What is trained, and on what? Write `--model_name_or_path` and `--dataset_name`.")
    config.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(config.model_init_kwargs or {}),
    }
    train_dataset = load(script, script.dataset_train_split)
    evaluates = config.eval_strategy != "no"
    trainer = LLaDASFTTrainer(
        model=model_config.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=load(script, script.dataset_test_split) if evaluates else None,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    resume = config.resume_from_checkpoint
    # the option is a text for transformers, which would look for a folder of this name
    trainer.train(resume_from_checkpoint={"true": True, "false": False}.get(str(resume).lower(), resume))
    trainer.save_model()
    trainer.create_model_card(dataset_name=script.dataset_name)
    print(f"The model is in {config.output_dir}/.")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


def _group_ours(parser: argparse.ArgumentParser, names: set[str]) -> None:
    """Moves options into a group of their own: among the hundreds of a trainer nobody would find them."""
    group = parser.add_argument_group("masked diffusion")
    ours = [action for action in parser._optionals._group_actions if action.dest in names]
    for action in ours:
        parser._optionals._group_actions.remove(action)
        group._group_actions.append(action)


def load(script: Any, split: str) -> Any:
    """One split of the dataset that the arguments name. A file is all of the split `train`."""
    from datasets import load_dataset

    options = {"split": split, "streaming": script.dataset_streaming}
    builder = _BUILDERS.get(Path(script.dataset_name).suffix)
    if builder is None:
        return load_dataset(script.dataset_name, script.dataset_config, **options)
    return load_dataset(builder, data_files=script.dataset_name, **options)


__all__ = ["add_parser", "run"]
