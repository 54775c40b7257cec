"""Published checkpoints load, and go back to disk under their names, byte for byte."""

import copy
import json
import re
import shutil

import pytest
import torch
from golden import load_golden, rounding
from safetensors.torch import load_file, save_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from llada import (
    ILLaDAForCausalLM,
    ILLaDAModel,
    LLaDA2MoeModel,
    LLaDA2MoeModelLM,
    LLaDAModel,
    LLaDAModelLM,
    LLaDAMoEModel,
    LLaDAMoEModelLM,
)
from llada.modeling_llada.checkpoint_layouts import LAYOUTS


CLASSES = {
    "llada": LLaDAModelLM,
    "illada": ILLaDAForCausalLM,
    "llada_moe": LLaDAMoEModelLM,
    "llada2_moe": LLaDA2MoeModelLM,
}
BACKBONES = {
    "llada": LLaDAModel,
    "illada": ILLaDAModel,
    "llada_moe": LLaDAMoEModel,
    "llada2_moe": LLaDA2MoeModel,
}
TINY = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}

# the published leaf names, written out once more
LLADA_KEYS = {
    "model.transformer.wte.weight",
    "model.transformer.ln_f.weight",
    "model.transformer.ff_out.weight",
    *(
        f"model.transformer.blocks.{index}.{leaf}.weight"
        for index in range(2)
        for leaf in ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out")
    ),
}


def tensors_of(folder) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, over all its files."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        part = load_file(path)
        assert not tensors.keys() & part.keys()
        tensors |= part
    return tensors


def assert_same_bytes(folder, expected: dict[str, torch.Tensor]) -> None:
    saved = tensors_of(folder)
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def assert_complete(info: dict) -> None:
    assert {name: set(keys) for name, keys in info.items()} == dict.fromkeys(info, set())


@pytest.mark.parametrize("trust_remote_code", [None, True], ids=["plain", "trust_remote_code"])
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
@pytest.mark.parametrize("name", CLASSES)
def test_auto_classes_load_published_checkpoints(name, auto_class, trust_remote_code):
    golden = load_golden(name)
    model, info = auto_class.from_pretrained(
        golden.folder, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    assert type(model) is CLASSES[name]
    assert_complete(info)
    logits = model(golden.expected["logits.input_ids"]).logits
    torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))


