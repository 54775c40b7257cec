"""A step of fine-tuning: ours, the same with the logits of all positions, and that of a causal model in stock TRL."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from llada import LLaDAConfig, LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer
from llada.evaluation.causal_twin import build_causal_twin
from llada.modeling_llada.token_losses import TokenLossOutput

from .accelerator import draw_model
from .counters import clock_of
from .synthetic_text import EOS, MASK, draw_texts, word_tokenizer
from .trained_model import TRAINED_VOCAB


# dense bf16 of one H100 or H200, in operations per second
_PEAK_OPERATIONS = 989e12


@dataclass(frozen=True)
class StepShape:
    """
    A model and a batch.

    Args:
        hidden_size, num_layers, vocab_size (`int`):
            The model.
        batch, length, prompt_length (`int`, *optional*, default to 4, 256 and 64):
            The batch. What follows the prompt is trained.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int
    batch: int = 4
    length: int = 256
    prompt_length: int = 64

    def __str__(self) -> str:
        return (
            f"width {self.hidden_size}, {self.num_layers} layers, vocabulary {self.vocab_size:,}, batch {self.batch}, "
            f"{self.length} tokens, {self.prompt_length} of them prompt"
        )

    def config(self) -> LLaDAConfig:
        """The configuration of the model."""
        return LLaDAConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.hidden_size * 8 // 3,
            num_hidden_layers=self.num_layers,
            num_attention_heads=max(self.hidden_size // 64, 1),
            max_position_embeddings=4096,
            mask_token_id=MASK,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )


# in the first two nearly all is the head, in the last one nearly half
SHAPES = (StepShape(64, 2, 8192), StepShape(64, 2, 126464), StepShape(384, 4, 8192))
TINY_SHAPES = (StepShape(64, 1, 8192, batch=2, length=64, prompt_length=16),)
OURS, BLOCKS, FULL, CAUSAL = "ours", "ours, block diffusion", "all logits", "causal, stock TRL"


class AllLogitsLLaDA(LLaDAModelLM):
    """What a training step is without care for memory: the cross entropy of all positions, the masked ones counted."""

    def forward(
        self, labels=None, logits_to_keep=None, token_losses=False, loss_weights=None, **inputs
    ) -> TokenLossOutput:
        logits = super().forward(**inputs).logits
        flat, targets = logits.flatten(0, 1).float(), labels.flatten()
        losses = nn.functional.cross_entropy(flat, targets, reduction="none").view(labels.shape)
        correct = flat.detach().argmax(dim=1).view(labels.shape) == labels
        loss = (losses * logits_to_keep * loss_weights).sum()
        return TokenLossOutput(
            loss=loss, token_losses=losses.detach() * logits_to_keep, correct=correct & logits_to_keep
        )


