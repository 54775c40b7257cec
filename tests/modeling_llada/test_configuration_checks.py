"""Every key of every family has one check; keys that are no field are kept, and change nothing."""

import copy
import json
import pickle
from dataclasses import fields

import pytest
import torch
from golden import load_golden
from tiny_models import tiny_llada, tiny_llada2_moe, tiny_llada_moe, tiny_settings
from transformers import AutoConfig, AutoModelForMaskedLM

from llada import ILLaDAConfig, LLaDA2MoeConfig, LLaDAConfig, LLaDAModelLM, LLaDAMoEConfig


CONFIGS = {"llada": LLaDAConfig, "illada": ILLaDAConfig, "llada_moe": LLaDAMoEConfig, "llada2_moe": LLaDA2MoeConfig}
FIELDS = [
    (name, field)
    for name, config_class in CONFIGS.items()
    for field in fields(config_class)
    if field.name in config_class.__annotations__ or field.name in ("rope_theta", "rope_scaling")
]
IDS = torch.arange(12)[None]


def published(name: str) -> dict:
    return json.loads((load_golden(name).folder / "config.json").read_text(encoding="utf-8"))


def written(config, folder) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_every_field_refuses_other_types(name, field):
    """By what its default is, not by the annotation that the check reads."""
    config, refused = CONFIGS[name], [["x"], {"x": 1}, float("nan"), float("inf"), 10**400]
    if not isinstance(field.default, bool) and field.name != "norm_topk_prob":
        refused += [True]
    if not isinstance(field.default, str) and field.name not in ("init_device", "precision", "router_dtype"):
        refused += ["1", ""]
    if field.name in ("rope_scaling",):
        refused.remove({"x": 1})
    for value in refused:
        with pytest.raises(ValueError, match=f"`{field.name}.*`") as raised:
            config(**{field.name: value})
        assert "write" in str(raised.value) or "choose" in str(raised.value)
    # and later, by assignment
    with pytest.raises(ValueError, match=f"`{field.name}="):
        setattr(config(), field.name, ["x"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rope_theta", [0, -5, 1e31]),
        ("rms_norm_eps", [0, -1e-6, 1e30]),
        ("num_hidden_layers", [0, -1, 10**9]),
        ("max_position_embeddings", [0, -1]),
        ("vocab_size", [0, -320]),
        ("hidden_size", [0, -64]),
        ("num_attention_heads", [0, -4]),
        ("num_key_value_heads", [0, -4]),
        ("initializer_range", [-1]),
        ("rope_parameters", [7, "x", [1], {"full_attention": {"rope_theta": 5.0}}, {"rope_type": 3}]),
        ("rope_scaling", [7, {"beta_fast": []}, {"rope_type": "linear"}, {"rope_type": "llama3", "factor": 2.0}]),
        ("rope_scaling", [{"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": None}]),
        ("rope_scaling", [{"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"}]),
        ("auto_map", [["x"], {"AutoConfig": 7}, {"AutoTokenizer": ["a.B", 7]}]),
        ("dtype", ["float99", 7]),
        ("torch_dtype", ["float99", 7]),
        ("id2label", [7, {"x": "y"}]),
        ("num_labels", ["x", 10**12]),
        ("architectures", [7, [7]]),
        ("is_encoder_decoder", [True, 1]),
        ("quantization_config", [7]),
        ("output_attentions", [7]),
        ("attn_implementation", [7, {"": False}]),
    ],
)
def test_values_that_no_model_can_have(name, key, values):
    for value in values:
        with pytest.raises(ValueError, match=r"`[^`]+`[^`]* (write|choose|has no encoder|must|gives no)|; write"):
            CONFIGS[name](**{key: value})


def test_layers_without_experts_are_at_most_all():
    assert LLaDA2MoeConfig(first_k_dense_replace=20).mlp_layer_types == ["dense"] * 20
    with pytest.raises(ValueError, match="`first_k_dense_replace=21` .* more than `num_hidden_layers=20`; write"):
        LLaDA2MoeConfig(first_k_dense_replace=21)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("key", ["mask_token_id", "pad_token_id", "eos_token_id", "bos_token_id"])
def test_ids_are_in_the_vocabulary(name, key):
    for value in (48, 126336, -1, *([[3, 48]] if key == "eos_token_id" else [])):
        with pytest.raises(ValueError, match=rf"`{key}=.*` is not in the vocabulary of `vocab_size=48`; write an id"):
            CONFIGS[name](**tiny_settings() | {key: value})
    # those of the release that nobody gave
    assert getattr(CONFIGS[name](vocab_size=1), key) in (None, 0)
    config = CONFIGS[name](**tiny_settings())
    config.vocab_size = 10
    with pytest.raises(ValueError, match="is not in the vocabulary of `vocab_size=10`"):
        config.validate()


