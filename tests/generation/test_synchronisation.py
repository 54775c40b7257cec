"""Beside the forward pass, a step waits for the device once at most and makes nothing of vocabulary times length."""

import pytest
import torch
from tiny_models import tiny_llada

from benchmarks.counters import DispatchCounter
from llada import LLaDA2MoeConfig, LLaDA2MoeModelLM


SETTINGS = {
    "quota": {},
    "whole canvas": {"eos_early_stop": False},
    "prefix": {"kv_cache": "prefix"},
    "dual": {"kv_cache": "dual"},
    "threshold": {"threshold": 1.0},
    "guidance": {"cfg_scale": 0.5},
    "drawn": {"do_sample": True, "temperature": 0.7, "top_k": 5},
    "ends last": {"suppress_eos": "confidence"},
    "no ends": {"suppress_eos": "logits"},
    "entropy": {"remasking": "entropy"},
    "margin": {"remasking": "margin"},
    "as published": {"rng_compat": "llada", "eos_early_stop": False},
}


def count(model, prompts: dict[str, torch.Tensor], steps: int, **settings) -> tuple[DispatchCounter, int]:
    with DispatchCounter() as counter:
        output = model.generate(
            **prompts,
            max_new_tokens=32,
            block_length=16,
            max_denoising_steps=steps,
            return_dict_in_generate=True,
            **settings,
        )
    return counter, output.num_forwards


def prompts(batch: int) -> dict[str, torch.Tensor]:
    ids, mask = torch.randint(0, 40, (batch, 8)), torch.ones(batch, 8, dtype=torch.long)
    for row in range(1, batch):
        mask[row, :row] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_waits_once(settings, batch):
    model = tiny_llada()
    given = prompts(batch)
    (few, few_steps), (many, many_steps) = (count(model, given, steps, **settings) for steps in (4, 16))
    # what differs are steps: both have as many blocks
    assert many_steps - few_steps == 24
    assert (many.waits - few.waits).total() <= 24


def test_a_step_of_a_block_causal_model_waits_once():
    config = LLaDA2MoeConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # dense throughout: experts are gathered by what the router says
        first_k_dense_replace=2,
        mask_token_id=40,
        eos_token_id=42,
        pad_token_id=42,
        initializer_range=0.2,
    )
    model = LLaDA2MoeModelLM(config).eval()
    for settings in ({}, {"editing_threshold": 0.9, "max_post_steps": 0}):
        runs = [count(model, prompts(2), steps, threshold=1.0, **settings) for steps in (4, 16)]
        (few, few_steps), (many, many_steps) = runs
        assert many_steps > few_steps
        assert (many.waits - few.waits).total() <= many_steps - few_steps


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "as published"])
def test_nothing_is_as_large_as_vocabulary_times_length(name):
    vocab_size, length, block_length = 2048, 8 + 32, 16
    model = tiny_llada(vocab_size=vocab_size)
    counter, _ = count(model, prompts(1), 8, **SETTINGS[name])
    passes = 2 if "cfg_scale" in SETTINGS[name] else 1
    assert counter.largest <= passes * block_length * vocab_size < passes * length * vocab_size


def test_the_published_noise_is():
    counter, _ = count(tiny_llada(vocab_size=2048), prompts(1), 8, **SETTINGS["as published"], do_sample=True)
    assert counter.largest == 40 * 2048
