"""Teach a model by rewards (GRPO with estimates of log π), with the options of `trl grpo`.

  llada grpo --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset_name questions.jsonl --output_dir tuned \\
      --reward_funcs exact_match --estimator elbo --generation_kwargs '{"block_length": 32, "steps": 128}' --use_peft

The dataset is a Hub id, a folder, or a .json, .jsonl, .csv or .parquet file, with the column `prompt`. A reward is
`exact_match`, which compares with the column `answer`, a function of `trl.rewards`, or one of yours, named
`module.function` and looked for in this folder, too. `--reasoning_gym countdown` takes prompts and rewards from a task
of reasoning-gym. Options are the fields of LLaDAGRPOConfig and of trl's ScriptArguments and ModelConfig; `--help`
lists them, those of masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error
came up. `--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse
import os
import sys
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .training import add_parser, loading_options, parse, read_object, train
from .training_data import load_datasets


# rewards that have a short name -> where they are
_REWARDS = {"exact_match": "llada.trainers.rewards"} | dict.fromkeys(
    ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"), "trl.rewards"
)


@dataclass
class RewardArguments:
    """What answers are rewarded for."""

    _argument_group_name = "rewards"

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": f"Rewards: {', '.join(_REWARDS)}, or `module.function`. They are added up."},
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "A model that rewards: folder or repository of a text classifier."}
    )
    reasoning_gym: str | None = field(
        default=None, metadata={"help": "A task of reasoning-gym, in place of a dataset. Its score is a reward, too."}
    )
    reasoning_gym_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its settings, `size` and `seed`, as JSON."}
    )

    def __post_init__(self) -> None:
        self.reasoning_gym_kwargs = read_object("reasoning_gym_kwargs", self.reasoning_gym_kwargs, '{"size": 1000}')


def run(args: argparse.Namespace) -> None:
    from llada import LLaDAGRPOConfig, LLaDAGRPOTrainer

    # isort: split
    # the names above say which extra is missing
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    from llada.trainers.rewards import reasoning_gym_task

    script, mixture, model_config, rewards, config = parse(
        args, __doc__, ScriptArguments, DatasetMixtureConfig, ModelConfig, RewardArguments, LLaDAGRPOConfig
    )
    if model_config.model_name_or_path is None:
        raise ValueError("What is trained? Write `--model_name_or_path`: a folder or a repository on the Hub.")
    functions = [find_reward(name) for name in rewards.reward_funcs or ()]
    if rewards.reward_model_name_or_path is not None:
        functions.append(rewards.reward_model_name_or_path)
    if rewards.reasoning_gym is not None:
        train_dataset, function = reasoning_gym_task(rewards.reasoning_gym, **rewards.reasoning_gym_kwargs)
        functions.append(function)
        eval_dataset = None if config.eval_strategy == "no" else train_dataset
    else:
        train_dataset, eval_dataset = load_datasets(script, config, mixture)
    if not functions:
        raise ValueError(
            "What are answers rewarded for? Write `--reward_funcs`, e.g. `exact_match`, or `--reasoning_gym`."
        )
    config.model_init_kwargs = loading_options(model_config) | (config.model_init_kwargs or {})
    trainer = LLaDAGRPOTrainer(
        model=model_config.model_name_or_path,
        reward_funcs=functions,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script, mixture)


def find_reward(name: str) -> Any:
    """
    The reward function of a name.

    Raises:
        ValueError: If there is none.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        if name not in _REWARDS:
            raise ValueError(f"There is no reward {name!r}. Write one of {', '.join(_REWARDS)}, or `module.function`.")
        module, attribute = _REWARDS[name], name
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The reward {name!r} cannot be imported: {error}.") from error


__all__ = ["RewardArguments", "add_parser", "find_reward", "run"]
