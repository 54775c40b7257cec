"""Adapters for models with experts: attention by default, experts as parameters, layers of published code refused."""

import json
import re

import pytest
import torch
from golden import load_golden
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers import AutoModelForMaskedLM

from llada.modeling_llada.adapters import LORA_TARGET_MODULES, lora_target_modules


NAMES = ["llada_moe", "llada2_moe"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
IDS = torch.arange(3, 60, 3).view(1, -1)


def base(name: str):
    return AutoModelForMaskedLM.from_pretrained(load_golden(name).folder)


def adapted(model) -> set[str]:
    """Names in memory of what carries an adapter, wrappers of parameters as `.base_layer`s."""
    names = (name for name, _ in model.named_modules() if name.endswith(".lora_A"))
    return {name.removeprefix("base_model.model.").removesuffix(".lora_A") for name in names}


def test_attention_by_default():
    for make in (tiny_llada, tiny_illada, lambda: tiny_llada2_moe(first_k_dense_replace=2)):
        assert lora_target_modules(make().config) == LORA_TARGET_MODULES
    for make in (tiny_llada_moe, tiny_llada2_moe):
        model = make()
        assert lora_target_modules(model.config) == ATTENTION
        model = get_peft_model(model, LoraConfig(target_modules=lora_target_modules(model.config)))
        assert adapted(model) == {f"model.layers.{i}.self_attn.{part}" for i in (0, 1) for part in ATTENTION}


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", NAMES)
def test_experts_are_adapted_as_parameters(name, backend, mode):
    """In evaluation mode, too, in which the published LLaDA2 has no gradients there."""
    model = base(name)
    model.set_experts_implementation(backend)
    logits = model(IDS).logits
    config = LoraConfig(r=2, target_modules=ATTENTION, target_parameters=EXPERTS, lora_dropout=0.0)
    model = get_peft_model(model, config).train(mode)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-5)
    sparse = [index for index in range(3) if name == "llada_moe" or index > 0]
    wrapped = {f"model.layers.{index}.mlp.experts{part}" for index in sparse for part in ("", ".base_layer")}
    assert {key for key in adapted(model) if "experts" in key} == wrapped
    model(input_ids=IDS, labels=IDS).loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in key
            # `lora_B` begins at zero, so `lora_A` gets a gradient of zero in the first step
            assert (parameter.grad.abs().max() > 0) == ("lora_B" in key), key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("targets", ["attention", "experts", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_saved_adapters_load_in_every_way(name, targets, tmp_path):
    settings = {
        "target_modules": ATTENTION if targets != "experts" else [],
        "target_parameters": EXPERTS if targets != "attention" else None,
    }
    model = get_peft_model(base(name), LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, **settings)).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    logits = model(IDS).logits
    assert (logits - base(name)(IDS).logits).abs().max() > 0.1
    loaded = base(name)
    loaded.load_adapter(str(tmp_path))
    for other in (loaded, PeftModel.from_pretrained(base(name), tmp_path)):
        torch.testing.assert_close(other.eval()(IDS).logits, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_merged_adapters_are_saved_under_published_names(name, tmp_path):
    config = LoraConfig(r=2, target_modules=ATTENTION, target_parameters=EXPERTS, init_lora_weights=False)
    model = get_peft_model(base(name), config).eval()
    logits = model(IDS).logits
    model.merge_and_unload().save_pretrained(tmp_path)
    source = load_file(load_golden(name).folder / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == source.keys()
    changed = {key for key in source if not torch.equal(source[key], saved[key])}
    assert changed == {key for key in source if re.search(r"[qkvo]_proj|query_key_value|dense|experts\.\d", key)}
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=1e-3)


class TestPublishedCode:
    """What adapters made with the published code name and this package has no layer for."""

    REFUSED = [
        ("llada2_moe", {"target_modules": ["query_key_value", "dense"]}, "dense, query_key_value"),
        ("llada2_moe", {"target_modules": ["q_proj", "attention.dense"]}, "attention, dense"),
        ("llada2_moe", {"target_modules": r".*\.query_key_value"}, "query_key_value"),
        ("llada2_moe", {"target_modules": ["q_proj"], "modules_to_save": ["word_embeddings"]}, "word_embeddings"),
        ("llada2_moe", {"target_modules": ["q_proj", "mlp.experts.3.up_proj"]}, r"mlp\.experts\.3\.up_proj"),
        ("llada_moe", {"target_modules": ["q_proj", "gate_proj", "down_proj"]}, "gate_proj, down_proj"),
        ("llada_moe", {"target_modules": ["q_proj", "experts.0.down_proj"]}, r"down_proj, experts\.0\.down_proj"),
    ]

    @pytest.mark.parametrize(("name", "settings", "names"), REFUSED, ids=lambda value: str(value))
    def test_they_are_refused_with_the_fix(self, name, settings, names):
        message = rf"for layers \({names}\) that are no layers here.*target_modules=\['q_proj.*target_parameters=\["
        config = LoraConfig(**settings)
        with pytest.raises(ValueError, match=message):
            base(name).add_adapter(config)
        if any(target.endswith(("q_proj", "word_embeddings")) for target in settings["target_modules"]):
            # where PEFT finds something, it would go on with that
            with pytest.raises(ValueError, match=message):
                get_peft_model(base(name), config).train()

    @pytest.mark.parametrize("load", ["load_adapter", "PeftModel"])
    def test_saved_ones(self, load, tmp_path):
        model = get_peft_model(base("llada2_moe"), LoraConfig(r=2, target_modules=["q_proj"]))
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        path = tmp_path / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["target_modules"] = ["q_proj", "query_key_value"]
        path.write_text(json.dumps(settings), encoding="utf-8")
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        prefix = "base_model.model.model.layers.0.attention.query_key_value"
        tensors |= {f"{prefix}.lora_A.weight": torch.ones(2, 64), f"{prefix}.lora_B.weight": torch.ones(128, 2)}
        save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        model = base("llada2_moe")
        with pytest.raises(ValueError, match=r"for layers \(query_key_value\) that are no layers here"):
            model.load_adapter(str(tmp_path)) if load == "load_adapter" else PeftModel.from_pretrained(model, tmp_path)

    def test_experts_beside_layers_of_their_names(self, tmp_path):
        """`gate_proj` is a layer of LLaDA2 here; of the experts that go by it, the tensors tell."""
        model = get_peft_model(base("llada2_moe"), LoraConfig(r=2, target_modules=["gate_proj"]))
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        for expert in range(16):
            prefix = f"base_model.model.model.layers.2.mlp.experts.{expert}.gate_proj"
            tensors |= {f"{prefix}.lora_A.weight": torch.ones(2, 64), f"{prefix}.lora_B.weight": torch.ones(32, 2)}
        save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"for layers \(model\.layers\.2\.mlp\.experts.*that are no layers here"):
            base("llada2_moe").load_adapter(str(tmp_path))

    def test_layers_without_experts_are_layers(self):
        """The first of LLaDA2, shared experts, and layers of LLaDA-MoE without experts."""
        targets = [*ATTENTION, "up_proj"]
        model = get_peft_model(base("llada2_moe"), LoraConfig(target_modules=targets))
        model.train()
        assert {name for name in adapted(model) if "up_proj" in name} == {
            "model.layers.0.mlp.up_proj",
            *(f"model.layers.{i}.mlp.shared_experts.up_proj" for i in (1, 2)),
        }
        model = get_peft_model(tiny_llada_moe(moe_layer_freq=[0, 1]), LoraConfig(target_modules=targets))
        assert "model.layers.0.mlp.up_proj" in adapted(model)
