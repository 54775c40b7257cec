"""Runs that end early: losses that are not finite, interruptions, checkpoints in part, streams."""

import logging
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from training_probes import NoiseRecorder, parameters_of
from transformers import TrainerCallback

from llada import (
    LLaDADistillConfig,
    LLaDADistillTrainer,
    LLaDADPOConfig,
    LLaDADPOTrainer,
    LLaDAPreTrainer,
    LLaDAPreTrainingConfig,
    LLaDASFTTrainer,
)
from llada.trainers.checkpoint_files import find_faults


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


class _At(TrainerCallback):
    """Does something before a step, the first of which is 1."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)


def _spoil_weights(model):
    model.lm_head.weight.data.fill_(math.nan)


def _spoil_gradient(model):
    model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)


def _interrupt(model):
    raise KeyboardInterrupt


@pytest.fixture(params=["fine-tuning", "pre-training"])
def make_run(request, make_trainer, make_model, make_args, pairs, tiny_tokenizer):
    """Makes a trainer of one kind that saves every second step."""

    def make(**settings):
        settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, **settings}
        if request.param == "fine-tuning":
            return make_trainer(**settings)
        if request.param == "distillation":
            # blocks that grow, and a mask ratio that rises with the steps
            args = make_args(LLaDADistillConfig, block_masks="random", block_lengths=[1, 2], **settings)
            return LLaDADistillTrainer(make_model(), args, train_dataset=pairs, processing_class=tiny_tokenizer)
        callbacks = settings.pop("callbacks", None)
        rows = Dataset.from_dict({"input_ids": torch.arange(256).view(16, 16).tolist()})
        args = make_args(LLaDAPreTrainingConfig, sequence_length=16, **settings)
        return LLaDAPreTrainer(make_model(), args, train_dataset=rows, callbacks=callbacks)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"logging_steps": 5},
        {"logging_strategy": "no"},
        {"logging_nan_inf_filter": True, "logging_steps": 8},
        {"gradient_accumulation_steps": 2, "logging_strategy": "no"},
    ],
    ids=str,
)
def test_a_loss_that_is_not_finite_ends_the_run(make_run, tmp_path, settings):
    trainer = make_run(callbacks=[_At(3, _spoil_weights)], **settings)
    good = re.escape(str(tmp_path / "run" / "checkpoint-2"))
    with pytest.raises(
        ValueError,
        match=rf"The loss of step 3 is not finite.*`learning_rate=0.00025`.*{good}'\)`.*--learning_rate 0.00025",
    ):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history)


def test_a_run_without_checkpoints_or_logs_is_ended_at_its_end(make_run):
    trainer = make_run(save_strategy="no", logging_strategy="no", callbacks=[_At(2, _spoil_weights)])
    with pytest.raises(ValueError, match=r"The loss of step 2 is not finite.*no checkpoint before it.*`save_steps`"):
        trainer.train()


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_weights_that_a_gradient_spoilt_are_not_saved(make_run, tmp_path, max_grad_norm):
    """The loss is finite until the step after."""
    trainer = make_run(
        callbacks=[_At(4, _spoil_gradient)], logging_strategy="no", optim="sgd", max_grad_norm=max_grad_norm
    )
    with pytest.raises(ValueError, match=r"The gradient of step 4 is not finite.*checkpoint-2"):
        trainer.train()
    assert not (tmp_path / "run" / "checkpoint-4").exists()


def test_a_step_that_the_scaler_of_float16_skips_is_no_fault(make_trainer):
    trainer = make_trainer()
    trainer._watch(torch.tensor(1.0))
    trainer._last_grad_norm = torch.tensor(math.inf)
    with pytest.raises(ValueError, match="The gradient of step 0"):
        trainer._refuse_non_finite()
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer._refuse_non_finite()


class _CountReads(TorchDispatchMode):
    """Counts how often the host reads a number, for which it waits on an accelerator."""

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_looking_for_losses_that_are_not_finite_waits_for_nothing(make_trainer):
    trainer = make_trainer()
    assert trainer.args.logging_nan_inf_filter is False
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    trainer.model.train()
    with _CountReads() as counter:
        for _ in range(3):
            trainer.compute_loss(trainer.model, batch)
    assert counter.reads == 0 and trainer._first_bad_step == math.inf


def test_a_lower_learning_rate_holds_after_a_resumption(make_run, tmp_path, caplog):
    """Optimizer and scheduler hold the rate they were saved with."""

    def rates(trainer, **resumption):
        trainer.train(**resumption)
        return {
            entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry
        }

    settings = {"max_steps": 6, "lr_scheduler_type": "linear"}
    before = rates(make_run(**settings))
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with caplog.at_level(logging.WARNING):
        after = rates(make_run(**settings, learning_rate=2.5e-4), resume_from_checkpoint=checkpoint)
    assert "The learning rate of the checkpoint was 0.001; the run goes on with 0.00025." in caplog.text
    assert [after[step] for step in (1, 2)] == [before[step] for step in (1, 2)]
    assert [after[step] for step in range(3, 7)] == pytest.approx([before[step] / 4 for step in range(3, 7)])


@pytest.fixture
def finished(make_trainer, tmp_path):
    """A run with checkpoints 2 and 4, and a function that makes a new trainer for it."""

    def make(**settings):
        return make_trainer(**{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **settings})

    trainer = make()
    trainer.train()
    return tmp_path / "run", make, parameters_of(trainer.model)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _shard(folder):
    """Weights in two files, one of which is missing."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)


