"""Adapters of PEFT: those made here, and those made with the published LLaDA-8B code."""

import json
import re
from pathlib import Path

import pytest
import torch
from golden import load_golden
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_illada, tiny_llada
from transformers import AutoModelForMaskedLM

from llada import LLaDAModel, LLaDAModelLM
from llada.modeling_llada.adapters import LORA_TARGET_MODULES, published_names, translate_adapter_config


FOLDER = load_golden("llada").folder
IDS = torch.arange(3, 60, 3).view(1, -1)
CLOSE = {"rtol": 0, "atol": 1e-5}
LAYER_MODULES = [
    f"{kind}.{name}" for kind, name in zip(("self_attn",) * 4 + ("mlp",) * 3, LORA_TARGET_MODULES, strict=True)
]
PUBLISHED = {
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.down_proj": "ff_out",
    "mlp.up_proj": "up_proj",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
}


def base() -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(FOLDER)


def adapted_modules(model: torch.nn.Module) -> set[str]:
    """Names in memory of the modules that carry a LoRA adapter."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    }


def layer_modules(model: torch.nn.Module, *names: str) -> set[str]:
    return {name for name, _ in model.named_modules() if name.endswith(names)}


def native_adapter(folder: Path, **settings) -> torch.Tensor:
    """Saves a random adapter made with the names in memory, and gives the logits with it."""
    model = get_peft_model(base(), LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, **settings))
    model.eval().save_pretrained(folder, save_embedding_layers=False)
    return model(IDS).logits


def as_published(native: Path, folder: Path, **settings) -> Path:
    """The same adapter as the published code would have saved it: its names for tensors, `settings` in the config."""
    folder.mkdir()
    tensors = {}
    for key, tensor in load_file(native / "adapter_model.safetensors").items():
        key = key.replace("base_model.model.lm_head", "base_model.model.model.transformer.ff_out")
        for name, published in PUBLISHED.items():
            key = re.sub(
                rf"model\.layers\.(\d+)\.{re.escape(name)}\.", rf"model.transformer.blocks.\1.{published}.", key
            )
        tensors[key] = tensor
    assert not any("layers" in key or "lm_head" in key for key in tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((native / "adapter_config.json").read_text(encoding="utf-8")) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", [tiny_llada, tiny_illada])
@pytest.mark.parametrize("target_modules", ["all-linear", LORA_TARGET_MODULES], ids=["all-linear", "default"])
def test_every_linear_layer_but_the_head_is_adapted(make, target_modules):
    for tied in (False, True):
        model = get_peft_model(make(tie_word_embeddings=tied), LoraConfig(target_modules=target_modules))
        assert adapted_modules(model) == {f"model.layers.{i}.{name}" for i in range(2) for name in LAYER_MODULES}
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert len(trainable) == 2 * 14 and all("lora_" in name for name in trainable)


def test_peft_needs_to_be_told_what_to_adapt():
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(base(), LoraConfig())


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_forward_and_backward_through_every_task_type(task_type):
    # training mode, gradient checkpointing of both kinds and a frozen base
    for checkpointing in (None, False, True):
        model = base().train()
        model = get_peft_model(model, LoraConfig(target_modules=LORA_TARGET_MODULES, task_type=task_type))
        if checkpointing is not None:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": checkpointing})
            model.get_base_model().enable_input_require_grads()
        output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
        torch.testing.assert_close(output.logits, base()(IDS).logits, **CLOSE)
        torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), IDS.flatten()).backward()
        for name, parameter in model.named_parameters():
            # `lora_B` begins at zero, so `lora_A` gets a gradient of zero in the first step
            if parameter.requires_grad:
                assert parameter.grad is not None and (parameter.grad.abs().max() > 0) == ("lora_B" in name), name
            else:
                assert parameter.grad is None, name


def test_labels_reach_the_model():
    model = get_peft_model(base(), LoraConfig(target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM"))
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS).loss, base()(IDS, labels=IDS).loss)


def test_a_saved_adapter_loads_in_every_way(tmp_path):
    logits = native_adapter(tmp_path, target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM")
    assert (logits - base()(IDS).logits).abs().max() > 0.1
    model = base()
    model.load_adapter(str(tmp_path))
    for loaded in (
        AutoModelForMaskedLM.from_pretrained(tmp_path),
        model,
        PeftModel.from_pretrained(base(), tmp_path),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path),
    ):
        torch.testing.assert_close(loaded(IDS).logits, logits, **CLOSE)


def test_a_merged_adapter_is_saved_under_published_names(tmp_path):
    model = get_peft_model(base(), LoraConfig(target_modules=LORA_TARGET_MODULES, init_lora_weights=False)).eval()
    logits = model(IDS).logits
    merged = model.merge_and_unload()
    assert type(merged) is LLaDAModelLM
    merged.save_pretrained(tmp_path)
    source, saved = load_file(FOLDER / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert saved.keys() == source.keys()
    untouched = {key for key in source if torch.equal(source[key], saved[key])}
    assert untouched == {key for key in source if re.search("norm|ln_f|wte|transformer.ff_out", key)}
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(again(IDS).logits, merged.eval()(IDS).logits, **CLOSE)
    # merging rounds once more than adding
    torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=1e-4)


ALL_PUBLISHED = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]


@pytest.mark.parametrize(
    ("native", "published"),
    [
        ({"target_modules": [*LORA_TARGET_MODULES, "lm_head"]}, {"target_modules": ALL_PUBLISHED}),
        ({"target_modules": ["q_proj", "o_proj"]}, {"target_modules": ["q_proj", "attn_out"]}),
        ({"target_modules": ["o_proj", "down_proj", "lm_head"]}, {"target_modules": ["attn_out", "ff_out"]}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["q_proj", "v_proj"]}),
        (
            {"target_modules": ["layers.0.self_attn.o_proj", "layers.2.mlp.down_proj"]},
            {"target_modules": ["blocks.0.attn_out", "model.transformer.blocks.2.ff_out"]},
        ),
        (
            {"target_modules": ["q_proj", "down_proj"]},
            {"target_modules": r"model\.transformer\.blocks\.\d+\.(q_proj|ff_out)"},
        ),
        ({"target_modules": ["lm_head"]}, {"target_modules": ["transformer.ff_out"]}),
        (
            {"target_modules": ["o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
            {"target_modules": ["attn_out"], "layers_to_transform": [1], "layers_pattern": "blocks"},
        ),
        (
            {"target_modules": ["q_proj", "down_proj"]},
            {"target_modules": ["q_proj", "ff_out"], "exclude_modules": ["transformer.ff_out"]},
        ),
        (
            {"target_modules": ["q_proj", "o_proj", "gate_proj"]},
            {"target_modules": ["q_proj", "attn_out", "gate_proj"]},
        ),
        (
            {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 5}, "alpha_pattern": {"o_proj": 2}},
            {
                "target_modules": ["q_proj", "attn_out"],
                "rank_pattern": {"attn_out": 5},
                "alpha_pattern": {r"blocks\.\d+\.attn_out": 2},
            },
        ),
    ],
    ids=lambda settings: str(settings["target_modules"]),
)
def test_adapters_with_published_names_are_translated(native, published, tmp_path):
    logits = native_adapter(tmp_path / "native", **native)
    assert (logits - base()(IDS).logits).abs().max() > 0.01
    cleared = {"layers_to_transform": None, "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {}}
    folder = as_published(tmp_path / "native", tmp_path / "published", **cleared | published)
    assert "o_proj" not in str(load_file(folder / "adapter_model.safetensors").keys())

    model = base()
    info = model.load_adapter(str(folder))
    assert not info.missing_keys and not info.unexpected_keys and not info.mismatched_keys
    torch.testing.assert_close(model(IDS).logits, logits, **CLOSE)
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(folder)(IDS).logits, logits, **CLOSE)
    model = base()
    translated = translate_adapter_config(PeftConfig.from_pretrained(folder), model)
    assert published_names(translated) == []
    peft_model = PeftModel.from_pretrained(model, folder, config=translated)
    torch.testing.assert_close(peft_model(IDS).logits, logits, **CLOSE)
    assert adapted_modules(model) == adapted_modules(PeftModel.from_pretrained(base(), tmp_path / "native"))

    # what is saved from here on has names in memory, and needs no translation
    peft_model.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again = PeftModel.from_pretrained(base(), tmp_path / "again")
    torch.testing.assert_close(again(IDS).logits, logits, **CLOSE)


@pytest.mark.usefixtures("adapters_inside")
def test_a_translated_adapter_is_saved_by_the_model_itself(tmp_path):
    logits = native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj", "gate_proj"])
    targets = ["q_proj", "attn_out", "ff_proj"]
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=targets)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(saved["target_modules"]) == {"q_proj", "o_proj", "gate_proj"}
    for again in (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "again"),
        PeftModel.from_pretrained(base(), tmp_path / "again"),
    ):
        torch.testing.assert_close(again(IDS).logits, logits, **CLOSE)


def test_ff_out_was_the_head_too():
    translated = translate_adapter_config(LoraConfig(target_modules=["ff_out"]), base())
    assert translated.target_modules == {"down_proj", "lm_head"}
    # but a tied head was no module
    translated = translate_adapter_config(LoraConfig(target_modules=["ff_out"]), tiny_llada(tie_word_embeddings=True))
    assert translated.target_modules == {"down_proj"}


def test_configurations_without_published_names_stay_as_they_are():
    for target_modules in ("all-linear", LORA_TARGET_MODULES, r".*\.(q|o)_proj", ["lm_head"]):
        config = LoraConfig(target_modules=target_modules, modules_to_save=["embed_tokens"])
        assert translate_adapter_config(config, base()) is config
    # the names mean nothing in a family that never had them
    config = LoraConfig(target_modules=["attn_out"])
    assert translate_adapter_config(config, tiny_illada()) is config


def test_translating_leaves_the_original_alone():
    config = LoraConfig(target_modules=["attn_out"], rank_pattern={"attn_out": 2})
    translated = translate_adapter_config(config, base())
    assert config.target_modules == {"attn_out"} and config.rank_pattern == {"attn_out": 2}
    assert translated.target_modules == {"o_proj"}
    assert set(translated.rank_pattern.values()) == {2} and len(translated.rank_pattern) == 3


def test_other_kinds_of_adapters_are_translated():
    config = IA3Config(target_modules=["k_proj", "ff_out"], feedforward_modules=[])
    assert translate_adapter_config(config, base()).target_modules == {"k_proj", "down_proj", "lm_head"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LoraConfig(target_modules=["q_proj"], modules_to_save=["wte", "ff_out"]),
            r"`modules_to_save=.*\(ff_out, wte\), which are translated in target_modules, .* Write the names of",
        ),
        (LoraConfig(target_parameters=["blocks.0.attn_out.weight"]), "`target_parameters=.*attn_out, blocks"),
        (
            LoraConfig(target_modules=["q_proj"], trainable_token_indices={"wte": [1]}),
            r"`trainable_token_indices=\{'wte': \[1\]\}`",
        ),
        (
            IA3Config(target_modules=["k_proj", "ff_out"], feedforward_modules=["ff_out"]),
            r"`feedforward_modules=.*\(ff_out\)",
        ),
        (
            LoraConfig(target_modules=["blocks.9.attn_out"]),
            "`target_modules=.*blocks.9.attn_out.* match no layer of LLaDA",
        ),
    ],
    ids=["modules_to_save", "target_parameters", "trainable_token_indices", "feedforward_modules", "no such layer"],
)
def test_what_cannot_be_translated_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        translate_adapter_config(config, base())


FIX = r"names layers as the published LLaDA code does \(.*attn_out.*write `target_modules=\['q_proj', .*load_adapter"


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "FEATURE_EXTRACTION"])
def test_peft_is_refused_where_it_would_adapt_only_a_part(task_type, tmp_path):
    config = LoraConfig(target_modules=["q_proj", "attn_out"], task_type=task_type)
    with pytest.raises(ValueError, match=FIX):
        get_peft_model(base(), config)
    native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"], task_type=task_type)
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=["q_proj", "attn_out"])
    with pytest.raises(ValueError, match=FIX):
        PeftModel.from_pretrained(base(), folder)
    if task_type == "CAUSAL_LM":
        with pytest.raises(ValueError, match=FIX):
            AutoPeftModelForCausalLM.from_pretrained(folder)


def test_further_adapters_of_a_peft_model_are_refused(tmp_path):
    def peft_model() -> PeftModel:
        return get_peft_model(base(), LoraConfig(target_modules=["q_proj"]))

    native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"])
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=["q_proj", "attn_out"])
    model = peft_model()
    with pytest.raises(ValueError, match="The adapter 'second' " + FIX):
        model.load_adapter(folder, adapter_name="second")
    # a good one is not
    assert peft_model().load_adapter(tmp_path / "native", adapter_name="second").unexpected_keys == []
    model = peft_model()
    model.add_adapter("second", LoraConfig(target_modules=["q_proj", "attn_out"]))
    with pytest.raises(ValueError, match="The adapter 'second' " + FIX):
        model.train()


def test_names_in_a_regular_expression_are_seen():
    for pattern in (
        r".*\.(q_proj|attn_out)",
        r".*\battn_out",
        r"model\.transformer\..*q_proj",
        r".*blocks\.0\.q_proj",
    ):
        assert published_names(LoraConfig(target_modules=pattern))
    # a longer name is another name
    assert published_names(LoraConfig(target_modules=["my_attn_out", "ff_outer"])) == []


@pytest.mark.usefixtures("adapters_inside")
def test_adapters_of_the_model_itself(tmp_path):
    """transformers' own methods, with names of either kind."""
    model = base()
    with pytest.raises(AttributeError, match="peft_config"):
        _ = model.peft_config
    model.add_adapter(LoraConfig(target_modules=["q_proj", "attn_out"]), "first")
    assert adapted_modules(model) == layer_modules(base(), "q_proj", "o_proj")
    native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"])
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=["q_proj", "attn_out"])
    with pytest.warns(UserWarning, match="multiple adapters"):
        model.load_adapter(str(folder), "second")
    assert set(model.peft_config) == {"first", "second"}
    model.set_adapter("second")
    torch.testing.assert_close(
        model(IDS).logits, PeftModel.from_pretrained(base(), tmp_path / "native")(IDS).logits, **CLOSE
    )
    model.delete_adapter(["first", "second"])
    assert not hasattr(model, "peft_config")
    torch.testing.assert_close(model(IDS).logits, base()(IDS).logits)


