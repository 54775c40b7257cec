"""The runs of `llada twin`: a causal or a diffusion model of some size, trained on some rows for some steps."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from llada import LLaDAConfig, LLaDAModelLM, LLaDAPreTrainer, LLaDAPreTrainingConfig
from llada.evaluation.causal_twin import build_causal_twin
from llada.evaluation.twin_scores import score_short_answers
from llada.trainers.checkpoint_files import newest_complete
from llada.trainers.data.data_checks import TokenChecks
from llada.trainers.pre_trainer import chunk_documents
from llada.trainers.resumption import ResumableTrainerMixin

from .progress import LossBar


if TYPE_CHECKING:
    from datasets import Dataset

CAUSAL, DIFFUSION = "causal", "diffusion"
RESULT = "result.json"


@dataclass(frozen=True)
class TwinSettings:
    """
    What all runs have in common.

    Args:
        sequence_length (`int`): Tokens of a row.
        batch_size, accumulation (`int`): Rows in a forward pass of a process, and passes in a step.
        learning_rate (`float`): The peak, for all runs.
        seed (`int`): Of weights, order and masks.
        num_evaluations (`int`): Points of a curve.
        num_eval_draws (`int`): Masks of a row in an evaluation.
    """

    sequence_length: int
    batch_size: int
    accumulation: int
    learning_rate: float
    seed: int
    num_evaluations: int
    num_eval_draws: int


@dataclass(frozen=True)
class TwinRun:
    """
    One model to train.

    Args:
        name (`str`): Name of its folder.
        kind (`str`): `"causal"` or `"diffusion"`.
        width, layers (`int`): Its size.
        steps (`int`): Steps of training.
        num_rows (`int`, *optional*): How many rows of the text it sees, all if not given.
        objective (`dict[str, Any]`): Fields of [`MaskedDiffusionArguments`] that differ from those of LLaDA.
    """

    name: str
    kind: str
    width: int
    layers: int
    steps: int
    num_rows: int | None = None
    objective: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TwinData:
    """
    The text of all runs.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): What it is read with.
        train, held_out ([`~datasets.Dataset`]): Rows of `input_ids`, all of one length.
        bytes_per_token (`float`): Of the held-out text.
    """

    tokenizer: PreTrainedTokenizerBase
    train: "Dataset"
    held_out: "Dataset"
    bytes_per_token: float


def prepare_data(
    texts: list[str],
    held_out: list[str],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    num_eval_rows: int,
    seed: int,
) -> TwinData:
    """
    Joins texts and cuts them into rows.

    Args:
        texts, held_out (`list[str]`): What is trained on and what is tested with.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A tokenizer with a mask and an end-of-text token.
        sequence_length (`int`): Tokens of a row.
        num_eval_rows (`int`): Rows to test with, at most. They are drawn.
        seed (`int`): Of the draw.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    checks = TokenChecks(len(tokenizer), tokenizer.mask_token_id)
    train, test = (
        chunk_documents(
            Dataset.from_dict({"text": pages}), sequence_length, checks, tokenizer.eos_token_id, tokenizer, name=name
        )
        for pages, name in ((texts, "train"), (held_out, "held-out"))
    )
    # every page ends with an end of text
    num_tokens = sum(len(ids) + 1 for ids in tokenizer(held_out, add_special_tokens=False, verbose=False)["input_ids"])
    num_bytes = sum(len(page.encode()) for page in held_out)
    test = test.shuffle(seed=seed).select(range(min(num_eval_rows, len(test))))
    return TwinData(tokenizer, train.shuffle(seed=seed), test, num_bytes / num_tokens)


