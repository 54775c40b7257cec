"""That transformers and TRL still call what the trainers override, and mean the same by it."""

import inspect

import pytest
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from trl import GRPOTrainer, SFTConfig, SFTTrainer

from llada import LLaDAGRPOTrainer, LLaDAPreTrainer, LLaDASFTConfig, LLaDASFTTrainer
from llada.trainers.diffusion_trainer import DiffusionTrainerMixin
from llada.trainers.masked_objective import MaskedDiffusionTrainerMixin
from llada.trainers.resumption import ResumableTrainerMixin


# every method of ours that a base calls, and when
CALLED_BY_TRAINING = {
    "compute_loss",
    "create_model_card",
    "create_scheduler",
    "get_batch_samples",
    "get_eval_dataloader",
    "evaluation_loop",
    "prediction_step",
    "log",
}

# what makes a run resumable, and is called if there are checkpoints
CALLED_BY_RESUMPTION = {
    "train",
    "log",
    "get_batch_samples",
    "_get_grad_norm",
    "_init_training_state",
    "_load_optimizer_and_scheduler",
    "_save_checkpoint",
}


def _overridden(own, base):
    return {name for name in vars(own) if callable(vars(own)[name]) and hasattr(base, name) and name != "__init__"}


def test_every_override_is_tested_for_being_called():
    others = {"get_test_dataloader", "_issue_warnings_after_load", "_init_training_state", "_run_epoch"}
    # counts tokens between two logging steps
    others |= {"_save_checkpoint"}
    for base in (SFTTrainer, Trainer):
        parts = [_overridden(part, base) for part in (DiffusionTrainerMixin, MaskedDiffusionTrainerMixin)]
        assert not set.intersection(*parts)
        assert set.union(*parts) == CALLED_BY_TRAINING | others
    assert _overridden(LLaDASFTTrainer, SFTTrainer) == {
        "_prepare_dataset",
        "_reject_skip_prepare_without_labels",
        "predict",
    }
    assert _overridden(LLaDAPreTrainer, Trainer) == {"evaluate", "predict"}
    assert _overridden(ResumableTrainerMixin, Trainer) == CALLED_BY_RESUMPTION


@pytest.mark.parametrize("base", [Trainer, SFTTrainer])
@pytest.mark.parametrize("name", sorted((CALLED_BY_TRAINING | CALLED_BY_RESUMPTION) - {"create_model_card"}))
def test_signatures_are_those_of_the_base(base, name):
    expected = list(inspect.signature(getattr(base, name)).parameters)
    own = inspect.signature(getattr(MaskedDiffusionTrainerMixin, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own.values()):
        return
    assert list(own) == expected


def test_rollouts_are_hooked_in_where_the_base_has_hooks():
    overridden = _overridden(LLaDAGRPOTrainer, GRPOTrainer) - {"_tag_names"}
    assert overridden == {
        "_compute_loss",
        "_generate_and_score_completions",
        "_generate_single_turn",
        "_get_per_token_logps_and_entropies",
        "_get_train_sampler",
        "_init_training_state",
        "_save_rng_state",
        "compute_loss",
    }
    for name in overridden - {"_get_per_token_logps_and_entropies", "_init_training_state"}:
        own, base = (inspect.signature(getattr(part, name)) for part in (LLaDAGRPOTrainer, GRPOTrainer))
        assert list(own.parameters) == list(base.parameters), name


# transformers reads the config.json of a checkpoint without knowing its class
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_the_base_calls_the_overrides(make_trainer, pairs, monkeypatch, tmp_path):
    called = set()
    names = CALLED_BY_TRAINING | CALLED_BY_RESUMPTION | {"_run_epoch"}
    for name in names:
        original = getattr(LLaDASFTTrainer, name)

        def record(self, *args, _original=original, _name=name, **kwargs):
            called.add(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(LLaDASFTTrainer, name, record)
    trainer = make_trainer(
        eval_dataset=pairs, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert called == names
    trainer.predict(trainer.eval_dataset)
    assert isinstance(trainer.lr_scheduler, LambdaLR)


def test_the_items_of_a_step_reach_the_loss(make_trainer, monkeypatch):
    """The base hands on what `get_batch_samples` counted, and does not divide by the micro-batches again."""
    items = []
    compute_loss = LLaDASFTTrainer.compute_loss

    def record(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        items.append(int(num_items_in_batch))
        return compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    monkeypatch.setattr(LLaDASFTTrainer, "compute_loss", record)
    for normalization, expected in (("sequence", 4), ("token", 4 * 6)):
        items.clear()
        trainer = make_trainer(
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            loss_normalization=normalization,
            eos_fill="fixed",
            eos_fill_length=6,
        )
        assert trainer.loss_is_scaled_for_ga is True and trainer.model_accepts_loss_kwargs is False
        trainer.train()
        assert items == [expected, expected]


def test_the_base_reads_the_flags_that_are_set():
    source = inspect.getsource(Trainer.training_step)
    assert "self.loss_is_scaled_for_ga" in source
    assert "self.model_accepts_loss_kwargs" in inspect.getsource(Trainer._get_num_items_in_batch)


def test_the_base_takes_what_is_passed_on():
    parameters = inspect.signature(SFTTrainer.__init__).parameters
    own = [name for name, kind in inspect.signature(LLaDASFTTrainer.__init__).parameters.items() if kind.kind != 4]
    assert set(own) <= set(parameters)
    # the same order as far as it goes, for those who pass by position
    assert own[:7] == list(parameters)[:7]
    assert {"compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"} <= set(parameters)


def test_labels_are_minus_100_outside_the_completion(make_model, make_args, tiny_tokenizer, pairs):
    """TRL builds the labels, and they are what may be masked."""
    args = make_args(SFTConfig, bf16=False)
    base = SFTTrainer(make_model(), args, train_dataset=pairs, processing_class=tiny_tokenizer)
    row = base.train_dataset[1]
    assert row["labels"] == [-100] * 4 + row["input_ids"][4:] and row["input_ids"][-1] == 299
    base._set_signature_columns_if_needed()
    assert {"input_ids", "labels"} <= set(base._signature_columns)


def test_refused_settings_still_exist():
    """A setting that TRL removes can be removed here, too."""
    names = (
        "packing",
        "eval_packing",
        "packing_strategy",
        "padding_free",
        "truncation_mode",
        "loss_type",
        "use_liger_kernel",
    )
    assert {*names, "label_smoothing_factor", "assistant_only_loss"} <= set(SFTConfig.__dataclass_fields__)
    assert issubclass(LLaDASFTConfig, SFTConfig)
