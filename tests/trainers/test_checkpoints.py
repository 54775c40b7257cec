"""Checkpoints, resumption, saved models and adapters."""

import logging
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from training_probes import NoiseRecorder, parameters_of
from transformers import AutoModelForMaskedLM, AutoTokenizer


MASK = 300

# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, make_model, conversations, tmp_path):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "lr_scheduler_type": "linear",
    }

    def run(checkpoint):
        # three epochs: answers of a conversation are drawn anew in each
        trainer = make_trainer(make_model(), conversations, **settings)
        recorder = NoiseRecorder(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return recorder.drawn, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer

    drawn, losses, trainer = run(None)
    parameters = parameters_of(trainer.model)
    # in the middle of an epoch, and at its end
    for step, micro_steps in ((2, 3), (4, 6)):
        again, losses_again, trainer = run(str(tmp_path / "run" / f"checkpoint-{step}"))
        assert again == drawn[micro_steps:]
        assert losses_again == losses
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, parameters[name]), name


def test_what_is_saved_is_what_was_trained(make_trainer, tmp_path, golden_llada):
    trainer = make_trainer(AutoModelForMaskedLM.from_pretrained(golden_llada.folder))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    published = set(load_file(golden_llada.folder / "model.safetensors"))
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == published
    reloaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, parameter in reloaded.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == trainer.processing_class.get_vocab()


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("family", ["llada", "illada"])
def test_published_names_are_resumed_from(make_trainer, make_model, tmp_path, caplog, monkeypatch, shard, family):
    trainer = make_trainer(make_model(family), save_strategy="steps", save_steps=2)
    if shard:
        save = trainer.model.save_pretrained
        monkeypatch.setattr(trainer.model, "save_pretrained", partial(save, max_shard_size="20KB"))
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert (checkpoint / "model.safetensors.index.json").exists() is shard

    torch.manual_seed(1)
    other = type(trainer.model)(trainer.model.config)
    fresh = make_trainer(other)
    with caplog.at_level(logging.WARNING, logger="transformers.trainer"):
        fresh._load_from_checkpoint(str(checkpoint))
    assert "keys" not in caplog.text
    for name, parameter in parameters_of(trainer.model).items():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_what_is_missing_from_a_checkpoint_is_reported(make_trainer, caplog):
    trainer = make_trainer()
    result = trainer.model.load_state_dict({"model.transformer.wte.bias": torch.zeros(3)}, strict=False)
    with caplog.at_level(logging.WARNING, logger="transformers.trainer"):
        trainer._issue_warnings_after_load(result)
    assert "model.embed_tokens.weight" in caplog.text and "model.embed_tokens.bias" in caplog.text


def test_the_best_model_is_loaded_at_the_end(make_trainer, make_model, pairs):
    trainer = make_trainer(
        eval_dataset=pairs,
        max_steps=4,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        # the first steps are too long a way, the later ones go nowhere
        learning_rate=0.3,
        metric_for_best_model="eval_nll_bound",
        greater_is_better=False,
        load_best_model_at_end=True,
    )
    trainer.train()
    bounds = [entry["eval_nll_bound"] for entry in trainer.state.log_history if "eval_nll_bound" in entry]
    assert len(set(bounds)) == 2 and trainer.state.best_metric == min(bounds)
    assert trainer.evaluate()["eval_nll_bound"] == min(bounds)


def test_an_adapter_is_resumed(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "peft_config": LoraConfig(r=2)}
    trainer = make_trainer(**settings)
    trainer.train()
    expected = parameters_of(trainer.model)
    again = make_trainer(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("target_modules", [None, "all-linear"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_alone_and_spare_the_head(make_trainer, make_model, tmp_path, target_modules, checkpointing):
    config = LoraConfig(r=2, target_modules=target_modules, init_lora_weights=False)
    trainer = make_trainer(peft_config=config, activation_checkpointing=checkpointing, weight_decay=0.0)
    model = trainer.model
    adapted = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(model.targeted_module_names) == 14
    # the configuration of the user is as it was; PEFT itself spells out "all-linear" in it
    assert config.target_modules is None or target_modules is not None
    before = parameters_of(model)
    trainer.train()
    after = parameters_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}

    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    ids = torch.tensor([[1, 2, MASK, MASK]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model.eval()(ids).logits)
        assert not torch.allclose(make_model().eval()(ids).logits, model(ids).logits, atol=1e-3)


def test_an_adapted_model_can_be_trained_further(make_trainer, make_model, tmp_path):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules="all-linear"))
    trainer = make_trainer(model)
    before = parameters_of(model)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in parameters_of(model).items())


def test_checkpoints_have_a_card(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    for fact in ("masked-diffusion", "LLaDASFTTrainer", "| global batch | 8 |", "2502.09992", "| steps | 2 |"):
        assert fact in card
    trainer.create_model_card(dataset_name="ada/sums", tags="arithmetic")
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "ada/sums" in card and "- arithmetic" in card