def build_model(run: TwinRun, data: TwinData, sequence_length: int) -> PreTrainedModel:
    """The model of a run, with weights drawn from the seed of torch."""
    head = 64 if run.width >= 512 else 16
    tokenizer = data.tokenizer
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        hidden_size=run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=run.width // head,
        # eight thirds, as in Llama
        intermediate_size=(run.width * 8 // 3 + 7) // 8 * 8,
        # with the start token that the causal model needs
        max_position_embeddings=sequence_length + 1,
        rope_theta=10000.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    return build_causal_twin(config) if run.kind == CAUSAL else LLaDAModelLM(config)


class CausalTrainer(ResumableTrainerMixin, Trainer):
    """The trainer of transformers, which goes on from complete checkpoints only."""


def join_start(bos_token_id: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """A collator for causal models: the start token is given, so that every token of a row is predicted."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[bos_token_id, *row["input_ids"]] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    return collate


def train_twin(run: TwinRun, settings: TwinSettings, data: TwinData, folder: Path) -> dict[str, Any]:
    """
    Trains a model, or goes on where an earlier call was interrupted, or reads what it found.

    Args:
        run ([`TwinRun`]): What to train.
        settings ([`TwinSettings`]): How.
        data ([`TwinData`]): On what.
        folder (`Path`): Where to put checkpoints, the model and the result.

    Returns:
        `dict[str, Any]`: The run, `parameters`, `flops_per_token`, a `curve` of `step`, `tokens`, `flops` and
        `bits_per_byte`, and `short`, the scores of short answers.
    """
    from accelerate import PartialState

    done = folder / RESULT
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    set_seed(settings.seed)
    model = build_model(run, data, settings.sequence_length)
    rows = data.train if run.num_rows is None else data.train.select(range(run.num_rows))
    trainer = _build_trainer(run, settings, data, model, rows, folder / "checkpoints")
    for callback in LossBar.replaces:
        trainer.remove_callback(callback)
    trainer.add_callback(LossBar(run.name))
    found, _ = newest_complete(trainer.args.output_dir, trainer._ranks)
    trainer.train(resume_from_checkpoint=found is not None)
    metric = "eval_loss" if run.kind == CAUSAL else "eval_nll_bound"
    if not any(metric in entry and entry["step"] == run.steps for entry in trainer.state.log_history):
        trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    per_step = trainer.get_total_train_batch_size(trainer.args) * settings.sequence_length
    state = PartialState()
    if state.is_main_process:
        embedding = model.get_input_embeddings().weight.numel()
        flops_per_token = 6 * (model.num_parameters() - embedding)
        curve = [
            {
                "step": entry["step"],
                "tokens": entry["step"] * per_step,
                "flops": entry["step"] * per_step * flops_per_token,
                "bits_per_byte": bits_per_byte(entry[metric], data),
            }
            for entry in trainer.state.log_history
            if metric in entry
        ]
        result = {
            **asdict(run),
            "parameters": model.num_parameters(),
            "flops_per_token": flops_per_token,
            "epochs": run.steps * per_step / settings.sequence_length / len(rows),
            "curve": curve,
            "short": {
                name: [bits_per_byte(value, data) for value in values]
                for name, values in score_short_answers(
                    load_twin(run.kind, folder), data.held_out["input_ids"]
                ).items()
            },
        }
        partial = done.with_suffix(".part")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(done)
        shutil.rmtree(trainer.args.output_dir)
    state.wait_for_everyone()
    return json.loads(done.read_text(encoding="utf-8"))


def bits_per_byte(nats_per_token: float, data: TwinData) -> float:
    """Nats per token of the held-out text in bits per byte."""
    return nats_per_token / torch.log(torch.tensor(2.0, dtype=torch.double)).item() / data.bytes_per_token


def load_twin(kind: str, folder: Path) -> PreTrainedModel:
    """The model that a run has saved, in evaluation mode, on the accelerator if there is one."""
    from accelerate import PartialState

    model_class = AutoModelForCausalLM if kind == CAUSAL else AutoModelForMaskedLM
    return model_class.from_pretrained(folder / "model").to(PartialState().device).eval()


def _build_trainer(
    run: TwinRun, settings: TwinSettings, data: TwinData, model: PreTrainedModel, rows: "Dataset", folder: Path
) -> Any:
    every = max(1, run.steps // settings.num_evaluations)
    accelerator = torch.accelerator.current_accelerator()
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": run.steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "adam_beta2": 0.98,
        "weight_decay": 0.1,
        "seed": settings.seed,
        "bf16": accelerator is not None and accelerator.type == "cuda" and torch.cuda.is_bf16_supported(),
        "use_cpu": accelerator is None,
        "dataloader_pin_memory": accelerator is not None,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "logging_steps": max(1, every // 5),
        "report_to": "none",
        "disable_tqdm": True,
    }
    datasets = {"train_dataset": rows, "eval_dataset": data.held_out}
    if run.kind == CAUSAL:
        collator = join_start(data.tokenizer.bos_token_id)
        return CausalTrainer(model=model, args=TrainingArguments(**arguments), data_collator=collator, **datasets)
    objective = {"ratio_sampling": "stratified", **run.objective}
    config = LLaDAPreTrainingConfig(
        sequence_length=settings.sequence_length,
        random_length_probability=0.0,
        num_eval_draws=settings.num_eval_draws,
        **arguments,
        **objective,
    )
    return LLaDAPreTrainer(model=model, args=config, **datasets)


__all__ = [
    "CAUSAL",
    "DIFFUSION",
    "TwinData",
    "TwinRun",
    "TwinSettings",
    "bits_per_byte",
    "build_model",
    "load_twin",
    "prepare_data",
    "train_twin",
]
