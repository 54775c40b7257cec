"""A tensor that a checkpoint holds twice, and tools that read files without knowing the published names."""

import json
import shutil

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from golden import load_golden
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from llada.modeling_llada.checkpoint_layouts import in_memory_names, refuse_two_names


EXPERT = "model.layers.1.mlp.experts"
# family -> a tensor of the golden file, and another name that fills (a part of) the same one
TWICE = [
    ("llada", "model.transformer.ff_out.weight", "lm_head.weight"),
    ("llada", "model.transformer.blocks.1.ff_out.weight", "model.layers.1.mlp.down_proj.weight"),
    ("llada", "model.transformer.blocks.1.q_proj.weight", "layers.1.self_attn.q_proj.weight"),
    ("llada2_moe", "model.word_embeddings.weight", "model.embed_tokens.weight"),
    ("llada2_moe", "model.layers.1.attention.query_key_value.weight", "model.layers.1.self_attn.k_proj.weight"),
    ("llada2_moe", f"{EXPERT}.1.up_proj.weight", f"{EXPERT}.gate_up_proj"),
    ("llada_moe", f"{EXPERT}.0.gate_proj.weight", f"{EXPERT}.gate_proj"),
    ("llada_moe", f"{EXPERT}.2.down_proj.weight", f"{EXPERT}.down_proj"),
]


@pytest.mark.parametrize(("family", "published", "other"), TWICE, ids=lambda value: value.rpartition("layers.")[2])
def test_a_tensor_under_two_names_is_refused(family, published, other, tmp_path):
    golden = load_golden(family)
    tensors = load_file(golden.folder / "model.safetensors")
    assert published in tensors and other not in tensors
    shutil.copy(golden.folder / "config.json", tmp_path)
    save_file(tensors | {other: torch.ones_like(tensors[published])}, tmp_path / "model.safetensors")
    names = "`.*` and `.*` are two names of one tensor, `.*` in memory, and both are given"
    with pytest.raises(ValueError, match=names) as error:
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert f"`{other}`" in str(error.value)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder)
    for order in ((published, other), (other, published)):
        with pytest.raises(ValueError, match=names) as error:
            model.load_state_dict({name: tensors[published] for name in order}, strict=False)
        assert all(f"`{name}`" in str(error.value) for name in order)


@pytest.mark.parametrize("family", ["llada", "illada", "llada_moe", "llada2_moe"])
def test_every_name_of_a_file_is_its_own(family):
    golden = load_golden(family)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder)
    for tensors in (load_file(golden.folder / "model.safetensors"), model.state_dict()):
        refuse_two_names(in_memory_names(tensors, model.config.model_type))


def test_a_tensor_in_two_files_is_refused(tmp_path):
    golden = load_golden("llada")
    tensors = load_file(golden.folder / "model.safetensors")
    name = "model.transformer.wte.weight"
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shutil.copy(golden.folder / "config.json", tmp_path)
    save_file(tensors, tmp_path / files[0])
    save_file({name: tensors[name] + 1, "lm_head_of_another": torch.ones(1)}, tmp_path / files[1])
    index = dict.fromkeys(tensors, files[0]) | {"lm_head_of_another": files[1]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(ValueError, match=f"`{name}` is in two files of the checkpoint, .*{files[0]} and .*{files[1]}"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_what_to_call_instead_of_accelerates_loading(tmp_path):
    golden = load_golden("llada")
    model = AutoModelForMaskedLM.from_pretrained(golden.folder).eval()
    with init_empty_weights():
        empty = type(model)(model.config)
    with pytest.raises(ValueError, match=r"has no weights yet.*`from_pretrained\(folder, device_map=...\)`"):
        load_checkpoint_and_dispatch(empty, str(golden.folder), device_map={"": "cpu"})
    # of a file with the names in memory it works
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights(include_buffers=False):
        empty = type(model)(model.config)
    loaded = load_checkpoint_and_dispatch(empty, str(tmp_path), device_map={"": "cpu"}).eval()
    ids = torch.tensor([[40, 41, 300]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    # and what the message says
    loaded = type(model).from_pretrained(golden.folder, device_map={"": "cpu"}).eval()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
