"""
Whatever stands in config.json and in the header of a file, a checkpoint loads right or is refused.

    HYPOTHESIS_PROFILE=thorough python -m pytest tests/modeling_llada/test_any_checkpoint.py
"""

import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from golden import load_golden
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from llada import ILLaDAForCausalLM, LLaDA2MoeModelLM, LLaDAModelLM, LLaDAMoEModelLM


# not the Auto classes, in which an unknown `model_type` ends in errors of their own
CLASSES = {
    "llada": LLaDAModelLM,
    "illada": ILLaDAForCausalLM,
    "llada_moe": LLaDAMoEModelLM,
    "llada2_moe": LLaDA2MoeModelLM,
}
# of each test, for each family
EXAMPLES = {"quick": 12, "thorough": 1_000}[os.environ.get("HYPOTHESIS_PROFILE", "quick")]
IDS = torch.arange(12)[None]

BUDGET = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

# names that transformers reads from a configuration or that are methods of it, beside the fields
OTHER_KEYS = (
    "attention_bias attn_implementation auto_map block_causal block_size cls dtype embedding_size expert_capacity "
    "head_dim id2label is_causal is_decoder label2id layer_types max_length model_type name_or_path num_labels "
    "output_attentions output_hidden_states per_layer_config quantization_config return_dict rope_parameters "
    "rotary_dim self sliding_window temperature tie_word_embeddings to_dict torch_dtype transformers_weights "
    "use_qk_norm validate"
).split()
WORDS = ["bfloat16", "default", "eager", "factor", "linear", "llama3", "rope_type", "sdpa", "silu", "type", "yarn"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 16, 32, 64, 320, 10**6, 10**400])
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=4,
)


@cache
def published(name: str) -> str:
    return (load_golden(name).folder / "config.json").read_text(encoding="utf-8")


@cache
def stored(name: str) -> bytes:
    return (load_golden(name).folder / "model.safetensors").read_bytes()


@cache
def expected(name: str) -> dict[str, torch.Tensor]:
    return CLASSES[name].from_pretrained(load_golden(name).folder).state_dict()


@contextmanager
def checkpoint(config: str, tensors: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        (Path(folder) / "model.safetensors").write_bytes(tensors)
        yield Path(folder)


@pytest.mark.parametrize("name", CLASSES)
@BUDGET
@given(data=st.data())
def test_any_config_json(name, data):
    """What loads computes with finite numbers, and its configuration is saved as it is read again."""
    content = json.loads(published(name))
    keys = sorted({*content, *OTHER_KEYS, *(field.name for field in fields(CLASSES[name].config_class))})
    names = st.sampled_from(keys) | st.text(max_size=3)
    changes = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    for key in data.draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        content.pop(key, None)
    content |= changes
    with checkpoint(json.dumps(content), stored(name)) as folder:
        try:
            model = CLASSES[name].from_pretrained(folder)
        except ValueError as error:
            # a key, by either of its names, or what transformers calls it
            pairs = CLASSES[name].config_class.attribute_map.items()
            words = [*content, *(word for pair in pairs for word in pair), "config.json", "quantization config"]
            assert any(str(word) in str(error) for word in words), error
            return
        outputs = model(IDS, return_dict=True)
        assert outputs.logits.isfinite().all()
        model.config.save_pretrained(folder / "once")
        type(model.config).from_pretrained(folder / "once").save_pretrained(folder / "twice")
        once, twice = (json.loads((folder / part / "config.json").read_text()) for part in ("once", "twice"))
        assert json.dumps(once) == json.dumps(twice)


@pytest.mark.parametrize("name", CLASSES)
@BUDGET
@given(data=st.data())
def test_any_header(name, data):
    """What loads has the weights of the file: what was changed in it changed nothing."""
    whole = stored(name)
    start = 8 + int.from_bytes(whole[:8], "little")
    header, weights = json.loads(whole[8:start]), whole[start:]
    key = data.draw(st.sampled_from(sorted(key for key in header if key != "__metadata__")))
    entry = header[key]
    kinds = ["dtype", "shape", "offsets", "name", "drop", "twice", "value", "bytes", "cut", "size"]
    change = data.draw(st.sampled_from(kinds))
    if change == "dtype":
        entry["dtype"] = data.draw(st.sampled_from(["BOOL", "C64", "F16", "F64", "F8_E4M3", "I32", "U32", "U8", "X"]))
    elif change == "shape":
        entry["shape"] = data.draw(st.lists(st.integers(-1, 400), max_size=3) | st.just(entry["shape"][::-1] + [1]))
    elif change == "offsets":
        entry["data_offsets"] = data.draw(st.lists(st.integers(-1, len(weights) + 1), max_size=3))
    elif change == "name":
        new = st.text(max_size=8) | st.sampled_from([f"{key}.x", f"net.{key}", key.removesuffix(".weight")])
        header[data.draw(new)] = header.pop(key)
    elif change == "drop":
        del header[key]
    elif change == "twice":
        header[f"{key}.copy"] = copy.deepcopy(entry)
    elif change == "value":
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(VALUES)
    text = json.dumps(header).encode()
    if change == "bytes":
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.binary(min_size=1, max_size=3)) + text[at + 1 :]
    size = data.draw(st.integers(0, 2**64 - 1)) if change == "size" else len(text)
    content = size.to_bytes(8, "little") + text + weights
    if change == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    with checkpoint(published(name), content) as folder:
        try:
            model = CLASSES[name].from_pretrained(folder)
        except (ValueError, SafetensorError):
            return
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected(name)[key]), key
