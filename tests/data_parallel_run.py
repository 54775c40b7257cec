"""A run on several processes, started by `trainers/test_data_parallel.py`: writes what each of them saw."""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from peft import LoraConfig
from tiny_models import tiny_llada_moe
from tiny_tokenizer import build_tiny_tokenizer
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from training_probes import NoiseRecorder, mask_by_content
from transformers import Trainer

import llada_cli
from llada import (
    LLaDAConfig,
    LLaDADistillConfig,
    LLaDADistillTrainer,
    LLaDADPOConfig,
    LLaDADPOTrainer,
    LLaDAGRPOConfig,
    LLaDAGRPOTrainer,
    LLaDAModelLM,
    LLaDAPreTrainer,
    LLaDAPreTrainingConfig,
    LLaDASFTConfig,
    LLaDASFTTrainer,
    SampleCallback,
)


# so that both halves of an adapter have a gradient
ADAPTER = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
TOKENS = {"vocab_size": 320, "mask_token_id": 300, "eos_token_id": 299, "pad_token_id": 299, "bos_token_id": 295}
# in one process, in several, and with the model spread over them
VARIANTS: dict[str, dict[str, Any]] = {"dense": {}, "adapter": {"peft_config": ADAPTER}, "experts": {}}


def _settings(folder: Path, per_device_train_batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        # in which the learning rate would be 0
        "warmup_steps": 0,
        "per_device_train_batch_size": per_device_train_batch_size,
        "per_device_eval_batch_size": 2,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # of several processes: gradients are the same with and without
        "activation_checkpointing": per_device_train_batch_size < 8,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def make_trainer(
    folder: Path,
    per_device_train_batch_size: int,
    kind: type[LLaDASFTTrainer] = LLaDASFTTrainer,
    variant: str = "dense",
    **settings,
) -> LLaDASFTTrainer:
    """A trainer of a small model on eight pairs, with five of them to evaluate on."""
    torch.manual_seed(0)
    model = LLaDAModelLM(
        LLaDAConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, **TOKENS)
    )
    pairs = Dataset.from_dict(
        {"prompt": [f"{n}+{n}=" for n in range(8)], "completion": [str(2 * n) * (1 + n % 3) for n in range(8)]}
    )
    if variant == "experts":
        # the loss of the balance is one of a micro-batch, and another where a batch is split
        model = tiny_llada_moe(**TOKENS, router_aux_loss_coef=0.0).train()
    config_class = LLaDADistillConfig if kind is LLaDADistillTrainer else LLaDASFTConfig
    # so that rows differ in the number of tokens that count
    settings = _settings(folder, per_device_train_batch_size) | {"eos_fill": "none"} | settings
    return kind(
        model,
        config_class(freeze_routers=variant == "experts", **settings),
        train_dataset=pairs,
        eval_dataset=pairs.select(range(5)),
        processing_class=build_tiny_tokenizer(),
        **VARIANTS[variant],
    )


def _take_step(trainer: Trainer) -> None:
    """A step that the gradient can be read from. Noise is that of the text, which may be in any process."""
    trainer.forward_process = mask_by_content(trainer.forward_process)
    trainer.optimizer = SGD([one for one in trainer.model.parameters() if one.requires_grad], lr=1.0)
    trainer.train()


def run_other_trainers(folder: Path, per_device_train_batch_size: int, accumulation: int) -> None:
    """A step of pre-training on rows that are cut, one of distillation, one of an adapter, one with frozen routers."""
    accumulated = {"gradient_accumulation_steps": accumulation}
    sft = make_trainer(folder, per_device_train_batch_size)
    args = LLaDAPreTrainingConfig(
        **_settings(folder, per_device_train_batch_size) | accumulated,
        sequence_length=16,
        random_length_probability=1.0,
    )
    rows = Dataset.from_dict({"input_ids": torch.arange(128).view(8, 16).tolist()})
    distiller = make_trainer(
        folder,
        per_device_train_batch_size,
        LLaDADistillTrainer,
        block_masks="random",
        block_lengths=[2],
        **accumulated,
    )
    noise = mask_by_content(distiller.args.make_noise(distiller.mask_token_id, vocab_size=320))
    distiller._add_noise = lambda inputs: noise(inputs["input_ids"], inputs["labels"] != -100)
    trainers = {"pretraining": LLaDAPreTrainer(sft.model, args, train_dataset=rows), "distillation": distiller}
    for variant in ("adapter", "experts"):
        trainers[variant] = make_trainer(folder, per_device_train_batch_size, variant=variant, **accumulated)
    for name, trainer in trainers.items():
        _take_step(trainer)
        if trainer.accelerator.process_index == 0:
            weights = {key: one for key, one in trainer.model.named_parameters() if name != "adapter" or "lora" in key}
            torch.save(weights, folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps(trainer.state.log_history[0]), encoding="utf-8")
        if name == "adapter":
            trainer.save_model(str(folder / "whole-adapter"))


