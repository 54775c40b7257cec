"""Distil a model into one that writes more tokens in a step.

  llada distill --model_name_or_path GSAI-ML/LLaDA-8B-Instruct --dataset_name prompts.jsonl --output_dir faster \\
      --generation_kwargs '{"max_new_tokens": 256, "steps": 256}' --use_peft

The dataset holds prompts: `prompt` as text or messages. The teacher, the model itself if no other is named, answers
them, and `trajectories.jsonl` in the output folder keeps how. An interrupted run goes on with that file, and it may be
the dataset of another one. With `--block_masks random`, prompts may have a `completion`: then nobody is asked.
Options are the fields of LLaDADistillConfig and of trl's ScriptArguments and ModelConfig; `--help` lists them, those
of masked diffusion last. `--config` names a YAML file with them, `--traceback` shows where an error came up.
`--resume_from_checkpoint true` goes on from the newest complete checkpoint in the output folder.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .training import add_parser, loading_options, parse, read_object, train
from .training_data import load_datasets


@dataclass
class TeacherArguments:
    """Who answers the prompts, and how."""

    _argument_group_name = "teacher"

    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Whose answers are trained on. If not given: those of the model itself."}
    )
    teacher_batch_size: int = field(default=8, metadata={"help": "Prompts that are answered at once."})
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How the teacher generates: arguments of `generate`, as JSON."}
    )

    def __post_init__(self) -> None:
        self.generation_kwargs = read_object("generation_kwargs", self.generation_kwargs, '{"max_new_tokens": 256}')


def run(args: argparse.Namespace) -> None:
    from llada import LLaDADistillConfig, LLaDADistillTrainer

    # isort: split
    # the names above say which extra is missing
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

    from llada.trainers.data.data_checks import first_row

    script, mixture, model_config, teacher, config = parse(
        args, __doc__, ScriptArguments, DatasetMixtureConfig, ModelConfig, TeacherArguments, LLaDADistillConfig
    )
    name, options = model_config.model_name_or_path, loading_options(model_config)
    if name is None:
        raise ValueError("What is distilled? Write `--model_name_or_path`: a folder or a repository on the Hub.")
    train_dataset, eval_dataset = load_datasets(script, config, mixture)
    columns = first_row(train_dataset, "train")
    if "step_of" not in columns and not (config.block_masks == "random" and "completion" in columns):
        train_dataset = _ask(teacher, train_dataset, name, options, config)
    config.model_init_kwargs = options | (config.model_init_kwargs or {})
    trainer = LLaDADistillTrainer(
        model=name,
        args=config,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, script, mixture)


def _ask(teacher: TeacherArguments, prompts: Any, name: str, options: dict[str, Any], config: Any) -> Any:
    """The answers of the teacher. The first process generates, the others read what it wrote."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from llada.trainers.trajectories import collect_trajectories

    if teacher.teacher_model_name_or_path is not None:
        name, options = teacher.teacher_model_name_or_path, options | {"revision": None}
    folder = Path(config.output_dir)
    assert isinstance(teacher.generation_kwargs, dict), "read above"
    with config.main_process_first(desc="the answers of the teacher"):
        folder.mkdir(parents=True, exist_ok=True)
        model = AutoModelForMaskedLM.from_pretrained(name, **options).to(config.device)
        return collect_trajectories(
            model,
            AutoTokenizer.from_pretrained(name, revision=options["revision"]),
            prompts,
            folder / "trajectories.jsonl",
            teacher.teacher_batch_size,
            **teacher.generation_kwargs,
        )


__all__ = ["add_parser", "run"]