# what is a property of other families, of transformers, or of the class itself
UNKNOWN = {
    "block_length": 8,
    "is_causal": True,
    "mlp_layer_types": ["sparse"],
    "per_layer_config": {"0": {"num_attention_heads": 2}},
    "sliding_window": 4,
    "layer_types": ["sliding_attention"],
    "attribute_map": {},
    "cls": 3,
    "to_dict": 5,
    "validate": None,
    "max_length": 20,
    "transformers_weights": "other.safetensors",
    "a note": [1, {"b": None}],
}
DENSE = {
    "block_size": 4,
    "expert_capacity": 3,
    "float32_logits": True,
    "output_router_logits": True,
    "partial_rotary_factor": 0.5,
}
# what makes a diffusion model of a causal one is of the family of iLLaDA
UNCONVERTED = {"right_shift_logits": True, "use_qk_norm": True, "use_qkv_bias": True}


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_keys_are_kept_and_never_read(name, tmp_path):
    golden = load_golden(name)
    added = UNKNOWN | (DENSE if name in ("llada", "illada") else {}) | (UNCONVERTED if name == "llada" else {})
    (tmp_path / "config.json").write_text(json.dumps(published(name) | added), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((golden.folder / "model.safetensors").read_bytes())
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    ids = golden.expected["logits.input_ids"]
    assert torch.equal(model(ids).logits, AutoModelForMaskedLM.from_pretrained(golden.folder)(ids).logits)
    plain = AutoConfig.from_pretrained(golden.folder)
    for key in added:
        assert getattr(model.config, key, "absent") in (getattr(plain, key, "absent"), None) or key in dir(plain), key
    saved = written(model.config, tmp_path / "again")
    assert {key: saved.get(key, "lost") for key in added} == added
    for config in (
        copy.deepcopy(model.config),
        pickle.loads(pickle.dumps(model.config)),
        type(model.config).from_dict(model.config.to_dict()),
        AutoConfig.from_pretrained(tmp_path / "again"),
    ):
        # `to_dict` knows one name for the dtype
        assert {"torch_dtype": saved.get("torch_dtype")} | written(config, tmp_path / "third") == {
            "torch_dtype": None,
            **saved,
        }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_key_that_python_takes_is_refused(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published(name) | {"self": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match="`self=3` cannot be a key of .*; take it out"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("key", DENSE)
def test_a_property_of_the_family_cannot_be_set(key):
    config = LLaDAConfig()
    setattr(config, key, getattr(config, key))
    with pytest.raises(ValueError, match=f"`{key}=.*` is no field of LLaDAConfig, whose models have .*; leave it out"):
        setattr(config, key, DENSE[key])
    with pytest.raises(ValueError, match=f"`{key}=.*` is no field of LLaDAConfig"):
        LLaDAConfig.from_pretrained(load_golden("llada").folder, **{key: DENSE[key]})
    assert "block_causal" not in vars(LLaDA2MoeConfig()) and LLaDA2MoeConfig.block_causal is True


def test_what_was_changed_since_is_checked_before_a_model_is_made():
    config = tiny_llada().config
    config.n_kv_heads = 3
    with pytest.raises(ValueError, match="`n_heads=4` must be a multiple of `n_kv_heads=3`"):
        LLaDAModelLM(config)
    with pytest.raises(ValueError, match="`num_hidden_layers=0` is out of range"):
        LLaDAModelLM.from_pretrained(load_golden("llada").folder, num_hidden_layers=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_tuples_by_default(name):
    golden = load_golden(name)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder, return_dict=False)
    (logits,) = model(IDS)
    assert torch.equal(logits, model(IDS, return_dict=True).logits)


def test_rope_settings_are_saved_as_they_were(tmp_path):
    scaling = {"type": "yarn", "factor": 2.0}
    assert written(LLaDAConfig(rope_scaling=dict(scaling)), tmp_path)["rope_scaling"] == scaling


def test_lists_in_auto_map_are_those_of_tokenizers(tmp_path):
    targets = {"AutoTokenizer": ["tokenization_x.Slow", None]}
    config = LLaDAConfig(auto_map=targets)
    assert "auto_map" not in written(config, tmp_path)
    (tmp_path / "tokenization_x.py").write_text("")
    assert written(config, tmp_path)["auto_map"] == targets
    assert AutoConfig.from_pretrained(tmp_path).auto_map == targets


@pytest.mark.parametrize("name", CONFIGS)
def test_rope_parameters_change_in_place(name, tmp_path):
    config = CONFIGS[name](**tiny_settings())
    config.rope_parameters.update({"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0})
    config.rope_parameters["factor"] = 4.0
    assert (config.rope_theta, config.rope_scaling) == (50.0, {"rope_type": "linear", "factor": 4.0})
    assert written(config, tmp_path)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
    config.rope_parameters.setdefault("factor", 9.0)
    assert config.rope_parameters.pop("factor") == 4.0 and "factor" not in config.rope_scaling
    for other in (copy.deepcopy(config.rope_parameters), pickle.loads(pickle.dumps(config.rope_parameters))):
        assert type(other) is dict and other == config.rope_parameters
    config.rope_parameters |= {"factor": 3.0}
    del config.rope_parameters["factor"]
    config.rope_parameters["rope_type"] = "default"
    assert config.rope_scaling is None and len(config.rope_parameters) == (3 if name == "llada2_moe" else 2)
    with pytest.raises(ValueError, match="`rope_theta=-1` is out of range"):
        config.rope_parameters["rope_theta"] = -1
    config.rope_parameters.update({"rope_type": "yarn", "factor": 2.0, "beta_fast": [None]})
    with pytest.raises(ValueError, match=r"`rope_scaling\['beta_fast'\]` is \[None\]; write a finite number"):
        config.validate()


def test_routers_are_recorded_where_there_are_some():
    dense = tiny_llada()
    for model in (dense, dense.model):
        assert model._can_record_outputs.keys() == {"attentions", "hidden_states"}
        assert not model._keep_in_fp32_modules_strict
    for model in (tiny_llada_moe(), tiny_llada2_moe()):
        assert model._can_record_outputs.keys() >= {"router_indices", "router_logits"}
        assert model(IDS, output_router_logits=True).router_logits is not None
        has_bias = any("expert_bias" in key for key in model.state_dict())
        assert set(model._keep_in_fp32_modules_strict) == ({"expert_bias"} if has_bias else set())
