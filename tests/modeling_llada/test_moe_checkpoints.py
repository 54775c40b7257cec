"""Checkpoints with experts: one tensor each on disk, two for all in memory, fused matrices, biases of two dtypes."""

import json
import re
import shutil

import pytest
import torch
from golden import load_golden, rounding
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llada2_moe, tiny_llada_moe
from transformers import AutoModelForMaskedLM

from llada import LLaDA2MoeConfig, LLaDA2MoeModelLM, LLaDAMoEModelLM
from llada.modeling_llada.checkpoint_layouts import LAYOUTS, in_memory_names


CLASSES = {"llada_moe": LLaDAMoEModelLM, "llada2_moe": LLaDA2MoeModelLM}
TINY = {"llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
HALVES = ("gate_proj", "up_proj", "down_proj")


def published_names(name: str) -> set[str]:
    """The names of a file with two layers, the first of LLaDA2 without experts, written out once more."""
    leaves = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    names = {"model.norm.weight", "lm_head.weight"}
    if name == "llada_moe":
        names.add("model.embed_tokens.weight")
        leaves |= {f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
        experts = {f"mlp.experts.{expert}.{half}.weight" for expert in range(6) for half in HALVES}
        return names | {f"model.layers.{i}.{leaf}" for i in (0, 1) for leaf in leaves | experts | {"mlp.gate.weight"}}
    names.add("model.word_embeddings.weight")
    attention = ("query_key_value", "dense", "query_layernorm", "key_layernorm")
    leaves |= {f"attention.{part}.weight" for part in attention}
    dense = {f"mlp.{half}.weight" for half in HALVES}
    sparse = {f"mlp.experts.{expert}.{half}.weight" for expert in range(8) for half in HALVES}
    sparse |= {f"mlp.shared_experts.{half}.weight" for half in HALVES} | {"mlp.gate.weight", "mlp.gate.expert_bias"}
    return names | {f"model.layers.{i}.{leaf}" for i, own in ((0, dense), (1, sparse)) for leaf in leaves | own}


def tensors_of(folder) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_same_bytes(saved: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def write_checkpoint(folder, name: str, tensors: dict[str, torch.Tensor], **settings) -> None:
    config = json.loads((load_golden(name).folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", TINY)
def test_a_model_that_was_never_loaded_saves_published_names(name, tmp_path):
    model = TINY[name]()
    model.save_pretrained(tmp_path)
    saved = tensors_of(tmp_path)
    assert saved.keys() == published_names(name)
    layer, prefix = model.model.layers[1], "model.layers.1"
    gate_up, down = layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
    for expert in range(len(down)):
        for half, tensor in zip(HALVES, (gate_up[expert, :16], gate_up[expert, 16:], down[expert]), strict=True):
            assert torch.equal(saved[f"{prefix}.mlp.experts.{expert}.{half}.weight"], tensor)
    if name == "llada2_moe":
        attention = layer.self_attn
        parts = [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert torch.equal(saved[f"{prefix}.attention.query_key_value.weight"], torch.cat(parts))
        assert torch.equal(saved[f"{prefix}.attention.dense.weight"], attention.o_proj.weight)
        assert torch.equal(saved[f"{prefix}.attention.query_layernorm.weight"], attention.q_norm.weight)
        assert torch.equal(saved[f"{prefix}.attention.key_layernorm.weight"], attention.k_norm.weight)
        assert torch.equal(saved["model.word_embeddings.weight"], model.model.embed_tokens.weight)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(again) is CLASSES[name]
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    torch.testing.assert_close(again(ids).logits, expected, **rounding(expected))


@pytest.mark.parametrize("name", TINY)
def test_architectures_survive(name, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(load_golden(name).folder)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == [CLASSES[name].__name__]
    assert written["model_type"] == ("llada" if name == "llada_moe" else "llada2_moe")


@pytest.mark.parametrize("name", TINY)
def test_names_in_memory_load_and_stay(name, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(load_golden(name).folder)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert tensors_of(tmp_path).keys() == model.state_dict().keys()
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    again.save_pretrained(tmp_path / "again")
    assert_same_bytes(tensors_of(tmp_path / "again"), tensors_of(tmp_path))


class TestBiasOfRouters:
    """bfloat16 in the files of LLaDA2.0, float32 later; float32 in memory; on disk again what it was."""

    def checkpoint(self, folder, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        tensors = tensors_of(load_golden("llada2_moe").folder)
        tensors = {
            name: tensor.to(dtype if "expert_bias" in name else torch.bfloat16) for name, tensor in tensors.items()
        }
        write_checkpoint(folder, "llada2_moe", tensors, torch_dtype="bfloat16")
        return tensors

    @pytest.mark.parametrize("limit", ["1GB", "30KB"], ids=["one file", "shards"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["2.0", "2.1"])
    def test_files_come_back_byte_for_byte(self, dtype, limit, tmp_path):
        source = self.checkpoint(tmp_path, dtype)
        model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert model.dtype == torch.bfloat16
        assert model(torch.arange(9)[None]).logits.dtype == torch.float32
        for index in (1, 2):
            bias = model.model.layers[index].mlp.gate.expert_bias
            assert bias.dtype == torch.float32
            assert torch.equal(bias, source[f"model.layers.{index}.mlp.gate.expert_bias"].float())
        model.save_pretrained(tmp_path / "again", max_shard_size=limit)
        assert_same_bytes(tensors_of(tmp_path / "again"), source)
        # from shards, too
        AutoModelForMaskedLM.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "third")
        assert_same_bytes(tensors_of(tmp_path / "third"), source)

    def test_exact_biases_choose_other_experts(self, tmp_path):
        """Rounded, as published code rounds it, the bias of LLaDA2.1 sends some tokens elsewhere."""
        self.checkpoint(tmp_path, torch.float32)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path)
        ids = load_golden("llada2_moe").expected["logits.input_ids"]
        chosen = model(ids, output_router_logits=True).router_indices[0]
        gate = model.model.layers[1].mlp.gate
        gate.expert_bias.copy_(gate.expert_bias.round(decimals=1))
        assert not torch.equal(model(ids, output_router_logits=True).router_indices[0], chosen)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_other_dtypes_in_memory(self, dtype, tmp_path):
        source = self.checkpoint(tmp_path, torch.bfloat16)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
        assert model.model.layers[1].mlp.gate.expert_bias.dtype == torch.float32
        assert model.model.layers[1].mlp.gate.weight.dtype == dtype
        model.save_pretrained(tmp_path / "again")
        saved = tensors_of(tmp_path / "again")
        name = "model.layers.1.mlp.gate.expert_bias"
        assert saved["model.norm.weight"].dtype == dtype
        assert saved[name].dtype == torch.bfloat16 and torch.equal(saved[name], source[name])

    def test_what_has_changed_loses_nothing(self, tmp_path):
        self.checkpoint(tmp_path, torch.bfloat16)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path)
        bias = model.model.layers[2].mlp.gate.expert_bias
        bias += 1 / 3
        model.save_pretrained(tmp_path / "again")
        saved = tensors_of(tmp_path / "again")
        assert saved["model.layers.1.mlp.gate.expert_bias"].dtype == torch.bfloat16
        assert torch.equal(saved["model.layers.2.mlp.gate.expert_bias"], bias)

    def test_fresh_models_have_float32(self, tmp_path):
        model = LLaDA2MoeModelLM(tiny_llada2_moe().config).to(torch.bfloat16)
        model.save_pretrained(tmp_path)
        dtypes = {name: tensor.dtype for name, tensor in tensors_of(tmp_path).items()}
        assert dtypes.pop("model.layers.1.mlp.gate.expert_bias") == torch.float32
        assert set(dtypes.values()) == {torch.bfloat16}
        # built in half precision as well
        model = AutoModelForMaskedLM.from_config(model.config, dtype=torch.bfloat16)
        assert model.model.layers[1].mlp.gate.expert_bias.dtype == torch.float32

    def test_a_given_state_dict(self, tmp_path):
        source = self.checkpoint(tmp_path, torch.bfloat16)
        config = LLaDA2MoeConfig.from_pretrained(tmp_path)
        model = LLaDA2MoeModelLM.from_pretrained(None, config=config, state_dict=source, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / "again")
        assert_same_bytes(tensors_of(tmp_path / "again"), source)


class TestMergedExperts:
    """dFactory stacks the experts of a layer, gates and up-projections apart."""

    def checkpoint(self, folder, **settings) -> dict[str, torch.Tensor]:
        source = tensors_of(load_golden("llada2_moe").folder)
        merged = {name: tensor for name, tensor in source.items() if ".experts." not in name}
        for index in (1, 2):
            for half in HALVES:
                names = [f"model.layers.{index}.mlp.experts.{expert}.{half}.weight" for expert in range(16)]
                merged[f"model.layers.{index}.mlp.experts.{half}"] = torch.stack([source[name] for name in names])
        write_checkpoint(folder, "llada2_moe", merged, **settings)
        return source

    def test_they_load_and_are_saved_as_published(self, tmp_path):
        source = self.checkpoint(tmp_path)
        model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        golden = load_golden("llada2_moe")
        logits = model(golden.expected["logits.input_ids"]).logits
        torch.testing.assert_close(logits, golden.logits, **rounding(golden.logits))
        model.save_pretrained(tmp_path / "again")
        assert_same_bytes(tensors_of(tmp_path / "again"), source)

    def test_under_the_name_of_the_training_fork(self, tmp_path):
        source = self.checkpoint(tmp_path, model_type="llada2_moe_veomni")
        model, info = LLaDA2MoeModelLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        model.save_pretrained(tmp_path / "again")
        assert_same_bytes(tensors_of(tmp_path / "again"), source)
        assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "again")) is LLaDA2MoeModelLM

    def test_another_derivative_is_refused(self, tmp_path):
        """dInfer's `w1` and `w2` look like the names in memory, and are not read."""
        source = tensors_of(load_golden("llada_moe").folder)
        tensors = {name: tensor for name, tensor in source.items() if ".experts." not in name}
        tensors["model.layers.0.mlp.w1"] = torch.zeros(8, 64, 64)
        write_checkpoint(tmp_path, "llada_moe", tensors)
        with pytest.raises(ValueError, match=r"lacks 6 of .* holds `model\.layers\.0\.mlp\.w1` instead"):
            LLaDAMoEModelLM.from_pretrained(tmp_path)
        _, info = LLaDAMoEModelLM.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
        assert set(info["unexpected_keys"]) == {"model.layers.0.mlp.w1"}
        missing = {f"model.layers.{i}.mlp.experts.{part}" for i in range(3) for part in ("gate_up_proj", "down_proj")}
        assert set(info["missing_keys"]) == missing


class TestStateDicts:
    """`load_state_dict`, by which trainers resume from what `save_pretrained` wrote."""

    @pytest.mark.parametrize("name", TINY)
    def test_published_names(self, name, tmp_path):
        source, target = TINY[name](), TINY[name]()
        source.save_pretrained(tmp_path)
        parameters = dict(target.named_parameters())
        result = target.load_state_dict(tensors_of(tmp_path))
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        for key, tensor in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], tensor), key
        # in place: optimizers hold the parameters
        assert all(parameters[key] is parameter for key, parameter in target.named_parameters())

    @pytest.mark.parametrize("name", TINY)
    def test_a_layer_in_several_files(self, name, tmp_path):
        source, target = TINY[name](num_hidden_layers=3), TINY[name](num_hidden_layers=3)
        source.save_pretrained(tmp_path, max_shard_size="9KB")
        files = sorted(tmp_path.glob("*.safetensors"))
        layers = [
            {re.search(r"layers\.2\.mlp\.experts", key) is not None for key in load_file(file)} for file in files
        ]
        assert sum(True in layer for layer in layers) > 1
        for file in reversed(files):
            assert target.load_state_dict(load_file(file), strict=False).unexpected_keys == []
        for key, tensor in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], tensor), key

    def test_merged_experts(self, tmp_path):
        source, target = tiny_llada2_moe(), tiny_llada2_moe()
        tensors = source.state_dict()
        gate_up = tensors.pop("model.layers.1.mlp.experts.gate_up_proj")
        tensors["model.layers.1.mlp.experts.gate_proj"], tensors["model.layers.1.mlp.experts.up_proj"] = gate_up.chunk(
            2, dim=1
        )
        target.load_state_dict(tensors)
        assert torch.equal(target.model.layers[1].mlp.experts.gate_up_proj, gate_up)

    def test_names_in_memory_and_unknown_ones(self):
        source, target = tiny_llada2_moe(), tiny_llada2_moe()
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.model.layers[1].mlp.experts.down_proj, source.model.layers[1].mlp.experts.down_proj)
        foreign = {"model.layers.7.mlp.experts.0.up_proj.weight": torch.zeros(1), "other": torch.zeros(1)}
        result = target.load_state_dict(foreign, strict=False)
        assert set(result.unexpected_keys) == {"model.layers.7.mlp.experts.gate_up_proj", "other"}
        with pytest.raises(RuntimeError, match="Unexpected key"):
            target.load_state_dict(source.state_dict() | {"other": torch.zeros(1)})

    def test_names(self):
        published = ["model.layers.3.attention.query_key_value.weight", "model.layers.3.mlp.experts.9.up_proj.weight"]
        names = in_memory_names([*published, "lm_head.weight"], "llada2_moe")
        assert names[published[0]] == [f"model.layers.3.self_attn.{part}_proj.weight" for part in "qkv"]
        assert names[published[1]] == ["model.layers.3.mlp.experts.gate_up_proj"]
        assert names["lm_head.weight"] == ["lm_head.weight"]
        assert in_memory_names(["model.layers.0.mlp.up_proj.weight"], "illada") == {
            "model.layers.0.mlp.up_proj.weight": ["model.layers.0.mlp.up_proj.weight"]
        }


def test_renamings_are_anchored():
    # transformers searches patterns, and reverses them on save
    for model_type, layout in LAYOUTS.items():
        renamings = [transform for transform in layout.transforms() if not hasattr(transform, "operations")]
        assert len(renamings) == {"llada": 12, "lladamoe": 0, "llada2_moe": 4}[model_type]
        for renaming in renamings:
            for pattern in renaming.source_patterns:
                assert re.fullmatch(r"\^model\\\..*\\\.", pattern), pattern


def test_a_checkpoint_next_to_its_code(tmp_path):
    """As published: files of code beside the weights, which are not run."""
    golden = load_golden("llada2_moe")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(golden.folder / file, tmp_path)
    for stem in ("configuration_llada2_moe", "modeling_llada2_moe"):
        (tmp_path / f"{stem}.py").write_text("raise AssertionError('remote code was run')")
    for trust_remote_code in (None, False, True):
        model = AutoModelForMaskedLM.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
        assert type(model) is LLaDA2MoeModelLM
