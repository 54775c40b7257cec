"""Two vocabularies for one configuration, what is written to disk, and what is refused."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from tiny_models import tiny_llada, tiny_settings
from transformers import AutoConfig, PreTrainedConfig

from llada import ILLaDAConfig, LLaDAConfig


# standard name -> published name
ALIASES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "hidden_act": "activation_type",
    "initializer_range": "init_std",
    "tie_word_embeddings": "weight_tying",
}


def on_disk(config: PreTrainedConfig, folder) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def published(golden) -> dict:
    return json.loads((golden.folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("standard", "value"),
    [
        ("hidden_size", 64),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 8),
        ("intermediate_size", 24),
        ("max_position_embeddings", 99),
        ("hidden_act", "gelu"),
        ("initializer_range", 0.5),
        ("tie_word_embeddings", True),
    ],
)
def test_either_name_sets_and_reads_the_field(standard, value, tmp_path):
    name = ALIASES[standard]
    configs = [LLaDAConfig(**{standard: value}), LLaDAConfig(**{name: value})]
    assigned = LLaDAConfig(n_kv_heads=4)
    setattr(assigned, standard, value)
    for config in (*configs, assigned):
        assert getattr(config, standard) == getattr(config, name) == value
        written = on_disk(config, tmp_path)
        assert written[name] == value
        assert standard not in written


def test_every_published_name_has_its_standard_name():
    assert ALIASES.items() <= LLaDAConfig.attribute_map.items()


@pytest.mark.parametrize("standard", [64, 4096], ids=["other", "default of the other"])
def test_one_field_under_two_names_must_agree(standard):
    # 4096 is the default of `d_model`: given is given, whatever the default
    d_model = 4096 if standard == 64 else 64
    with pytest.raises(ValueError, match=rf"`hidden_size={standard}` and `d_model={d_model}` name the same field"):
        LLaDAConfig(hidden_size=standard, d_model=d_model)
    assert LLaDAConfig(hidden_size=64, d_model=64).d_model == 64
    with pytest.raises(ValueError, match="`residual_dropout=0.2` and `resid_pdrop=0.1`"):
        ILLaDAConfig(residual_dropout=0.2, resid_pdrop=0.1)


def test_defaults_are_those_of_the_8b_checkpoints():
    config = LLaDAConfig()
    assert (config.d_model, config.n_layers, config.n_heads, config.n_kv_heads) == (4096, 32, 32, 32)
    assert (config.mlp_hidden_size, config.vocab_size, config.max_sequence_length) == (12288, 126464, 4096)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (126336, 126081, 126081)
    assert (config.rope_theta, config.rms_norm_eps, config.rope_full_precision) == (500000.0, 1e-5, True)
    illada = ILLaDAConfig()
    assert (illada.hidden_size, illada.intermediate_size, illada.vocab_size) == (4096, 14336, 155136)
    assert (illada.mask_token_id, illada.bos_token_id, illada.pad_token_id, illada.eos_token_id) == (5, 0, 1, 2)
    assert (illada.tie_word_embeddings, illada.rope_full_precision, illada.embedding_dropout) == (True, False, 0.0)


@pytest.mark.parametrize("config_class", [LLaDAConfig, ILLaDAConfig])
def test_derived_fields(config_class):
    config = config_class(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim) == (6, 16)


def test_mlp_ratio_counts_only_without_a_width():
    assert LLaDAConfig(d_model=64, n_heads=4, mlp_hidden_size=None).intermediate_size == 256
    assert LLaDAConfig(d_model=64, n_heads=4, mlp_hidden_size=None, mlp_ratio=3).intermediate_size == 192
    assert LLaDAConfig(d_model=64, n_heads=4, mlp_hidden_size=80, mlp_ratio=3).intermediate_size == 80


def test_embedding_size_counts_the_rows(tmp_path):
    config = LLaDAConfig(vocab_size=300, embedding_size=320)
    assert (config.vocab_size, config.embedding_size) == (320, 320)
    assert LLaDAConfig(vocab_size=300, embedding_size=None).vocab_size == 300
    config.vocab_size = 340
    assert config.embedding_size == 340
    config.embedding_size = 350
    written = on_disk(config, tmp_path)
    assert (written["vocab_size"], written["embedding_size"]) == (350, 350)


def test_head_dim_may_be_repeated_but_not_chosen(tmp_path):
    assert LLaDAConfig(d_model=64, n_heads=4, head_dim=16).head_dim == 16
    assert "head_dim" not in on_disk(LLaDAConfig(d_model=64, n_heads=4, head_dim=16), tmp_path)
    with pytest.raises(ValueError, match="`head_dim=32` does not fit a dense LLaDA.*64 / 4 wide"):
        LLaDAConfig(d_model=64, n_heads=4, head_dim=32)
    assert ILLaDAConfig(hidden_size=64, num_attention_heads=4, head_dim=32).head_dim == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alibi": True}, r"not implement: `alibi=True` \(write False\)"),
        ({"attention_layer_norm": True}, "`attention_layer_norm=True`"),
        ({"bias_for_layer_norm": True}, "`bias_for_layer_norm=True`"),
        ({"block_type": "sequential"}, r"`block_type='sequential'` \(write 'llama'\)"),
        ({"include_bias": True}, "`include_bias=True`"),
        ({"mlp_bias": True}, "`include_bias=True`"),
        ({"include_qkv_bias": True}, "`include_qkv_bias=True`"),
        ({"attention_bias": True}, "`include_qkv_bias=True`"),
        ({"input_emb_norm": True}, "`input_emb_norm=True`"),
        ({"layer_norm_type": "default"}, "`layer_norm_type='default'`"),
        ({"layer_norm_with_affine": False}, "`layer_norm_with_affine=False`"),
        ({"multi_query_attention": True}, "`multi_query_attention=True`"),
        ({"rope": False}, r"`rope=False` \(write True\)"),
        ({"scale_logits": True}, "`scale_logits=True`"),
        ({"alibi": True, "rope": False}, "`alibi=True` .*, `rope=False`"),
        ({"d_model": 66, "n_heads": 4}, "`d_model=66` is not a multiple of `n_heads=4`"),
        ({"n_heads": 32, "n_kv_heads": 5}, "`n_heads=32` must be a multiple of `n_kv_heads=5`"),
        ({"n_kv_heads": 0}, "`n_kv_heads=0` is out of range; write a value from 1, at most 65536"),
        ({"n_heads": 0}, "`n_heads=0` is out of range"),
        ({"d_model": 12, "n_heads": 4}, "Heads are 3 wide, .* choose an even `head_dim`"),
        ({"activation_type": "swiglu"}, "`activation_type='swiglu'` is not an activation of transformers"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "`rope_scaling=.*spiral.*unknown `rope_type`; choose from def"),
        ({"attention_dropout": 1.0}, "`attention_dropout=1.0` is a probability"),
        ({"embedding_dropout": -0.1}, "`embedding_dropout=-0.1` is a probability"),
        ({"residual_dropout": 2}, "`residual_dropout=2` is a probability"),
    ],
    ids=str,
)
def test_llada_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        LLaDAConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_norm_eps": 1e-5}, "`layer_norm_eps=1e-05` asks for LayerNorm.*leave it null and set `rms_norm_eps`"),
        ({"num_key_value_heads": 5}, "`num_attention_heads=32` must be a multiple of `num_key_value_heads=5`"),
        ({"num_attention_heads": 0}, "`num_attention_heads=0` is out of range"),
        ({"hidden_size": 66, "num_attention_heads": 4}, "`hidden_size=66` is not a multiple.*give `head_dim`"),
        ({"head_dim": 7}, "Heads are 7 wide"),
        ({"resid_pdrop": 1.5}, "`resid_pdrop=1.5` is a probability"),
        ({"hidden_act": "swish9"}, "`hidden_act='swish9'`"),
    ],
    ids=str,
)
def test_illada_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        ILLaDAConfig(**settings)


def test_null_is_accepted_where_the_published_code_accepts_it():
    config = LLaDAConfig(bias_for_layer_norm=None, include_qkv_bias=None, multi_query_attention=None, n_kv_heads=None)
    assert config.n_kv_heads == config.n_heads


def test_what_became_invalid_after_construction_is_not_saved(tmp_path):
    config = LLaDAConfig()
    config.alibi = True
    with pytest.raises(Exception, match="`alibi=True`"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["golden_llada", "golden_illada"])
def test_every_published_key_survives(name, request, tmp_path):
    golden = request.getfixturevalue(name)
    before = published(golden)
    config = AutoConfig.from_pretrained(golden.folder)
    after = on_disk(config, tmp_path)
    assert before.keys() - after.keys() == {"auto_map"}
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed == {"transformers_version"}
    # and once more
    assert on_disk(AutoConfig.from_pretrained(tmp_path), tmp_path) == after


def test_a_fresh_config_writes_every_published_key(golden_llada, tmp_path):
    before = published(golden_llada)
    tiny_llada().save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert before.keys() - after.keys() == {"auto_map"}
    assert before["architectures"] == after["architectures"]
    assert before.keys() - on_disk(LLaDAConfig(), tmp_path).keys() == {"architectures", "auto_map"}


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_torch_dtype_stays_where_it_was(golden_llada, golden_illada, dtype, tmp_path):
    settings = published(golden_illada) | {"torch_dtype": dtype}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == (torch.bfloat16 if dtype else None)
    assert on_disk(config, tmp_path)["torch_dtype"] == dtype
    assert "_published_torch_dtype" not in config.to_dict()
    # LLaDA-8B has no such key, and none is added
    assert "torch_dtype" not in on_disk(AutoConfig.from_pretrained(golden_llada.folder), tmp_path)


@pytest.mark.parametrize("via", ["save_pretrained of the config", "save_pretrained of the model"])
def test_auto_map_is_written_as_far_as_it_resolves(golden_llada, tmp_path, via):
    model = tiny_llada()
    targets = published(golden_llada)["auto_map"]
    model.config.auto_map = dict(targets)
    saved = model if via.endswith("model") else model.config

    def written() -> dict | None:
        saved.save_pretrained(tmp_path)
        return json.loads((tmp_path / "config.json").read_text(encoding="utf-8")).get("auto_map")

    # nothing there: the key itself goes
    assert written() is None
    assert model.config.auto_map == targets
    # one of the two files there
    (tmp_path / "modeling_llada.py").write_text("")
    assert written() == {name: targets[name] for name in ("AutoModel", "AutoModelForCausalLM")}
    (tmp_path / "configuration_llada.py").write_text("")
    assert written() == targets
    # code in a repository resolves anywhere
    remote = {"AutoConfig": "GSAI-ML/LLaDA-8B-Base--configuration_llada.LLaDAConfig"}
    model.config.auto_map = {**remote, "AutoModel": "elsewhere.LLaDAModelLM"}
    assert written() == remote
    model.config.auto_map = {}
    assert written() in (None, {})


def test_auto_map_comes_back_when_saving_fails(tmp_path):
    config = LLaDAConfig(auto_map={"AutoConfig": "configuration_llada.LLaDAConfig"})
    (tmp_path / "taken").write_text("")
    with pytest.raises(AssertionError, match="should be a directory"):
        config.save_pretrained(tmp_path / "taken")
    assert config.auto_map == {"AutoConfig": "configuration_llada.LLaDAConfig"}


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("name", ["golden_llada", "golden_illada"])
def test_auto_config_gives_our_class(name, trust_remote_code, request):
    golden = request.getfixturevalue(name)
    config = AutoConfig.from_pretrained(golden.folder, trust_remote_code=trust_remote_code)
    assert type(config) is {"golden_llada": LLaDAConfig, "golden_illada": ILLaDAConfig}[name]
    assert config.auto_map == published(golden)["auto_map"]


def test_overrides_of_from_pretrained_take_either_name(golden_llada):
    assert AutoConfig.from_pretrained(golden_llada.folder, num_hidden_layers=1).n_layers == 1
    assert AutoConfig.from_pretrained(golden_llada.folder, n_layers=1).num_hidden_layers == 1


@pytest.mark.parametrize(
    ("scaling", "read"),
    [
        (None, {"rope_type": "default"}),
        ({"rope_type": "default"}, {"rope_type": "default"}),
        ({"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        ),
    ],
    ids=str,
)
def test_rope_settings_are_read_from_published_keys(scaling, read, tmp_path):
    config = LLaDAConfig(**tiny_settings(rope_theta=1000.0, rope_scaling=scaling))
    assert config.rope_parameters == read | {"rope_theta": 1000.0}
    written = on_disk(config, tmp_path)
    assert written["rope_theta"] == 1000.0
    assert "rope_parameters" not in written
    assert LLaDAConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("config_class", [LLaDAConfig, ILLaDAConfig])
@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 4.0}, "has a factor and does not say of what"),
        ({"rope_type": "default", "factor": 4.0}, "has a factor and does not say of what"),
        ({"rope_type": "linear", "factor": 0}, "by a factor of 0; give a number above 0"),
        ({"rope_type": "linear", "factor": -2.0}, "by a factor of -2.0; give a number"),
        ({"type": "yarn", "factor": float("nan")}, "by a factor of nan; give a number"),
        ({"rope_type": "linear", "factor": "4"}, "by a factor of '4'; give a number"),
        ({"rope_type": "linear", "factor": True}, "by a factor of True; give a number"),
        ({"rope_type": "dynamic", "factor": 2.0}, "by the longest text of the batch"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "by the longest text of the batch"),
    ],
    ids=str,
)
def test_rope_settings_that_no_row_can_have_alone_or_at_all(config_class, name, scaling, message):
    with pytest.raises(ValueError, match=message):
        config_class(**tiny_settings(**{name: scaling}))


def test_rope_parameters_are_read_and_written_as_published_keys(tmp_path):
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}
    config = LLaDAConfig(rope_parameters=parameters)
    assert (config.rope_theta, config.rope_scaling) == (1000.0, {"rope_type": "linear", "factor": 2.0})
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    assert (config.rope_theta, config.rope_scaling) == (5.0, None)
    # a theta that is not named stays
    config.rope_parameters = {"rope_type": "linear", "factor": 3.0}
    assert config.rope_theta == 5.0
    assert on_disk(config, tmp_path)["rope_scaling"] == {"rope_type": "linear", "factor": 3.0}


@pytest.mark.parametrize("config_class", [LLaDAConfig, ILLaDAConfig])
def test_copies_are_equal(config_class, tmp_path):
    config = config_class(**tiny_settings(rope_scaling={"rope_type": "linear", "factor": 2.0}))
    config.save_pretrained(tmp_path)
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config_class.from_dict(config.to_dict())):
        assert other.to_dict() == config.to_dict()
    shutil.copy(tmp_path / "config.json", tmp_path / "first.json")
    config_class.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (tmp_path / "first.json").read_text()