def run(folder: Path, per_device_train_batch_size: int, accumulation: int) -> None:
    """One step for every normalisation without noise, an evaluation, and one step for every way to draw ratios."""
    results = {}
    for normalization in ("sequence", "token", "batch", "masked"):
        trainer = make_trainer(
            folder,
            per_device_train_batch_size,
            gradient_accumulation_steps=accumulation,
            loss_normalization=normalization,
            loss_weighting="uniform" if normalization == "masked" else "elbo",
        )
        _take_step(trainer)
        rank = trainer.accelerator.process_index
        results[normalization] = trainer.state.log_history[0]
        if rank == 0:
            torch.save(trainer.model.state_dict(), folder / f"{normalization}.pt")
    results["evaluation"] = trainer.evaluate()

    samples = {"sample_steps": 1, "sample_prompts": ["1+1="], "sample_kwargs": {"max_new_tokens": 3}}
    for ratio_sampling in ("iid", "stratified"):
        trainer = make_trainer(
            folder,
            per_device_train_batch_size,
            gradient_accumulation_steps=accumulation,
            ratio_sampling=ratio_sampling,
            mask_eps=0.0,
            **samples,
        )
        recorder = NoiseRecorder(trainer)
        trainer.train()
        results[ratio_sampling] = [ratios for _, ratios in recorder.drawn]
        (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, SampleCallback))
        results["samples"] = callback.table
    (folder / f"rank{rank}.json").write_text(json.dumps(results), encoding="utf-8")


def run_preferences(folder: Path, per_device_train_batch_size: int, accumulation: int) -> None:
    """One step of preference optimisation, of a policy that has left its reference."""
    sft = make_trainer(folder, per_device_train_batch_size)
    reference, model = copy.deepcopy(sft.model), sft.model
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    rows = range(8)
    preferences = Dataset.from_dict(
        {
            "prompt": [f"{n}+{n}=" for n in rows],
            "chosen": [str(2 * n) * (1 + n % 3) for n in rows],
            "rejected": [str(7 * n) * (1 + n % 2) for n in rows],
        }
    )
    settings = _settings(folder, per_device_train_batch_size) | {"activation_checkpointing": False}
    args = LLaDADPOConfig(
        num_draws=2,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.1],
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    tokenizer = build_tiny_tokenizer()
    optimizer = SGD(model.parameters(), lr=1.0)
    trainer = LLaDADPOTrainer(
        model, reference, args, train_dataset=preferences, processing_class=tokenizer, optimizers=(optimizer, None)
    )
    trainer.train()
    if trainer.accelerator.process_index == 0:
        torch.save(trainer.model.state_dict(), folder / "preferences.pt")
        (folder / "preferences.json").write_text(json.dumps(trainer.state.log_history[0]), encoding="utf-8")


REWARDED = {"elbo": {"loss_type": "grpo", "beta": 0.1}, "trajectory": {"loss_type": "dapo", "num_draws": 3}}


def run_rewards(folder: Path, per_device_train_batch_size: int, accumulation: int) -> None:
    """One step on the answers to one prompt, which the processes share."""
    for estimator, settings in REWARDED.items():
        model = make_trainer(folder, per_device_train_batch_size).model
        # some answers end early
        model.lm_head.weight.data[TOKENS["eos_token_id"]] *= -240
        args = LLaDAGRPOConfig(
            **_settings(folder, per_device_train_batch_size),
            **settings,
            estimator=estimator,
            gradient_accumulation_steps=accumulation,
            num_generations=8,
            max_completion_length=6,
        )
        trainer = LLaDAGRPOTrainer(
            model,
            lambda completion_ids, **_: [sum(token % 7 for token in ids) / 10 for ids in completion_ids],
            args,
            train_dataset=Dataset.from_dict({"prompt": ["1+1=", "20+20="]}),
            processing_class=build_tiny_tokenizer(),
            optimizers=(SGD(model.parameters(), lr=0.1), None),
        )
        trainer.train()
        if trainer.accelerator.process_index == 0:
            torch.save(trainer.model.state_dict(), folder / f"rewards-{estimator}.pt")
            log = json.dumps(trainer.state.log_history[0])
            (folder / f"rewards-{estimator}.json").write_text(log, encoding="utf-8")


def shard_on_cpu(config_file: Path) -> None:
    """
    What `accelerate launch --config_file` does for FSDP, on a CPU. accelerate shards models on accelerators only, so
    it is told that this is one.
    """
    arguments = launch_command_parser().parse_args(["--config_file", str(config_file), "--num_processes=2", "-"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    os.environ |= {name: value for name, value in environment.items() if "FSDP" in name}
    initialise = AcceleratorState.__init__

    def as_accelerator(self, *args, **kwargs):
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialise(self, *args, **kwargs)

    AcceleratorState.__init__ = as_accelerator


def run_sharded(folder: Path) -> None:
    """One step without noise of a model that is spread over the processes, and what is saved of it."""
    shard_on_cpu(Path(llada_cli.__file__).parent / "accelerate_configs" / "fsdp2.yaml")
    for variant in VARIANTS:
        trainer = make_trainer(folder, 2, variant=variant, gradient_accumulation_steps=2)
        _take_step(trainer)
        assert trainer.is_fsdp_enabled and all(isinstance(one, DTensor) for one in trainer.model.parameters())
        trainer.save_model(str(folder / f"sharded-{variant}"))
        if trainer.accelerator.process_index == 0:
            log = json.dumps(trainer.state.log_history[0])
            (folder / f"sharded-{variant}.json").write_text(log, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_preferences(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_other_trainers(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_rewards(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_sharded(Path(sys.argv[1]))
