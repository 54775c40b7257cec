"""Compiled steps: the tokens of uncompiled ones, in a few graphs."""

import shutil

import pytest
import torch
from golden import load_golden
from tiny_models import tiny_llada
from transformers import CompileConfig

from llada import LLaDA2MoeModelLM, LLaDAModelLM


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


class Graphs:
    """A back-end that counts the graphs it is given."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph

    # a `CompileConfig` is copied, the count is not
    def __deepcopy__(self, memo):
        return self


def padded_prompts() -> dict[str, torch.Tensor]:
    ids, mask = torch.randint(0, 290, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, :5] = mask[2, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


SETTINGS = {
    "whole canvas": ({}, 1),
    "guidance": ({"cfg_scale": 0.7}, 1),
    "drawn": ({"do_sample": True, "temperature": 0.8}, 1),
    "dual": ({"kv_cache": "dual", "threshold": 0.3}, 2),
    # the second window, and from the third on one graph for any length
    "prefix": ({"kv_cache": "prefix", "threshold": 0.3}, 3),
}


@pytest.mark.parametrize(("settings", "graphs"), SETTINGS.values(), ids=SETTINGS)
def test_same_tokens_in_few_graphs(model, settings, graphs):
    torch.compiler.reset()
    counter = Graphs()
    compile_config = CompileConfig(fullgraph=True, backend=counter, mode=None)
    shape = {"max_new_tokens": 32, "block_length": 8, **settings}
    for _ in range(2):
        prompts = padded_prompts()
        torch.manual_seed(1)
        expected = model.generate(**prompts, **shape)
        torch.manual_seed(1)
        assert torch.equal(model.generate(**prompts, **shape, compile_config=compile_config), expected)
    # the second call needs no other
    assert counter.count <= graphs


def test_block_causal_models():
    torch.compiler.reset()
    model = LLaDA2MoeModelLM.from_pretrained(load_golden("llada2_moe").folder).eval()
    counter = Graphs()
    compile_config = CompileConfig(backend=counter, mode=None)
    prompt = torch.randint(0, 290, (2, 7))
    settings = {"block_length": 8, "threshold": 0.2, "eos_early_stop": False, "mask_token_id": 300}
    expected = model.generate(prompt, max_new_tokens=40, **settings)
    assert torch.equal(model.generate(prompt, max_new_tokens=40, **settings, compile_config=compile_config), expected)
    first = counter.count
    # one block, or two with the one before
    assert torch.equal(model.generate(prompt, max_new_tokens=40, **settings, compile_config=compile_config), expected)
    assert counter.count == first > 0


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")),
    ],
)
def test_backends(backend):
    torch.compiler.reset()
    model = tiny_llada(num_hidden_layers=1)
    prompt = torch.randint(0, 40, (1, 6))
    settings = {"max_new_tokens": 8, "block_length": 4, "kv_cache": "dual", "threshold": 0.3}
    compile_config = CompileConfig(backend=backend, mode=None)
    expected = model.generate(prompt, **settings)
    assert torch.equal(model.generate(prompt, **settings, compile_config=compile_config), expected)


def test_it_can_be_switched_off(model):
    counter = Graphs()
    compile_config = CompileConfig(backend=counter, mode=None)
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, compile_config=compile_config, disable_compile=True)
    assert counter.count == 0


def test_a_trace_is_saved_without_the_compiler(model, tmp_path):
    compile_config = CompileConfig(backend="eager", mode=None)
    output = model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, compile_config=compile_config, output_trace=True)
    assert "compile_config" not in output.trace[0].settings


def test_a_model_in_several_places_is_refused(monkeypatch):
    model = tiny_llada(num_hidden_layers=1)
    monkeypatch.setattr(model, "hf_device_map", {"model": "cpu", "lm_head": "disk"}, raising=False)
    with pytest.raises(ValueError, match=r"one place, and its layers are on \['cpu', 'disk'\]"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=4, compile_config=CompileConfig(backend="eager"))


@pytest.mark.parametrize(
    "settings", [{"kv_cache": "vicinity", "threshold": 0.9}, {"suffix_window": 4}], ids=["vicinity", "suffix window"]
)
def test_plans_without_fixed_shapes_are_refused(model, settings):
    with pytest.raises(ValueError, match="`compile_config` needs steps of the same shapes"):
        model.generate(
            torch.tensor([[1, 2]]),
            max_new_tokens=8,
            block_length=4,
            compile_config=CompileConfig(backend="eager", mode=None),
            **settings,
        )
