"""A run on several processes, started by `trainers/test_data_parallel.py`: writes what each of them saw."""

import copy
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from tiny_tokenizer import build_tiny_tokenizer
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from training_probes import NoiseRecorder, mask_by_content

import llada_cli
from llada import (
    LLaDAConfig,
    LLaDADPOConfig,
    LLaDADPOTrainer,
    LLaDAModelLM,
    LLaDASFTConfig,
    LLaDASFTTrainer,
    SampleCallback,
)


def make_trainer(folder: Path, per_device_train_batch_size: int, **settings) -> LLaDASFTTrainer:
    """A trainer of a small model on eight pairs, with five of them to evaluate on."""
    torch.manual_seed(0)
    model = LLaDAModelLM(
        LLaDAConfig(
            vocab_size=320,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            mask_token_id=300,
            eos_token_id=299,
            pad_token_id=299,
            bos_token_id=295,
        )
    )
    pairs = Dataset.from_dict(
        {"prompt": [f"{n}+{n}=" for n in range(8)], "completion": [str(2 * n) * (1 + n % 3) for n in range(8)]}
    )
    args = LLaDASFTConfig(
        str(folder),
        max_steps=1,
        # in which the learning rate would be 0
        warmup_steps=0,
        per_device_train_batch_size=per_device_train_batch_size,
        per_device_eval_batch_size=2,
        # so that rows differ in the number of tokens that count
        eos_fill="none",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # of several processes: gradients are the same with and without
        activation_checkpointing=per_device_train_batch_size < 8,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return LLaDASFTTrainer(
        model, args, train_dataset=pairs, eval_dataset=pairs.select(range(5)), processing_class=build_tiny_tokenizer()
    )


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
        trainer.forward_process = mask_by_content(trainer.forward_process)
        trainer.optimizer = SGD(trainer.model.parameters(), lr=1.0)
        trainer.train()
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
    args = LLaDADPOConfig(
        str(folder),
        num_draws=2,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.1],
        max_steps=1,
        warmup_steps=0,
        per_device_train_batch_size=per_device_train_batch_size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        activation_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
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
    trainer = make_trainer(folder, 2, gradient_accumulation_steps=2, loss_normalization="token")
    trainer.forward_process = mask_by_content(trainer.forward_process)
    trainer.optimizer = SGD(trainer.model.parameters(), lr=1.0)
    trainer.train()
    assert trainer.is_fsdp_enabled and all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    trainer.save_model(str(folder / "sharded"))
    if trainer.accelerator.process_index == 0:
        (folder / "sharded.json").write_text(json.dumps(trainer.state.log_history[0]), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_preferences(Path(sys.argv[1]), per_device_train_batch_size=2, accumulation=2)
    run_sharded(Path(sys.argv[1]))
