"""Training models with experts: adapters, the losses of routers, checkpoints."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from training_probes import mask_every_other, parameters_of

from llada import (
    LLaDA2MoeConfig,
    LLaDA2MoeModelLM,
    LLaDAMoEConfig,
    LLaDAMoEModelLM,
    LLaDAPreTrainer,
    LLaDAPreTrainingConfig,
    LLaDASFTTrainer,
)
from llada.modeling_llada.masked_diffusion import MaskedBatch


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": None}
FAMILIES = {"llada_moe": (LLaDAMoEConfig, LLaDAMoEModelLM), "llada2_moe": (LLaDA2MoeConfig, LLaDA2MoeModelLM)}


@pytest.fixture(params=FAMILIES)
def make_moe(request):
    config_class, model_class = FAMILIES[request.param]

    def make(**settings):
        torch.manual_seed(0)
        ids = {"mask_token_id": 300, "bos_token_id": 295, "eos_token_id": 299, "pad_token_id": 299}
        sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
        return model_class(config_class(**ids | sizes | EXPERTS | settings))

    return make


def test_training_moves_everything_but_the_bias(make_moe, make_trainer):
    model = make_moe()
    before, biases = parameters_of(model), [buffer.clone() for buffer in model.buffers()]
    make_trainer(model, max_steps=3, activation_checkpointing=True).train()
    unmoved = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert unmoved == set()
    assert all(torch.equal(buffer, bias) for buffer, bias in zip(model.buffers(), biases, strict=True))


def test_adapters_are_for_attention_unless_told_otherwise(make_moe, make_trainer):
    trainer = make_trainer(make_moe(), peft_config=LoraConfig(r=2))
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 4 * 2 and all(".self_attn." in name for name in trainable)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    trainer = make_trainer(make_moe(), peft_config=LoraConfig(r=2, target_parameters=parameters, lora_dropout=0.0))
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainable and all(".mlp.experts." in name for name in trainable)


@pytest.mark.parametrize("kind", ["fine-tuning", "pre-training"])
def test_the_losses_of_routers_are_trained_if_asked_for(make_moe, make_trainer, make_args, kind):
    """TRL asks for them as `router_aux_loss_coef` says, the configuration of the model for pre-training."""
    logs, weights = {}, {}
    for asked in (False, True):
        model = make_moe(router_aux_loss_coef=0.5, router_z_loss_coef=0.5, output_router_logits=asked)
        settings = {"max_steps": 1, "activation_checkpointing": True, "lr_scheduler_type": "constant"}
        if kind == "fine-tuning":
            trainer = make_trainer(model, **settings, router_aux_loss_coef=None if asked else 0.0)
        else:
            rows = Dataset.from_dict({"input_ids": torch.randint(0, 290, (8, 12)).tolist()})
            args = make_args(LLaDAPreTrainingConfig, **settings, sequence_length=12)
            trainer = LLaDAPreTrainer(model, args=args, train_dataset=rows)
        trainer.forward_process = mask_every_other
        trainer.train()
        logs[asked], weights[asked] = trainer.state.log_history[0], parameters_of(model)
    assert "aux_loss" not in logs[False]
    assert logs[True]["aux_loss"] > 0.5
    assert logs[True]["loss"] == pytest.approx(logs[False]["loss"] + logs[True]["aux_loss"], abs=1e-3)
    assert logs[True]["content_ce"] == pytest.approx(logs[False]["content_ce"], abs=1e-5)
    gate = "model.layers.1.mlp.gate.weight"
    assert not torch.equal(weights[True][gate], weights[False][gate])


@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_accumulated_losses_of_routers_are_a_mean(make_moe, make_trainer, normalization, pairs):
    settings = {"max_steps": 1, "loss_normalization": normalization, "max_grad_norm": 0.0, "optim": "sgd"}
    settings |= {"lr_scheduler_type": "constant", "learning_rate": 0.1}
    weights = []
    # balance is counted within micro-batches, the z-loss is a mean over tokens: of equal rows, or the mean of means
    # is another
    rows = pairs.select([0] * 4)
    for size, steps, z_loss in ((4, 1, 2.0), (2, 2, 2.0), (4, 1, 0.0)):
        model = make_moe(router_aux_loss_coef=1e-9, router_z_loss_coef=z_loss)
        trainer = make_trainer(
            model, rows, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **settings
        )
        trainer.forward_process = mask_every_other
        trainer.train()
        weights.append(parameters_of(model))
    gate = "model.layers.1.mlp.gate.weight"
    assert (weights[2][gate] - weights[0][gate]).abs().max() > 1e-5
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["fine-tuning", "pre-training"])
@pytest.mark.parametrize("block_length", [None, 4])
def test_attention_in_training_is_that_of_generation(make_moe, make_trainer, make_args, kind, block_length):
    model = make_moe()
    model.generation_config.block_length = block_length
    rows = torch.randint(0, 290, (8, 12), generator=torch.Generator().manual_seed(0)).tolist()
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    if kind == "fine-tuning":
        trainer = make_trainer(model, dataset, eval_dataset=dataset)
    else:
        args = make_args(LLaDAPreTrainingConfig, sequence_length=12)
        dataset = dataset.remove_columns("labels")
        trainer = LLaDAPreTrainer(model, args=args, train_dataset=dataset, eval_dataset=dataset)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("block_length")), with_kwargs=True
    )
    trainer.train()
    trainer.evaluate()
    expected = (block_length or 32) if model.config.block_causal else 0
    assert set(seen) == {expected} and len(seen) > 8
    trainer.create_model_card()
    card = (Path(trainer.args.output_dir) / "README.md").read_text(encoding="utf-8")
    assert f"| attention | {f'blocks of {expected}' if expected else 'full'} |" in card


def test_the_loss_does_not_see_later_blocks(make_moe, make_trainer):
    model = make_moe()
    model.generation_config.block_length = 4
    trainer = make_trainer(model, max_steps=1)

    # the second block alone differs, the first one has the masks
    def first_block(input_ids, maskable, *args, **kwargs):
        masked = maskable & (torch.arange(input_ids.shape[1]) < 4) & (torch.arange(input_ids.shape[1]) % 2 == 0)
        weight = torch.ones(len(input_ids))
        return MaskedBatch(input_ids.masked_fill(masked, 300), masked, weight, weight)

    trainer.forward_process = first_block
    losses = []
    for later in (7, 8):
        ids = torch.tensor([[1, 2, 3, 4, *[later] * 4]])
        losses.append(trainer.compute_loss(model.eval(), {"input_ids": ids, "labels": ids}).item())
    assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) is model.config.block_causal


@pytest.mark.parametrize("limit", ["1GB", "20KB"], ids=["one file", "shards"])
def test_runs_are_resumed(make_moe, make_trainer, limit, tmp_path, caplog):
    """Trainers read what models save: published names, a tensor for every expert."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path)}

    def trainer() -> LLaDASFTTrainer:
        made = make_trainer(make_moe(), **settings)
        save = made.model.save_pretrained
        made.model.save_pretrained = lambda *args, **kwargs: save(*args, **kwargs | {"max_shard_size": limit})
        return made

    whole = trainer()
    whole.train()
    assert len(list((tmp_path / "checkpoint-2").glob("*.safetensors"))) == 1 or limit == "20KB"
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in parameters_of(whole.model).items():
        torch.testing.assert_close(parameters_of(resumed.model)[name], weight, rtol=0, atol=1e-6, msg=name)
    assert "missing keys" not in caplog.text and "unexpected keys" not in caplog.text
