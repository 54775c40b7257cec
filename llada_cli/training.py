"""What the commands that train share: their options, and a run from the first step to the Hub."""

import argparse
import copy
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from .training_data import load_datasets, name_datasets


# titles of the groups of `--help`, by the class that has the options
_TITLES = {
    "ScriptArguments": "dataset",
    "DatasetMixtureConfig": "dataset mixture",
    "ModelConfig": "model and adapter",
    "TrainingArguments": "training",
}
_TRL, _OURS = "training with trl", "masked diffusion"


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Adds what no dataclass has. The other options are left in `args.rest`, for `parse`."""
    parser.add_argument("--config", metavar="FILE", help="a YAML file with options; those typed go before it")


def parse(args: argparse.Namespace, description: str | None, *dataclasses: Any) -> tuple[Any, ...]:
    """
    Reads the options of a command that trains, from the command line and from the file that `--config` names.

    Args:
        args (`argparse.Namespace`): What the command line has read, with `command`, `config` and `rest`.
        description (`str`, *optional*): What `--help` says first, the docstring of the command's module.
        dataclasses (`type`): Whose fields are options, as `trl.ModelConfig`, those of the trainer last.

    Returns:
        `tuple`: One instance of each dataclass.
    """
    from trl import TrlParser

    parser = TrlParser(
        dataclasses,
        prog=f"llada {args.command}",
        usage="%(prog)s [--config FILE] [OPTION VALUE ...]",
        description=description,
        formatter_class=_Formatter,
    )
    _group(parser, dataclasses)
    # read already: for `--help`
    add_parser(parser)
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came up")
    given = args.rest if args.config is None else ["--config", args.config, *args.rest]
    return parser.parse_args_and_config(given)[: len(dataclasses)]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves descriptions as they are, and shows one of two spellings: `--learning-rate` is `--learning_rate`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        action = copy.copy(action)
        action.option_strings = [text for text in action.option_strings if "-" not in text.lstrip("-")]
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _group(parser: argparse.ArgumentParser, dataclasses: Iterable[Any]) -> None:
    """Divides the options by who has them, ours last: among the hundreds of a trainer nobody would find them."""
    titles: dict[str, str] = {}
    for dataclass in dataclasses:
        parents: Iterable[type] = reversed(dataclass.__mro__)
        for parent in parents:
            if not is_dataclass(parent):
                continue
            title = _TITLES.get(parent.__name__, _TRL if parent.__module__.startswith("trl.") else _OURS)
            for field in fields(parent):
                titles.setdefault(field.name, title)
    groups = {title: parser.add_argument_group(title) for title in (*_TITLES.values(), _TRL, _OURS)}
    for action in [action for action in parser._optionals._group_actions if action.dest in titles]:
        parser._optionals._group_actions.remove(action)
        groups[titles[action.dest]]._group_actions.append(action)


def loading_options(model: Any) -> dict[str, Any]:
    """Keywords of `from_pretrained`, from a `trl.ModelConfig`."""
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }


def train(trainer: Any, script: Any, mixture: Any = None) -> None:
    """
    Trains, from a checkpoint if the arguments name one, and saves the model with its card, on the Hub too if asked to.

    Args:
        trainer (`transformers.Trainer`): A trainer of this package.
        script (`trl.ScriptArguments`): Which dataset the card names.
        mixture (`trl.DatasetMixtureConfig`, *optional*): Or which several.
    """
    config, names = trainer.args, name_datasets(script, mixture)
    resume = config.resume_from_checkpoint
    # the option is a text for transformers, which would look for a folder of this name
    trainer.train(resume_from_checkpoint={"true": True, "false": False}.get(str(resume).lower(), resume))
    trainer.save_model()
    trainer.create_model_card(dataset_name=names)
    if trainer.is_world_process_zero():
        print(f"The model is in {config.output_dir}/.")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=names)
    trainer.end()


def tune(args: argparse.Namespace, description: str | None, config_class: Any, trainer_class: Any) -> None:
    """
    Runs a command that trains a model on the rows of a dataset with a trainer of TRL's kind.

    Args:
        args (`argparse.Namespace`): What was typed.
        description (`str`, *optional*): The help of the command.
        config_class, trainer_class (`type`): The arguments and the trainer.

    Raises:
        ValueError: If the model or the dataset is not named.
    """
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    script, mixture, model_config, config = parse(
        args, description, ScriptArguments, DatasetMixtureConfig, ModelConfig, config_class
    )
    if model_config.model_name_or_path is None:
        raise ValueError("What is trained? Write `--model_name_or_path`: a folder or a repository on the Hub.")
    train_dataset, eval_dataset = load_datasets(script, config, mixture)
    config.model_init_kwargs = loading_options(model_config) | (config.model_init_kwargs or {})
    trainer = trainer_class(
        model=model_config.model_name_or_path,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script, mixture)


def read_object(name: str, value: dict[str, Any] | str | None, example: str) -> dict[str, Any]:
    """
    An option that is a JSON object: on the command line its text, in a YAML file the object itself.

    Args:
        name (`str`): Name of the option.
        value (`dict`, `str` or `None`): What was given.
        example (`str`): One that may be written.

    Returns:
        `dict[str, Any]`: The object, empty if nothing was given.

    Raises:
        ValueError: If it is none.
    """
    given: Any = value or {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            pass
    if not isinstance(given, dict):
        raise ValueError(f"`{name}={value!r}` is no JSON object. Write one, such as '{example}'.")
    return given


__all__ = ["add_parser", "loading_options", "parse", "read_object", "train", "tune"]