DAMAGES = {
    "weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights are missing"),
    "part of weights": (lambda folder: _cut(folder / "model.safetensors"), "model.safetensors was written in part"),
    "shard": (_shard, "model-00002-of-00002.safetensors is missing"),
    "part of index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "model.safetensors.index.json was written in part",
    ),
    "optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "part of optimizer": (lambda folder: _cut(folder / "optimizer.pt"), "optimizer.pt was written in part"),
    "scheduler": (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "random numbers": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "part of random numbers": (lambda folder: _cut(folder / "rng_state.pth"), "rng_state.pth was written in part"),
    "state": (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
    "part of state": (lambda folder: _cut(folder / "trainer_state.json"), "trainer_state.json was written in part"),
    "all": (shutil.rmtree, "there is no such folder"),
}


def test_checkpoints_in_part_are_refused_or_skipped(finished, caplog):
    run, make, expected = finished
    trainer = make()
    whole = run.with_name("whole")
    run.rename(whole)
    for damage, fault in DAMAGES.values():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        damage(run / "checkpoint-4")
        with pytest.raises(ValueError, match=rf"checkpoint-4 is not complete: {re.escape(fault)}.*from_pretrained"):
            trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert trainer._find_checkpoint(True) == str(run / "checkpoint-2")
        assert (fault in caplog.text) is (run / "checkpoint-4").exists()
        damage(run / "checkpoint-2")
        with pytest.raises(ValueError, match="no complete checkpoint in .*`resume_from_checkpoint` out"):
            trainer.train(resume_from_checkpoint=True)


def test_a_killed_run_goes_on_from_the_newest_complete_checkpoint(finished):
    run, make, expected = finished
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    # neither is a checkpoint
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-9").write_text("")
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own without starting Python anew")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("make_run", ["fine-tuning", "pre-training", "distillation"], indirect=True)
@pytest.mark.parametrize("moment", ["step", "optimizer.pt"])
def test_a_kill_loses_nothing_but_the_step(make_run, tmp_path, moment):
    """In the middle of a step that is drawn, and with half a file of its checkpoint written."""
    settings = {"max_steps": 4, "save_steps": 1}
    trainer = make_run(**settings, output_dir=str(tmp_path / "whole"))
    trainer.train()
    step = random.Random(moment).randint(2, 4)
    child = os.fork()
    if child == 0:
        try:
            # threads do not survive a fork, and nobody would wake a process that waits for them
            torch.set_num_threads(1)
            signal.alarm(60)
            run = make_run(**settings)
            save = torch.save

            def save_half(value, path, *args, **kwargs):
                save(value, path, *args, **kwargs)
                if run.state.global_step == step and Path(path).name == moment:
                    os.truncate(path, Path(path).stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            def stop_backward(gradient):
                if run.state.global_step + 1 == step and moment == "step":
                    os.kill(os.getpid(), signal.SIGKILL)

            torch.save = save_half
            run.model.lm_head.weight.register_hook(stop_backward)
            run.train()
        finally:
            # it was to be killed, and must not go on with the tests
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    resumed = make_run(**settings)
    started = []
    resumed.add_callback(_At(step, lambda model: started.append(resumed.state.global_step)))
    assert resumed._find_checkpoint(True) == str(tmp_path / "run" / f"checkpoint-{step - 1}")
    resumed.train(resume_from_checkpoint=True)
    assert started == [step - 1]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


def test_not_to_resume_can_be_said(make_trainer):
    for value in (None, False):
        assert make_trainer()._find_checkpoint(value) is None


def test_weights_that_were_saved_alone_are_no_checkpoint(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    make_trainer(**settings).train()
    with pytest.raises(ValueError, match="optimizer.pt is missing; scheduler.pt is missing; rng_state.pth is missing"):
        make_trainer(**settings).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_an_interruption_says_how_to_resume(make_run, tmp_path):
    trainer = make_run(callbacks=[_At(4, _interrupt)])
    with pytest.raises(KeyboardInterrupt) as interruption:
        trainer.train()
    assert str(interruption.value) == (
        f"Interrupted after step 3 of 8. To go on from {tmp_path / 'run' / 'checkpoint-2'}, call "
        "`trainer.train(resume_from_checkpoint=True)`, or write `--resume_from_checkpoint true` on the command line."
    )
    with pytest.raises(KeyboardInterrupt, match="no checkpoint to resume from; `save_steps`"):
        make_run(callbacks=[_At(2, _interrupt)], output_dir=str(tmp_path / "other")).train()


def test_what_a_run_counted_does_not_reach_the_next(make_trainer, tmp_path):
    def entries(trainer):
        trainer.train()
        return [(entry["num_tokens"], entry["mask_ratio"]) for entry in trainer.state.log_history if "loss" in entry]

    settings = {"max_steps": 2, "logging_steps": 2}
    expected = entries(make_trainer(**settings))
    trainer = make_trainer(**settings, callbacks=[_At(2, _interrupt)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(_At)
    assert entries(trainer) == expected
    assert entries(trainer) == expected


def test_a_resumed_run_goes_on_counting_tokens(finished):
    run, make, _ = finished
    trainer = make(max_steps=6)
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    counts = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    assert len(counts) == 6 and counts == sorted(set(counts))


@pytest.mark.parametrize("kind", ["fine-tuning", "preferences"])
def test_tokens_are_counted_from_a_checkpoint_between_two_logs(
    kind, make_trainer, make_model, make_args, tiny_tokenizer, tmp_path
):
    settings = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}

    def make():
        if kind == "fine-tuning":
            return make_trainer(**settings)
        rows = {"prompt": ["1+1=", "2+2="], "chosen": ["2", "4"], "rejected": ["11", "three"]}
        args = make_args(LLaDADPOConfig, num_draws=1, **settings)
        return LLaDADPOTrainer(
            make_model(), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tiny_tokenizer
        )

    counts = []
    for checkpoint in (None, str(tmp_path / "run" / "checkpoint-3")):
        trainer = make()
        trainer.train(resume_from_checkpoint=checkpoint)
        counts.append([entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry])
    assert counts[0] == counts[1] and len(counts[0]) == 1


def test_every_process_needs_its_random_numbers(finished):
    """A run may go on with one process instead of several, and the other way round."""
    checkpoint = finished[0] / "checkpoint-4"
    assert find_faults(checkpoint, ranks=[0, 1]) == []
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert find_faults(checkpoint, ranks=[0, 1]) == ["rng_state_1.pth is missing"]
    assert find_faults(checkpoint) == []
    trainer = finished[1]()
    for settings, ranks in (((1, False), []), ((3, False), [0, 1, 2]), ((3, True), [2])):
        world_size, on_each_node = settings
        trainer.args = SimpleNamespace(world_size=world_size, process_index=2, save_on_each_node=on_each_node)
        assert trainer._ranks == ranks


def _stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=3, buffer_size=4)


def test_a_resumed_stream_is_the_uninterrupted_one(make_trainer, make_model, tmp_path):
    """Seven conversations make four batches: steps 3 and 5 begin a pass, the answers are drawn anew in each."""
    turns = [{"role": role, "content": "abcdefg"[n]} for n in range(4) for role in ("user", "assistant")]
    rows = [{"messages": [{**turn, "content": turn["content"] + str(n)} for turn in turns]} for n in range(7)]
    settings = {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eos_fill": "none",
    }

    def run(checkpoint):
        trainer = make_trainer(make_model(), _stream(rows), **settings)
        recorder = NoiseRecorder(trainer)
        epochs, collate = [], trainer.data_collator.torch_call

        def record(examples):
            epochs.append(int(trainer.data_collator.epoch))
            return collate(examples)

        trainer.data_collator.torch_call = record
        trainer.train(resume_from_checkpoint=checkpoint)
        return epochs, recorder.drawn, trainer

    epochs, drawn, trainer = run(None)
    assert isinstance(trainer, LLaDASFTTrainer)
    assert epochs[:14] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    for step in (2, 3, 5):
        _, again, resumed = run(str(tmp_path / "run" / f"checkpoint-{step}"))
        assert again == drawn[2 * step :], step
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, resumed.model.get_parameter(name)), (step, name)


@pytest.mark.parametrize("adapter", [False, True], ids=["all-weights", "lora"])
def test_a_resumed_stream_of_documents_is_the_uninterrupted_one(make_model, make_args, tmp_path, adapter):
    """In any pass, with rows cut to a random length, and with dropout."""
    rows = [{"input_ids": list(range(n, n + 5))} for n in range(15)]

    def run(checkpoint=None):
        args = make_args(
            LLaDAPreTrainingConfig,
            sequence_length=8,
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            random_length_probability=0.5,
            save_strategy="steps",
            save_steps=1,
        )
        lora = LoraConfig(r=2, lora_dropout=0.5) if adapter else None
        model = make_model(eos_token_id=None, residual_dropout=0.2)
        trainer = LLaDAPreTrainer(model, args, train_dataset=_stream(rows), peft_config=lora)
        recorder = NoiseRecorder(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return recorder.drawn, parameters_of(trainer.model)

    drawn, expected = run()
    # nine sequences make five batches, and these two steps: the last batch of a pass is left out
    assert len(drawn) == 12
    for step in (3, 4):
        again, parameters = run(str(tmp_path / "run" / f"checkpoint-{step}"))
        assert again == drawn[2 * step :], step
        assert all(torch.equal(parameters[name], value) for name, value in expected.items()), step


def test_the_end_of_a_pass_reaches_no_later_step(make_model, make_args):
    """The base would add the gradient of a last batch that fills no step to that of the first step of the next."""
    rows = [{"input_ids": list(range(n, n + 8))} for n in range(5)]

    def run(rows):
        args = make_args(
            LLaDAPreTrainingConfig,
            sequence_length=8,
            max_steps=4,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
        )
        stream = IterableDataset.from_generator(lambda: iter(rows))
        trainer = LLaDAPreTrainer(make_model(), args, train_dataset=stream)
        trainer.train()
        return parameters_of(trainer.model)

    expected = run(rows[:4])
    assert all(torch.equal(expected[name], value) for name, value in run(rows).items())
    with pytest.raises(ValueError, match="The stream has 1 batches per process, and a step takes 2. Lower"):
        run(rows[:1])


def test_a_stream_that_was_one_pass_goes_on_in_it(make_model, make_args, tmp_path):
    rows = [{"input_ids": list(range(n, n + 8))} for n in range(40)]

    def run(max_steps, checkpoint=None):
        args = make_args(
            LLaDAPreTrainingConfig,
            sequence_length=8,
            max_steps=max_steps,
            save_strategy="steps",
            save_steps=2,
            lr_scheduler_type="constant",
        )
        trainer = LLaDAPreTrainer(make_model(eos_token_id=None), args, train_dataset=_stream(rows))
        recorder = NoiseRecorder(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return recorder.drawn

    run(2)
    shutil.move(tmp_path / "run" / "checkpoint-2", tmp_path / "short-2")
    assert run(4, str(tmp_path / "short-2")) == run(4)[2:]
