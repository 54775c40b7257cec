"""Loading in fewer bits or in several places, and generating from what was loaded."""

import pytest
import torch
from golden import load_golden
from transformers import AutoModelForMaskedLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from llada import LLaDAForTokenClassification, LLaDAModelLM
from llada.modeling_llada.quantisation import keep_modules_exact


MASK = 300
SETTINGS = {"max_new_tokens": 16, "block_length": 8, "threshold": 0.5, "kv_cache": "dual"}


@pytest.fixture(scope="module")
def folder():
    return load_golden("llada").folder


@pytest.fixture(scope="module")
def exact(folder):
    return LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()


def torchao_int8() -> TorchAoConfig:
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())


def quanto_int8() -> QuantoConfig:
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8")


def bitsandbytes_nf4() -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.mark.parametrize(
    ("quantisation", "tolerance"), [(torchao_int8, 0.05), (quanto_int8, 0.05), (bitsandbytes_nf4, 0.8)]
)
def test_weights_of_fewer_bits(folder, exact, quantisation, tolerance):
    model = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantisation()
    ).eval()
    projection = model.model.layers[0].mlp.gate_proj.weight
    # every linear layer of a block, and neither the embedding nor the norms
    assert type(projection) is not type(exact.model.layers[0].mlp.gate_proj.weight)
    assert torch.equal(model.model.embed_tokens.weight, exact.model.embed_tokens.weight)
    prompt = torch.randint(0, 290, (2, 6))
    with torch.no_grad():
        logits, expected = model(prompt).logits, exact(prompt).logits
    # not the same, not another model
    error = float((logits - expected).norm() / expected.norm())
    assert 0 < error < tolerance
    sequences = model.generate(prompt, **SETTINGS)
    assert sequences.shape == (2, 22)
    assert torch.equal(sequences[:, :6], prompt) and not (sequences == MASK).any()


@pytest.mark.parametrize(
    ("left_out", "exact_leaves"),
    [
        (None, set()),
        (["q_proj"], {"q_proj"}),
        # the published name of the head and of every down-projection
        (["ff_out"], {"down_proj"}),
        (["model.transformer.ff_out"], set()),
        (["attn_out", "ff_proj"], {"o_proj", "gate_proj"}),
    ],
    # the workers of a run must agree on names, and sets have no order
    ids=lambda value: None if isinstance(value, set) else str(value),
)
def test_modules_to_leave_out_under_their_published_names(left_out, exact_leaves, folder):
    quantisation = torchao_int8()
    quantisation.modules_to_not_convert = left_out
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantisation)
    kept = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module.weight) is torch.nn.Parameter
    }
    # the head always
    assert kept == {"lm_head"} | exact_leaves


def test_every_back_end_reads_the_completed_list(exact):
    layers = range(exact.config.num_hidden_layers)
    for settings, field, found in (
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["ff_out"]), "llm_int8_skip_modules", layers),
        ({"quant_method": "quanto", "modules_to_not_convert": [r"model.transformer.blocks.0"]}, None, [0]),
    ):
        keep_modules_exact(exact, settings)
        left_out = settings["modules_to_not_convert"] if field is None else getattr(settings, field)
        names = [f"model.layers.{layer}.mlp.down_proj" for layer in layers]
        assert not should_convert_module("lm_head", left_out)
        assert [should_convert_module(name, left_out) for name in names] == [layer not in found for layer in layers]


def test_heads_of_classifiers_stay_as_they_are(exact):
    settings = {"quant_method": "quanto", "modules_to_not_convert": ["attn_out"]}
    keep_modules_exact(LLaDAForTokenClassification(exact.config), settings)
    assert not should_convert_module("score", settings["modules_to_not_convert"])
    assert should_convert_module("model.layers.0.self_attn.q_proj", settings["modules_to_not_convert"])


@pytest.mark.parametrize("offloaded", [False, True], ids=["one place", "layers on disk"])
def test_a_device_map(folder, exact, offloaded, tmp_path):
    pytest.importorskip("accelerate")
    device_map: str | dict[str, str] = "cpu"
    if offloaded:
        parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
        device_map = dict.fromkeys(parts, "cpu")
        for layer in range(exact.config.num_hidden_layers):
            device_map[f"model.layers.{layer}"] = "disk" if layer else "cpu"
    model = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, device_map=device_map, offload_folder=str(tmp_path)
    )
    assert any(parameter.is_meta for parameter in model.parameters()) == offloaded
    prompt = torch.randint(0, 290, (2, 6))
    assert torch.equal(model.generate(prompt, **SETTINGS), exact.generate(prompt, **SETTINGS))
