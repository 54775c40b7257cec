"""Threshold and caches against the answers of Fast-dLLM v1."""

import json

import pytest
import torch
from golden import FIXTURES, load_golden

from llada import LLaDAModelLM
from llada.generation import preset


CASES = [
    case
    for case in json.loads((FIXTURES / "llada" / "cases.json").read_text(encoding="utf-8"))
    if case["reference"] == "fast_dllm_v1"
]


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_stored_answers(model, golden_llada, case):
    config = preset(
        "fast-dllm",
        max_new_tokens=case["gen_length"],
        steps=case["steps_total"],
        block_length=case["block_length"],
        threshold=case["threshold"],
        kv_cache=None if case["cache"] == "none" else case["cache"],
    )
    prompt = golden_llada.expected[f"generate.{case['name']}.prompt"]
    output = model.generate(prompt, config, return_dict_in_generate=True)
    assert torch.equal(output.sequences, golden_llada.expected[f"generate.{case['name']}.sequences"])
    assert output.num_forwards <= case["forwards"]


@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_a_row_does_not_depend_on_its_batch(model, kv_cache, cfg_scale):
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(0, 290, (1, length), generator=generator) for length in (9, 4, 6)]
    batch, attention_mask = torch.full((3, 9), 299), torch.zeros(3, 9, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, 9 - row.shape[1] :], attention_mask[index, 9 - row.shape[1] :] = row, 1
    settings = {
        "max_new_tokens": 24,
        "block_length": 8,
        "kv_cache": kv_cache,
        "threshold": 0.3,
        "cfg_scale": cfg_scale,
    }
    together = model.generate(batch, attention_mask=attention_mask, **settings)
    for index, row in enumerate(rows):
        assert torch.equal(together[index, 9:], model.generate(row, **settings)[0, row.shape[1] :])


@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
def test_one_block_per_forward_pass_is_exact(model, kv_cache):
    prompt = torch.randint(0, 290, (2, 6))
    settings = {"max_new_tokens": 16, "block_length": 4, "max_denoising_steps": 1}
    exact = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, kv_cache=kv_cache, **settings), exact)


@pytest.mark.parametrize(
    ("kv_cache", "computed"), [(None, [22] * 6), ("prefix", [22, 16, 22, 8]), ("dual", [22, 8, 22, 8])]
)
def test_what_is_computed(model, kv_cache, computed):
    lengths = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(
        torch.randint(0, 290, (1, 6)), max_new_tokens=16, block_length=8, max_denoising_steps=2, kv_cache=kv_cache
    )
    hook.remove()
    assert lengths == (computed if kv_cache else [22] * 4)


def test_a_threshold_commits_at_least_one_and_at_most_all(model):
    prompt = torch.randint(0, 290, (1, 6))
    settings = {"max_new_tokens": 16, "block_length": 8, "return_dict_in_generate": True, "eos_early_stop": False}
    assert model.generate(prompt, threshold=1.0, **settings).num_forwards == 16
    assert model.generate(prompt, threshold=0.0, **settings).num_forwards == 2
    # with a plan, at least the share of a step
    assert model.generate(prompt, threshold=1.0, max_denoising_steps=4, **settings).num_forwards == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache": "block"}, 'full attention; use "prefix" or "dual"'),
        ({"kv_cache": "static"}, "`kv_cache` must be one of"),
        ({"threshold": 1.5}, "`threshold` is a probability"),
        ({"editing_threshold": 0.5}, "set `threshold`, too"),
        ({"editing_threshold": -1.0, "threshold": 0.5}, "`editing_threshold` is a probability"),
        ({"confidence_dtype": "int8"}, "`confidence_dtype` must be one of"),
        ({"rng_compat": "llada", "eos_early_stop": False, "kv_cache": "dual"}, "has no cache"),
        ({"cache": object()}, "`cache` continues a block-causal cache"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_refusals(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, **settings)


def test_caches_need_aligned_masks(model):
    canvas = torch.tensor([[1, 300, 3], [300, 2, 3]])
    with pytest.raises(ValueError, match="first masks stand at positions 0 to 1"):
        model.infill(canvas, kv_cache="dual")
    assert not (model.infill(canvas[:1], kv_cache="dual") == 300).any()