@pytest.mark.parametrize("name", CLASSES)
def test_saving_gives_the_source_back(name, tmp_path):
    golden = load_golden(name)
    CLASSES[name].from_pretrained(golden.folder).save_pretrained(tmp_path)
    assert_same_bytes(tmp_path, tensors_of(golden.folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_files_keep_their_dtype(name, dtype, tmp_path):
    golden = load_golden(name)
    source = {key: tensor.to(dtype) for key, tensor in tensors_of(golden.folder).items()}
    settings = json.loads((golden.folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(source, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModel.from_pretrained(tmp_path)
    assert model.dtype == dtype
    model.save_pretrained(tmp_path / "again")
    assert_same_bytes(tmp_path / "again", source)


@pytest.mark.parametrize("name", CLASSES)
def test_sharded_saving(name, tmp_path):
    golden = load_golden(name)
    model = CLASSES[name].from_pretrained(golden.folder)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same_bytes(tmp_path, tensors_of(golden.folder))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"].keys() == tensors_of(golden.folder).keys()
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


@pytest.mark.parametrize("name", CLASSES)
def test_saving_a_given_state_dict(name, tmp_path):
    golden = load_golden(name)
    model = CLASSES[name].from_pretrained(golden.folder)
    # what a trainer gathers, which is not what the module holds any more
    gathered = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.model.norm.weight.zero_()
    model.save_pretrained(tmp_path, state_dict=gathered)
    assert_same_bytes(tmp_path, tensors_of(golden.folder))


def test_a_model_that_was_never_loaded_saves_published_names(tmp_path):
    model = tiny_llada()
    model.save_pretrained(tmp_path)
    saved = tensors_of(tmp_path)
    assert saved.keys() == LLADA_KEYS
    block, layer = "model.transformer.blocks.1.", model.model.layers[1]
    assert torch.equal(saved[block + "attn_norm.weight"], layer.input_layernorm.weight)
    assert torch.equal(saved[block + "ff_norm.weight"], layer.post_attention_layernorm.weight)
    assert torch.equal(saved[block + "attn_out.weight"], layer.self_attn.o_proj.weight)
    assert torch.equal(saved[block + "ff_proj.weight"], layer.mlp.gate_proj.weight)
    assert torch.equal(saved[block + "ff_out.weight"], layer.mlp.down_proj.weight)
    assert torch.equal(saved["model.transformer.ff_out.weight"], model.lm_head.weight)


@pytest.mark.parametrize("name", CLASSES)
def test_a_subclass_loads_and_saves_like_its_parent(name, tmp_path):
    golden = load_golden(name)
    subclass = type("Finetuned", (CLASSES[name],), {})
    model, info = subclass.from_pretrained(golden.folder, output_loading_info=True)
    assert_complete(info)
    model.save_pretrained(tmp_path)
    assert_same_bytes(tmp_path, tensors_of(golden.folder))


@pytest.mark.parametrize("auto_map", ["dropped", "with its files", "in a repository"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_folder_loads(name, auto_map, tmp_path):
    golden = load_golden(name)
    model = CLASSES[name].from_pretrained(golden.folder)
    if auto_map == "with its files":
        # never run: a registered class goes first
        for target in model.config.auto_map.values():
            (tmp_path / f"{target.split('.')[0]}.py").write_text("raise AssertionError('remote code was run')")
    if auto_map == "in a repository":
        model.config.auto_map = {key: f"GSAI-ML/code--{value}" for key, value in model.config.auto_map.items()}
    model.save_pretrained(tmp_path)
    assert ("auto_map" in json.loads((tmp_path / "config.json").read_text())) == (auto_map != "dropped")
    for trust_remote_code in (None, False, True):
        again, info = AutoModelForMaskedLM.from_pretrained(
            tmp_path, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        assert type(again) is CLASSES[name]
        assert_complete(info)
        ids = golden.expected["logits.input_ids"]
        torch.testing.assert_close(again.eval()(ids).logits, golden.logits, **rounding(golden.logits))


def test_standard_names_load_and_stay(tmp_path):
    golden = load_golden("llada")
    model = LLaDAModelLM.from_pretrained(golden.folder)
    model.save_pretrained(tmp_path, save_original_format=False)
    standard = tensors_of(tmp_path)
    assert "model.layers.0.mlp.down_proj.weight" in standard
    assert not any("transformer" in key for key in standard)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    again.save_pretrained(tmp_path / "again")
    assert_same_bytes(tmp_path / "again", standard)


@pytest.mark.parametrize("name", CLASSES)
def test_the_backbone_loads_from_a_full_checkpoint_and_saves_names_in_memory(name, tmp_path):
    golden = load_golden(name)
    whole = CLASSES[name].from_pretrained(golden.folder)
    backbone, info = BACKBONES[name].from_pretrained(golden.folder, output_loading_info=True)
    assert set(info["missing_keys"]) == set()
    assert set(info["unexpected_keys"]) == (set() if name == "illada" else {"lm_head.weight"})
    ids = golden.expected["logits.input_ids"]
    expected = whole.model(ids).last_hidden_state
    close = rounding(expected)
    torch.testing.assert_close(backbone(ids).last_hidden_state, expected, **close)

    backbone.save_pretrained(tmp_path)
    assert tensors_of(tmp_path).keys() == backbone.state_dict().keys()
    again, info = BACKBONES[name].from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    torch.testing.assert_close(again(ids).last_hidden_state, expected, **close)
    if name != "illada":
        with pytest.raises(ValueError, match="lacks 1 of the .* `lm_head.weight`"):
            CLASSES[name].from_pretrained(tmp_path)
    whole_again, info = CLASSES[name].from_pretrained(
        tmp_path, output_loading_info=True, ignore_mismatched_sizes=name != "illada"
    )
    assert set(info["missing_keys"]) == (set() if name == "illada" else {"lm_head.weight"})
    torch.testing.assert_close(whole_again.model(ids).last_hidden_state, expected, **close)


@pytest.mark.parametrize("head_in_file", [False, True])
def test_illada_files_with_and_without_a_stored_head(head_in_file, tmp_path):
    golden = load_golden("illada")
    tensors = tensors_of(golden.folder)
    assert "lm_head.weight" not in tensors
    shutil.copy(golden.folder / "config.json", tmp_path)
    if head_in_file:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_complete(info)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    logits = model(golden.expected["logits.input_ids"]).logits
    torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))


@pytest.mark.parametrize("name", CLASSES)
def test_tied_models_store_one_matrix_and_untied_models_two(name, tmp_path):
    for tied in (True, False):
        model = TINY[name](tie_word_embeddings=tied)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        model.save_pretrained(tmp_path, max_shard_size="2GB")
        head = "model.transformer.ff_out.weight" if name == "llada" else "lm_head.weight"
        assert (head in tensors_of(tmp_path)) != tied
        again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
        assert_complete(info)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
        ids = torch.arange(12)[None]
        expected = model(ids).logits
        torch.testing.assert_close(again(ids).logits, expected, **rounding(expected))


@pytest.mark.parametrize("name", CLASSES)
def test_untying(name, tmp_path):
    model = TINY[name](tie_word_embeddings=True)
    before = model(torch.arange(12)[None]).logits
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(torch.arange(12)[None]).logits, 2 * before)


def test_every_pattern_is_anchored():
    # transformers searches patterns and reverses them on save: `ff_out` is two modules
    for renaming in LAYOUTS["llada"].transforms():
        for pattern in renaming.source_patterns:
            assert re.fullmatch(r"\^model\\\.transformer\\\..*\\\.", pattern), pattern
            assert pattern.replace(r"(\d+)", "").count("(") == 0
