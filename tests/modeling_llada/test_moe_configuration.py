"""Configurations of families with experts: two families under one name on disk, published keys, what is refused."""

import copy
import json
import pickle

import pytest
import torch
from golden import load_golden
from tiny_models import tiny_llada, tiny_llada2_moe, tiny_llada_moe, tiny_settings
from transformers import AutoConfig, AutoModelForMaskedLM

from llada import (
    LLaDA2MoeConfig,
    LLaDA2MoeModel,
    LLaDA2MoeModelLM,
    LLaDAConfig,
    LLaDAModel,
    LLaDAModelLM,
    LLaDAMoEConfig,
    LLaDAMoEModelLM,
)


CONFIGS = {"llada_moe": LLaDAMoEConfig, "llada2_moe": LLaDA2MoeConfig}
TINY = {"llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}


def published(name: str) -> dict:
    return json.loads((load_golden(name).folder / "config.json").read_text(encoding="utf-8"))


def on_disk(config, folder) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def write(folder, settings: dict) -> None:
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_key_comes_back(name, tmp_path):
    source = published(name)
    config = AutoConfig.from_pretrained(load_golden(name).folder)
    assert type(config) is CONFIGS[name]
    written = on_disk(config, tmp_path)
    # the code the map points to is not copied, and the version is the one that writes
    for key in ("auto_map", "transformers_version"):
        source.pop(key)
    assert written.items() >= source.items()
    added = {"bos_token_id", "dtype", "eos_token_id", "head_dim", "mask_token_id"}
    added |= {"router_aux_loss_coef", "router_z_loss_coef", "use_qk_norm"}
    added |= {"block_size", "expert_capacity", "delete_token_id", "split_token_id"}
    assert written.keys() - source.keys() <= added | {"transformers_version"}
    # and again
    (tmp_path / "first.json").write_text((tmp_path / "config.json").read_text())
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (tmp_path / "first.json").read_text()


class TestOneNameForTwoFamilies:
    @pytest.mark.parametrize("load", [AutoConfig.from_pretrained, LLaDAConfig.from_pretrained])
    def test_the_number_of_experts_tells_them_apart(self, load, tmp_path):
        config = load(load_golden("llada_moe").folder)
        assert type(config) is LLaDAMoEConfig
        assert (config.model_type, config.num_experts) == ("lladamoe", 8)
        assert type(load(load_golden("llada").folder)) is LLaDAConfig
        write(tmp_path, published("llada") | {"num_experts": None})
        assert type(load(tmp_path)) is LLaDAConfig

    def test_the_name_is_written_back(self, tmp_path):
        config = tiny_llada_moe().config
        assert config.model_type == LLaDAMoEConfig.model_type == "lladamoe"
        for written in (config.to_dict(), config.to_diff_dict(), on_disk(config, tmp_path)):
            assert written["model_type"] == "llada"
        assert json.loads(config.to_json_string())["model_type"] == "llada"
        for other in (LLaDAConfig.from_dict(config.to_dict()), LLaDAMoEConfig.from_dict(config.to_dict())):
            assert type(other) is LLaDAMoEConfig
            assert other.model_type == "lladamoe" and other.to_dict() == config.to_dict()

    def test_loading_warns_of_nothing(self, caplog, tmp_path):
        golden = load_golden("llada_moe")
        LLaDAMoEModelLM.from_pretrained(golden.folder)
        assert "of type" not in caplog.text
        # the other family is worth a warning
        tiny_llada().config.save_pretrained(tmp_path)
        LLaDAMoEConfig.from_pretrained(tmp_path)
        assert "model of type `llada` to instantiate a model of type `lladamoe`" in caplog.text

    def test_overrides(self):
        folder = load_golden("llada_moe").folder
        config, unused = AutoConfig.from_pretrained(folder, moe_intermediate_size=4, foo=1, return_unused_kwargs=True)
        assert config.expert_intermediate_size == 4 and unused == {"foo": 1}
        # fewer layers than the file lists
        assert AutoConfig.from_pretrained(folder, num_hidden_layers=2).mlp_layer_types == ["sparse"] * 2

    def test_models_are_built_from_their_own_configuration(self):
        for model_class, config in (
            (LLaDAModelLM, tiny_llada_moe().config),
            (LLaDAModel, tiny_llada2_moe().config),
            (LLaDAMoEModelLM, tiny_llada().config),
            (LLaDA2MoeModel, tiny_llada_moe().config),
        ):
            message = rf"{model_class.__name__} is built from a \w+, not from a {type(config).__name__}. `AutoModelFor"
            with pytest.raises(ValueError, match=message):
                model_class(config)
        with pytest.raises(ValueError, match="LLaDAModelLM is built from a LLaDAConfig, not from a LLaDAMoEConfig"):
            LLaDAModelLM.from_pretrained(load_golden("llada_moe").folder)

    def test_names_of_training_forks_are_read(self, tmp_path):
        """Layouts go by the name in memory, whatever a fork calls its files."""
        write(tmp_path, published("llada2_moe") | {"model_type": "llada2_moe_veomni"})
        config = LLaDA2MoeConfig.from_pretrained(tmp_path)
        assert config.model_type == "llada2_moe"
        assert on_disk(config, tmp_path)["model_type"] == "llada2_moe"


def test_defaults_of_llada_moe():
    config = LLaDAMoEConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (2048, 16, 157184)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (16, 16, 128)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (64, 8, 1024)
    assert (config.rope_theta, config.rotary_dim, config.rms_norm_eps) == (50000, 128, 1e-5)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (156895, 156892, 156892)
    assert config.moe_layer_freq == [1] * 16 and config.mlp_layer_types == ["sparse"] * 16
    assert config.use_qk_norm and config.qk_layernorm and not config.norm_topk_prob
    assert (config.router_aux_loss_coef, config.router_z_loss_coef) == (0.01, 0.001)


def test_defaults_of_llada2_are_those_of_a_release():
    """Those of the published class are of no model: 16 experts in 24 layers of width 1024."""
    config = LLaDA2MoeConfig()
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (2048, 5120, 20)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (16, 4, 128)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (256, 8, 512)
    assert (config.num_shared_experts, config.shared_expert_intermediate_size) == (1, 512)
    assert config.mlp_layer_types == ["dense"] + ["sparse"] * 19
    assert (config.n_group, config.topk_group, config.norm_topk_prob, config.routed_scaling_factor) == (
        8,
        4,
        True,
        2.5,
    )
    assert (config.rope_theta, config.partial_rotary_factor, config.rotary_dim) == (600000, 0.5, 64)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (157184, 32768, 1e-6)
    assert (config.attention_dropout, config.embedding_dropout, config.residual_dropout) == (0, 0, 0)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (156895, 156892, 156892)
    assert (config.use_qk_norm, config.float32_logits, config.block_causal) == (True, True, True)
    assert (config.expert_capacity, config.block_size) == (None, None)
    assert (config.delete_token_id, config.split_token_id) == (None, None)


def test_parameters_of_the_releases():
    """The numbers that the published files have (spelled out: 7,356,880,896 and 16,255,643,392)."""
    with torch.device("meta"):
        assert sum(p.numel() for p in LLaDAMoEModelLM(LLaDAMoEConfig()).parameters()) == 7_356_880_896
        mini = LLaDA2MoeModelLM(LLaDA2MoeConfig())
    biases = sum(buffer.numel() for name, buffer in mini.named_buffers() if "expert_bias" in name)
    assert sum(p.numel() for p in mini.parameters()) + biases == 16_255_643_392


@pytest.mark.parametrize("name", CONFIGS)
def test_ids_of_the_release_need_its_vocabulary(name):
    config_class = CONFIGS[name]
    with pytest.raises(ValueError, match="`mask_token_id=156895` is not in the vocabulary of `vocab_size=48`; write"):
        config_class(**tiny_settings() | {"vocab_size": 48, "mask_token_id": 156895})
    bare = config_class(vocab_size=320)
    assert (bare.mask_token_id, bare.eos_token_id, bare.pad_token_id) == (None, None, None)
    assert config_class(vocab_size=157000).mask_token_id == 156895
    assert config_class(mask_token_id=None).mask_token_id is None
    assert config_class(vocab_size=320, eos_token_id=[7, 9]).eos_token_id == [7, 9]
    # the small published files store neither
    config = AutoConfig.from_pretrained(load_golden(name).folder)
    assert (config.mask_token_id, config.pad_token_id) == (None, 299)


@pytest.mark.parametrize(
    ("config_class", "standard", "name", "value"),
    [
        (LLaDAMoEConfig, "moe_intermediate_size", "expert_intermediate_size", 24),
        (LLaDAMoEConfig, "intermediate_size", "dense_intermediate_size", 24),
        (LLaDAMoEConfig, "use_qk_norm", "qk_layernorm", False),
        (LLaDA2MoeConfig, "residual_dropout", "output_dropout", 0.25),
    ],
)
def test_either_name_sets_and_reads_the_field(config_class, standard, name, value, tmp_path):
    for config in (config_class(**{standard: value}), config_class(**{name: value})):
        assert getattr(config, standard) == getattr(config, name) == value
        written = on_disk(config, tmp_path)
        assert written[name] == value and standard not in written
    with pytest.raises(ValueError, match=f"`{standard}=.*` and `{name}=.*` name the same field"):
        config_class(**{standard: value, name: type(value)(not value)})


def test_null_means_no(tmp_path):
    config = LLaDAMoEConfig(**tiny_settings(norm_topk_prob=None, routed_scaling_factor=None))
    written = on_disk(config, tmp_path)
    assert written["norm_topk_prob"] is None and written["routed_scaling_factor"] is None
    gate = LLaDAMoEModelLM(config).model.layers[0].mlp.gate
    assert gate.norm_topk_prob is False and gate.scaling_factor == 1


class TestRotation:
    def test_newer_transformers_writes_one_key(self, tmp_path):
        """As in a copy of LLaDA2.2 that transformers 5 saved with the published code."""
        settings = published("llada2_moe")
        for key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
            settings.pop(key)
        parameters = {"rope_theta": 3000000, "rope_type": "default", "partial_rotary_factor": 0.25}
        write(tmp_path, settings | {"rope_parameters": parameters, "rotary_dim": 4})
        config = AutoConfig.from_pretrained(tmp_path)
        assert (config.rope_theta, config.partial_rotary_factor, config.rotary_dim) == (3000000, 0.25, 4)
        assert config.rope_parameters == parameters
        written = on_disk(config, tmp_path)
        assert (written["rope_theta"], written["partial_rotary_factor"], written["rotary_dim"]) == (3000000, 0.25, 4)
        assert written["rope_scaling"] is None and "rope_parameters" not in written

    def test_a_part_that_is_not_named_stays(self):
        config = LLaDA2MoeConfig(rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
        assert (config.rope_theta, config.partial_rotary_factor) == (5.0, 0.5)

    @pytest.mark.parametrize("factor", [0, 1.5, -0.5, 0.05])
    def test_parts_of_heads_that_cannot_turn(self, factor):
        message = rf"`partial_rotary_factor={factor}` of heads 8 wide are -?\d+ dimensions; choose a factor above 0"
        with pytest.raises(ValueError, match=message):
            LLaDA2MoeConfig(**tiny_settings(partial_rotary_factor=factor))

    def test_the_duplicate_must_agree(self):
        assert LLaDA2MoeConfig(**tiny_settings(rotary_dim=4)).rotary_dim == 4
        message = "`rotary_dim=8` does not fit `partial_rotary_factor=0.5`, which is 4 of 8 dimensions; change one"
        with pytest.raises(ValueError, match=message):
            LLaDA2MoeConfig(**tiny_settings(rotary_dim=8))

    def test_scaled_rotations_of_a_part(self):
        config = LLaDA2MoeConfig(**tiny_settings(rope_scaling={"rope_type": "yarn", "factor": 2.0}))
        assert config.rope_parameters["partial_rotary_factor"] == 0.5
        assert LLaDA2MoeModelLM(config).model.rotary_emb.inv_freq.shape == (2,)


def test_the_keys_of_2_2(tmp_path):
    keys = {"block_size": 32, "expert_capacity": 48, "delete_token_id": 156930, "split_token_id": 156931}
    write(tmp_path, LLaDA2MoeConfig().to_dict() | keys | {"rope_theta": 3000000, "max_position_embeddings": 131072})
    config = AutoConfig.from_pretrained(tmp_path)
    # the groups stay in the file, and are not used
    assert on_disk(config, tmp_path).items() >= {**keys, "n_group": 8, "topk_group": 4}.items()
    # its switch is a value above 0
    assert AutoConfig.from_pretrained(tmp_path, expert_capacity=0, block_size=None).expert_capacity == 0


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (
            LLaDAMoEConfig,
            {"moe_router_score_function": "sigmoid"},
            "No LLaDA-MoE release .*'sigmoid'` .write 'softmax'",
        ),
        (LLaDAMoEConfig, {"score_function": "sigmoid"}, "`moe_router_score_function='sigmoid'` .write 'softmax'"),
        (LLaDAMoEConfig, {"moe_router_enable_expert_bias": True}, "`moe_router_enable_expert_bias=True` .write False"),
        (LLaDAMoEConfig, {"shared_expert_intermediate_size": 64}, "`shared_expert_intermediate_size=64` .write None"),
        (LLaDAMoEConfig, {"router_num_group": 4}, "`router_num_group=4` .write None"),
        (LLaDAMoEConfig, {"clip_qkv": 8}, "`clip_qkv=8` .write None"),
        (LLaDAMoEConfig, {"moe_layer_freq": [1]}, r"`moe_layer_freq=\[1\]` must have 1 .* for each of the 2 layers"),
        (LLaDAMoEConfig, {"moe_layer_freq": [1, 2]}, r"`moe_layer_freq=\[1, 2\]` must have 1"),
        (LLaDA2MoeConfig, {"score_function": "softmax"}, "No LLaDA2 release .*`score_function='softmax'` .write 'sig"),
        (LLaDA2MoeConfig, {"use_qk_norm": False}, "`use_qk_norm=False` .write True"),
        (LLaDA2MoeConfig, {"use_bias": True, "norm_head": True}, "`norm_head=True` .* `use_bias=True` .write False"),
        (LLaDA2MoeConfig, {"use_qkv_bias": True}, "`use_qkv_bias=True`"),
        (LLaDA2MoeConfig, {"use_sliding_window": True}, "`use_sliding_window=True`"),
        (LLaDA2MoeConfig, {"router_dtype": "bf16"}, "`router_dtype='bf16'` .write 'fp32'"),
        (LLaDA2MoeConfig, {"num_experts_per_tok": 300}, "`num_experts_per_tok=300` must be .* most `num_experts=256`"),
        (LLaDAMoEConfig, {"num_experts_per_tok": 0}, "`num_experts_per_tok=0` is out of range"),
        (LLaDA2MoeConfig, {"n_group": 7}, "`num_experts=256` must be a multiple of `n_group=7`"),
        (LLaDA2MoeConfig, {"n_group": 256}, "`n_group=256`, at least two experts per group"),
        (LLaDA2MoeConfig, {"topk_group": 9}, "`topk_group=9` groups of 32 experts must be at most `n_group=8`"),
        (LLaDA2MoeConfig, {"topk_group": None}, "`topk_group=None` groups of 32"),
        (LLaDA2MoeConfig, {"topk_group": 1, "num_experts_per_tok": 40}, "and hold `num_experts_per_tok=40` experts"),
        (
            LLaDA2MoeConfig,
            {"expert_capacity": 4, "block_size": 32},
            "`expert_capacity=4` is .* `num_experts_per_tok=8`",
        ),
        (LLaDA2MoeConfig, {"expert_capacity": 400, "block_size": 32}, "at most `num_experts=256`"),
        (LLaDA2MoeConfig, {"expert_capacity": 48}, "`expert_capacity=48` limits .* `block_size=None`; give .* 32 in"),
        (LLaDA2MoeConfig, {"expert_capacity": 48, "block_size": -1}, "`block_size=-1` is out of range"),
        (LLaDA2MoeConfig, {"num_attention_heads": 3}, "`hidden_size=32` is not a multiple of `num_attention_heads=3`"),
        (LLaDA2MoeConfig, {"num_key_value_heads": 3}, "`num_attention_heads=4` must be a multiple of `num_key_value"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refusals(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**tiny_settings() | {"vocab_size": 157184} | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_shared_experts": None},
        {"num_shared_experts": 0},
        {"num_shared_experts": 3},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 2},
        {"num_key_value_heads": None},
        {"head_dim": 12},
        {"norm_topk_prob": None},
        {"router_dtype": None},
        {"n_group": None, "topk_group": None},
    ],
    ids=str,
)
def test_what_llada2_allows(settings, tmp_path):
    model = tiny_llada2_moe(**settings)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    sparse = [layer.mlp for layer in again.model.layers if layer.is_sparse]
    assert len(sparse) == 2 - settings.get("first_k_dense_replace", 1)
    shared = settings.get("num_shared_experts", 1)
    for mlp in sparse:
        assert (mlp.shared_experts.up_proj.out_features == 16 * shared) if shared else mlp.shared_experts is None


def test_heads_without_norms():
    model = tiny_llada_moe(qk_layernorm=False)
    assert not any("q_norm" in name or "k_norm" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_are_equal(name):
    config = TINY[name](rope_scaling={"rope_type": "linear", "factor": 2.0}).config
    for other in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        CONFIGS[name].from_dict(config.to_dict()),
    ):
        assert type(other) is CONFIGS[name]
        assert other.model_type == config.model_type
        assert other.to_dict() == config.to_dict()
