"""Adapters over weights of fewer bits."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from training_probes import parameters_of
from transformers import AutoModelForMaskedLM, TorchAoConfig


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.mark.parametrize("family", ["llada", "illada"])
def test_an_adapter_learns_over_quantised_weights(make_model, make_trainer, pairs, tmp_path, family):
    """With activations computed twice. What is learned fits the model that was quantised, too."""
    quantisation = TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    make_model(family).save_pretrained(tmp_path / "base")
    model = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, quantization_config=quantisation
    )
    trainer = make_trainer(
        model,
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
        eval_dataset=pairs,
        max_steps=6,
        learning_rate=0.02,
        activation_checkpointing=True,
    )
    # two for each of seven layers in two blocks
    adapter = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(adapter) == 28 and all(".lora_" in name for name in adapter)
    before, bound = parameters_of(trainer.model), trainer.evaluate()["eval_nll_bound"]
    trainer.train()
    for name in adapter:
        assert not torch.equal(trainer.model.get_parameter(name), before[name]), name
    assert trainer.evaluate()["eval_nll_bound"] < bound - 0.1

    trainer.save_model(str(tmp_path / "adapter"))
    exact = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids = torch.randint(0, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = exact.eval()(ids).logits, trainer.model.eval()(ids).logits
    assert (logits - expected).norm() / expected.norm() < 0.05
