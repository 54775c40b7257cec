"""A file either holds what the model computes with, or is refused: no weight is drawn unasked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden import load_golden
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from llada import ILLaDAForCausalLM, LLaDA2MoeConfig, LLaDA2MoeModelLM, LLaDAModel, LLaDAModelLM, LLaDAMoEModelLM


CLASSES = {
    "llada": LLaDAModelLM,
    "illada": ILLaDAForCausalLM,
    "llada_moe": LLaDAMoEModelLM,
    "llada2_moe": LLaDA2MoeModelLM,
}
TINY = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
IDS = torch.arange(12)[None]


@pytest.fixture(params=CLASSES)
def name(request) -> str:
    return request.param


def write(folder: Path, name: str, tensors: dict[str, torch.Tensor] | None = None, **settings) -> Path:
    """The small published checkpoint with other tensors or other keys."""
    source = load_golden(name).folder
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    save_file(tensors or tensors_of(name), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(load_golden(name).folder / "model.safetensors")


def test_every_tensor_is_needed(name, tmp_path):
    """One of every kind, alone: no two layers and no two experts."""
    tensors = tensors_of(name)
    alone = [key for key in tensors if not any(part in key for part in (".0.", ".2.", ".experts."))]
    assert len(alone) > 8
    for key in alone:
        rest = {other: tensor for other, tensor in tensors.items() if other != key}
        with pytest.raises(ValueError, match=r"lacks \d of the \d\d tensors of a .*: `.*download or save it again"):
            AutoModelForMaskedLM.from_pretrained(write(tmp_path, name, rest))


@pytest.mark.parametrize("half", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("name", ["llada_moe", "llada2_moe"])
def test_every_expert_is_needed(name, half, tmp_path):
    tensors = tensors_of(name)
    del tensors[f"model.layers.1.mlp.experts.3.{half}.weight"]
    message = r"holds tensors for `\S+gate_up_proj` that do not fit together.*: \w+Error: "
    if half == "down_proj":
        message = r"`model.layers.1.mlp.experts.down_proj` is \((7|15), .* and must be \((8|16), "
    with pytest.raises(ValueError, match=message) as raised:
        AutoModelForMaskedLM.from_pretrained(write(tmp_path, name, tensors))
    assert "Traceback" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["llada_moe", "llada2_moe"])
def test_every_expert_has_its_number(name, tmp_path):
    """transformers stacks them in order, so that those behind a gap would change places."""
    source = tensors_of(name)
    count = len({key.split(".experts.")[1].split(".")[0] for key in source if ".experts." in key})
    for number in (str(count), "x", "03"):
        renamed = {key.replace(".1.mlp.experts.3.", f".1.mlp.experts.{number}."): source[key] for key in source}
        message = rf"holds `model.layers.1.mlp.experts.{number}.down_proj.weight`, .*`num_experts={count}`, the first"
        with pytest.raises(ValueError, match=message):
            AutoModelForMaskedLM.from_pretrained(write(tmp_path, name, renamed))


def test_missing_and_additional_layers(name, tmp_path):
    key = "n_layers" if name == "llada" else "num_hidden_layers"
    freq = {"moe_layer_freq": [1] * 4} if name == "llada_moe" else {}
    message = rf"lacks \d+ of the \d+ tensors .*: `model.layers.3.input_layernorm.weight`, .* and \d+ more.*`{key}=4`"
    with pytest.raises(ValueError, match=message):
        CLASSES[name].from_pretrained(write(tmp_path, name, **{key: 4}, **freq))
    message = rf"holds tensors in its layers .*`{key}=2`.* no place for: `model.layers.2.input_layernorm.weight`, "
    with pytest.raises(ValueError, match=message):
        CLASSES[name].from_pretrained(write(tmp_path, name, **{key: 2}))
    # asked for
    with pytest.raises(ValueError, match=message):
        CLASSES[name].from_pretrained(load_golden(name).folder, num_hidden_layers=2)
    model = CLASSES[name].from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert len(model.model.layers) == 2


def test_parts_of_another_model_inside_the_layers(tmp_path):
    """Norms of queries, biases: what the file computes with and we would leave out."""
    for key, shown in (
        ("q_proj.bias", "layers.1.self_attn.q_proj.bias"),
        ("k_norm.weight", "transformer.blocks.1.k_n"),
    ):
        tensors = tensors_of("llada") | {f"model.transformer.blocks.1.{key}": torch.ones(64)}
        with pytest.raises(ValueError, match=f"no place for: `model.{shown}.*`. It is another model"):
            LLaDAModelLM.from_pretrained(write(tmp_path, "llada", tensors))


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
def test_another_layout(name, auto_class, tmp_path):
    renamed = {f"net.{key}": tensor for key, tensor in tensors_of(name).items()}
    message = (
        r"lacks (\d+) of the \1 tensors .*It holds `net.* and \d+ more instead: it has the layout of another model"
    )
    with pytest.raises(ValueError, match=message):
        auto_class.from_pretrained(write(tmp_path, name, renamed))
    with pytest.raises(ValueError, match=r"The state dict lacks (\d+) of the \1"):
        CLASSES[name].from_pretrained(None, config=AutoConfig.from_pretrained(tmp_path), state_dict={})


def test_fused_experts_of_dinfer(tmp_path):
    tensors = {key: tensor for key, tensor in tensors_of("llada_moe").items() if ".experts." not in key}
    tensors |= {f"model.layers.{i}.mlp.w{part}": torch.zeros(8, 64, 64) for i in range(3) for part in (1, 2)}
    with pytest.raises(ValueError, match=r"lacks 6 of .*experts.down_proj`.*It holds `model.layers.0.mlp.w1`, "):
        LLaDAMoEModelLM.from_pretrained(write(tmp_path, "llada_moe", tensors))


@pytest.mark.parametrize("model_type", ["llada_fast", "llava_llada", "bert"])
def test_our_layout_under_the_name_of_another_project(name, model_type, tmp_path):
    golden = load_golden(name)
    model, info = CLASSES[name].from_pretrained(write(tmp_path, name, model_type=model_type), output_loading_info=True)
    assert not any(info.values())
    ids = golden.expected["logits.input_ids"]
    assert torch.equal(model(ids).logits, CLASSES[name].from_pretrained(golden.folder)(ids).logits)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors_of(name).keys()
    assert type(AutoModel.from_pretrained(tmp_path / "again")) is CLASSES[name]


@pytest.mark.parametrize("model_type", ["llada21_moe", "llada2_moe_veomni"])
def test_names_of_llada2_in_other_projects(model_type, tmp_path, caplog):
    folder = write(tmp_path, "llada2_moe", model_type=model_type)
    for model in (AutoModelForMaskedLM.from_pretrained(folder), LLaDA2MoeModelLM.from_pretrained(folder)):
        assert type(model) is LLaDA2MoeModelLM
        assert type(model.config) is LLaDA2MoeConfig and model.config.model_type == "llada2_moe"
    assert "of type" not in caplog.text


def test_a_tower_beside_the_layers_is_left_out(tmp_path, caplog):
    """What a model for images and text computes for text alone."""
    key = "model.vision_tower.encoder.layers.0.q_proj.weight"
    folder = write(tmp_path, "llada", tensors_of("llada") | {key: torch.ones(4, 4)}, model_type="llava_llada")
    model, info = LLaDAModelLM.from_pretrained(folder, output_loading_info=True)
    assert info["unexpected_keys"] == {key} and not info["missing_keys"]
    assert torch.equal(model(IDS).logits, LLaDAModelLM.from_pretrained(load_golden("llada").folder)(IDS).logits)


class TestShards:
    def sharded(self, folder: Path, name: str) -> dict[str, str]:
        CLASSES[name].from_pretrained(load_golden(name).folder).save_pretrained(folder, max_shard_size="60KB")
        return json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]

    def test_a_shard_that_is_not_there(self, name, tmp_path):
        shard = sorted(set(self.sharded(tmp_path, name).values()))[1]
        (tmp_path / shard).unlink()
        with pytest.raises(OSError, match=shard):
            CLASSES[name].from_pretrained(tmp_path)

    def test_a_shard_that_the_index_does_not_name(self, name, tmp_path):
        weight_map = self.sharded(tmp_path, name)
        left_out = sorted(set(weight_map.values()))[1]
        rest = {key: shard for key, shard in weight_map.items() if shard != left_out}
        index = {"metadata": {"total_size": 1}, "weight_map": rest}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(ValueError, match=r"lacks \d+ of the|holds .* in other shapes|do not fit together"):
            CLASSES[name].from_pretrained(tmp_path)

    def test_a_shard_that_lacks_a_tensor(self, name, tmp_path):
        weight_map = self.sharded(tmp_path, name)
        key = next(
            key for key in weight_map if key.endswith(("layers.1.input_layernorm.weight", "1.attn_norm.weight"))
        )
        path = tmp_path / weight_map[key]
        tensors = load_file(path)
        del tensors[key]
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="lacks 1 of the"):
            CLASSES[name].from_pretrained(tmp_path)


def test_other_shapes_are_named(name, tmp_path):
    folder, more = load_golden(name).folder, {"vocab_size": 400}
    message = r"`model.embed_tokens.weight`.*: `\S+` is \(320, 64\) and must be \(400, 64\). Correct config"
    with pytest.raises(ValueError, match=message) as raised:
        CLASSES[name].from_pretrained(folder, **more)
    assert "`vocab_size=400`" in str(raised.value)
    # rows that are to be trained
    model = CLASSES[name].from_pretrained(folder, ignore_mismatched_sizes=True, **more)
    assert model(IDS).logits.shape == (1, 12, 400)


def test_integers_are_no_weights(name, tmp_path):
    tensors = tensors_of(name)
    kinds = ("q_proj.weight", "query_key_value.weight", "1.mlp.gate.expert_bias", "wte.weight")
    for key in (key for key in tensors if key.endswith(kinds)):
        changed = tensors | {key: tensors[key].to(torch.int32)}
        with pytest.raises(ValueError, match=f"holds `{key}` as torch.int32, which is no weight without a `quantiz"):
            CLASSES[name].from_pretrained(write(tmp_path, name, changed))


def test_heads_of_subclasses_may_be_new(name, tmp_path):
    class Scored(CLASSES[name]):
        def __init__(self, config):
            super().__init__(config)
            self.score = torch.nn.Linear(config.hidden_size, 2)
            self.post_init()

    model, info = Scored.from_pretrained(load_golden(name).folder, output_loading_info=True)
    assert info["missing_keys"] == {"score.weight", "score.bias"}
    # and what a subclass names
    tensors = tensors_of(name)
    key = next(key for key in tensors if key.endswith(("model.norm.weight", "ln_f.weight")))
    del tensors[key]
    folder = write(tmp_path, name, tensors)
    with pytest.raises(ValueError, match="lacks 1 of the .*`model.norm.weight`"):
        CLASSES[name].from_pretrained(folder)
    Scored._keys_to_ignore_on_load_missing = [r"^model\.norm\."]
    assert torch.equal(Scored.from_pretrained(folder).model.norm.weight, torch.ones(64))


def test_tied_weights_may_be_stored_once(name, tmp_path):
    TINY[name](tie_word_embeddings=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (stored,) = [key for key in tensors if key.endswith(("embed_tokens.weight", "embeddings.weight", "wte.weight"))]
    before = CLASSES[name].from_pretrained(tmp_path)(IDS).logits
    # either of the two
    head = "model.transformer.ff_out.weight" if name == "llada" else "lm_head.weight"
    tensors[head] = tensors.pop(stored)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(CLASSES[name].from_pretrained(tmp_path)(IDS).logits, before)
    # but one of them
    del tensors[head]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 2 of the .*: `lm_head.weight`, `model.embed_tokens.weight`"):
        CLASSES[name].from_pretrained(tmp_path)


def test_the_base_of_an_adapter_is_checked(tmp_path):
    base = write(tmp_path / "base", "llada")
    adapted = get_peft_model(LLaDAModelLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").config.model_type == "llada"
    tensors = tensors_of("llada")
    del tensors["model.transformer.blocks.1.q_proj.weight"]
    write(base, "llada", tensors)
    with pytest.raises(ValueError, match=r"base' lacks 1 of the .*`model.layers.1.self_attn.q_proj.weight`"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")


def test_the_backbone_is_checked_too(tmp_path):
    tensors = tensors_of("llada")
    del tensors["model.transformer.ln_f.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors of a LLaDAModel: `norm.weight`"):
        LLaDAModel.from_pretrained(write(tmp_path, "llada", tensors))
    shutil.copy(load_golden("llada").folder / "model.safetensors", tmp_path)
    assert LLaDAModel.from_pretrained(tmp_path).norm.weight.shape == (64,)