def test_load_adapter_takes_a_given_configuration_and_state(tmp_path):
    logits = native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"])
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=["q_proj", "attn_out"])
    model = base()
    model.load_adapter(
        peft_config=PeftConfig.from_pretrained(folder),
        adapter_state_dict=load_file(folder / "adapter_model.safetensors"),
    )
    torch.testing.assert_close(model(IDS).logits, logits, **CLOSE)
    with pytest.raises(ValueError, match="either pass a `peft_model_id` or"):
        base().load_adapter()


def test_load_adapter_passes_download_arguments_on(tmp_path):
    logits = native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"])
    as_published(tmp_path / "native", tmp_path / "deep", target_modules=["q_proj", "attn_out"])
    model = base()
    model.load_adapter(str(tmp_path), adapter_kwargs={"subfolder": "deep"})
    torch.testing.assert_close(model(IDS).logits, logits, **CLOSE)


def test_the_backbone_takes_adapters_too(tmp_path):
    native_adapter(tmp_path / "native", target_modules=["q_proj", "o_proj"])
    folder = as_published(tmp_path / "native", tmp_path / "published", target_modules=["q_proj", "attn_out"])
    backbone = LLaDAModel.from_pretrained(FOLDER)
    info = backbone.load_adapter(str(folder))
    assert not info.missing_keys
    expected = PeftModel.from_pretrained(base(), tmp_path / "native").get_base_model().model(IDS).last_hidden_state
    torch.testing.assert_close(backbone(IDS).last_hidden_state, expected, **CLOSE)