def make_step(kind: str, ratio: float, shape: StepShape, folder: Path) -> Callable[[], float]:
    """
    A training step without that of the optimizer, which is the same for all.

    Args:
        kind (`str`):
            Which step.
        ratio (`float`):
            Share of the answer that is masked. A causal model masks nothing.
        shape ([`StepShape`]):
            Model and batch.
        folder (`Path`):
            Where the trainer may write.

    Returns:
        `Callable[[], float]`: Takes a step and returns the seconds it took. Gradients are zero before and after.
    """
    torch.manual_seed(0)
    texts = draw_texts(shape.batch, shape.length, seed=1)
    labels = texts.clone()
    labels[:, : shape.prompt_length] = -100
    common = {
        "train_dataset": Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()}),
        "processing_class": word_tokenizer(TRAINED_VOCAB),
    }
    settings: dict[str, Any] = {
        "per_device_train_batch_size": shape.batch,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": None,
        "activation_checkpointing": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    config = shape.config()
    if kind == CAUSAL:
        trainer = SFTTrainer(build_causal_twin(config), SFTConfig(str(folder), **settings), **common)
    else:
        model = (AllLogitsLLaDA if kind == FULL else LLaDAModelLM)(config)
        args = LLaDASFTConfig(str(folder), warmup_steps=0, block_length=32 if kind == BLOCKS else None, **settings)
        trainer = LLaDASFTTrainer(model, args, **common)
        # of ratio 0, one token of each row is
        band = {"min_mask_ratio": max(ratio - 1e-6, 0.0), "max_mask_ratio": max(ratio, 1e-6)}
        trainer.forward_process = replace(trainer.forward_process, mask_sampling="exact", **band)
    # what `train` does by default, in both trainers
    trainer.model.activation_checkpointing_enable({"use_reentrant": False})
    return _step_of(trainer, clock_of(torch.device("cpu")))


def _step_of(trainer: Trainer, clock: Callable[[], float]) -> Callable[[], float]:
    model = trainer.model

    def step() -> float:
        batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
        start = clock()
        trainer.training_step(model, batches[0], count)
        seconds = clock() - start
        # zero and not gone: gradients are there before the step, as from the second step of an accumulation on
        model.zero_grad(set_to_none=False)
        return seconds

    return step


def peak_bytes(step: Callable[[], Any]) -> int:
    """
    The most bytes that a step on the CPU has taken from torch's allocator at a time, temporaries inside operations
    included. Parameters and gradients, which are there before, do not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    taken = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    return peak


def measure_training(shape: StepShape, repetitions: int, folder: Path) -> list[dict[str, Any]]:
    """
    Measures steps, repetitions interleaved.

    Args:
        shape ([`StepShape`]):
            Model and batch.
        repetitions (`int`):
            How often, after one that warms up.
        folder (`Path`):
            Where trainers may write.

    Returns:
        `list[dict]`: Rows of the table.
    """
    cases = [(OURS, 0.0), (OURS, 0.5), (OURS, 1.0), (BLOCKS, 0.5), (FULL, 0.5), (FULL, 1.0), (CAUSAL, 0.0)]
    steps = {case: make_step(*case, shape, folder) for case in cases}
    times: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    for repetition in range(repetitions + 1):
        for case, step in steps.items():
            seconds = step()
            if repetition:
                times[case].append(seconds)
    found = {case: (median(times[case]), peak_bytes(step)) for case, step in steps.items()}
    rows = []
    for (kind, ratio), (seconds, peak) in found.items():
        masked = None if kind == CAUSAL else f"{ratio:.0%}" if ratio else "one of each row"
        row = {"step": kind, "masked": masked, "seconds": seconds, "peak_megabytes": peak / 1e6}
        row |= dict.fromkeys(("time_of_full", "peak_of_full", "per_token_of_causal", "time_of_plain"))
        if kind == BLOCKS:
            row["time_of_plain"] = seconds / found[OURS, ratio][0]
        if kind == OURS:
            full_seconds, full_peak = found[FULL, max(ratio, 0.5)]
            row["time_of_full"], row["peak_of_full"] = seconds / full_seconds, peak / full_peak
            row["per_token_of_causal"] = seconds / found[CAUSAL, 0.0][0]
        row["tokens_per_second"] = shape.batch * shape.length / seconds
        rows.append(row)
    return rows


def measure_large(
    config: LLaDAConfig, device: torch.device, folder: Path, length: int = 4096, repetitions: int = 5
) -> dict[str, Any]:
    """
    A step of LoRA on a model with random weights, on an accelerator.

    Args:
        config ([`LLaDAConfig`]):
            The model, by default of the shape of LLaDA-8B.
        device (`torch.device`):
            Where to.
        folder (`Path`):
            Where the trainer may write.
        length (`int`, *optional*, defaults to 4096):
            Tokens of the one row of a batch.
        repetitions (`int`, *optional*, defaults to 5):
            How often.

    Returns:
        `dict`: Seconds of a step, its share of the operations that one H100 can do in them (those of the forward pass
        and of the gradient of the states; what is computed again does not count), the peak of memory, and settings.
    """
    is_cpu = device.type == "cpu"
    model = draw_model(config, device, torch.float32 if is_cpu else torch.bfloat16)
    # not adapters: their few operations are left out
    weights = sum(parameter.numel() for parameter in model.parameters()) - model.get_input_embeddings().weight.numel()
    tokens = torch.randint(0, config.vocab_size - 64, (1, length)).tolist()
    trainer = LLaDASFTTrainer(
        model,
        LLaDASFTConfig(
            str(folder),
            per_device_train_batch_size=1,
            use_cpu=is_cpu,
            bf16=not is_cpu,
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
        processing_class=word_tokenizer(64),
        peft_config=LoraConfig(r=16, task_type="CAUSAL_LM"),
    )
    trainer.model.activation_checkpointing_enable({"use_reentrant": False})
    trainer.model.enable_input_require_grads()
    step = _step_of(trainer, time.perf_counter if is_cpu else clock_of(device))
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = median(step() for _ in range(repetitions))
    attention = 4 * config.num_hidden_layers * config.hidden_size * length**2
    operations = 2 * (2 * weights * length + attention)
    return {
        "name": f"LoRA of rank 16, {weights / 1e9:.1f}B weights, 1 × {length} tokens, bf16, activation checkpointing",
        "seconds": seconds,
        "utilisation": operations / seconds / _PEAK_OPERATIONS,
        "peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan"),
    }


__all__ = ["SHAPES", "TINY_SHAPES", "AllLogitsLLaDA", "StepShape", "measure_large", "measure_training", "peak_bytes"]
