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
# a step commits what the rule says, so that runs differ in more than their steps
ADAPTIVE = {
    "factor": {"factor": 1.0},
    "reference factor": {"factor": 1.0, "factor_compat": "fast_dllm"},
    "frechet": {"frechet_margin": 0.1},
    "entropy bound": {"entropy_bound": 0.1, "remasking": "entropy"},
    "hierarchical": {"threshold": 0.9, "low_threshold": 0.5},
    "context": {"threshold": 0.9, "threshold_relaxation": 0.3},
    "klass": {"threshold": 0.5, "kl_threshold": 0.1},
    "wino": {"threshold": 0.5, "verify_threshold": 0.9},
    "slowfast": {"threshold": 0.9, "exploration_steps": 2, "span_threshold": 0.3},
    "credit": {"threshold": 0.9, "credit_weight": 0.7},
    "prophet": {"commit_gaps": [9.0, 8.0]},
    "stable": {"stable_steps": 1, "stable_entropy": 0.1},
    "rising": {"suppress_eos": "rising"},
    "random": {"remasking": "random"},
    "drawn order": {"remasking_temperature": 0.5},
    "bernoulli": {"step_schedule": "bernoulli"},
    "calibrated": {"remasking": "position_calibrated", "token_frequencies": torch.full((48,), 0.01)},
    "remask": {"threshold": 0.5, "remask_threshold": 0.3},
    "vicinity": {"kv_cache": "vicinity", "vicinity": 2, "refresh_interval": 3, "threshold": 0.9},
    "window": {"suffix_window": 4, "kv_cache": "dual", "threshold": 0.9},
    "delayed": {"kv_cache": "delayed", "refresh_interval": 4},
    # one pass settles the length
    "daedal": {
        "threshold": 0.9,
        "initial_length": 6,
        "length_threshold": 0.0,
        "length_window": 4,
        "expand_threshold": 0.5,
        "expand_factor": 3,
    },
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


@pytest.mark.parametrize("settings", ADAPTIVE.values(), ids=ADAPTIVE)
def test_a_step_of_any_rule_waits_once(settings):
    """Two long blocks take more steps than two short ones, and what a call and a block cost once is the same."""
    model = tiny_llada()
    given = prompts(1 if settings.get("kv_cache") == "delayed" else 3)
    runs = []
    for block_length in (6, 24):
        with DispatchCounter() as counter:
            output = model.generate(
                **given,
                max_new_tokens=2 * block_length,
                block_length=block_length,
                eos_early_stop=False,
                return_dict_in_generate=True,
                **settings,
            )
        # a step that reveals nothing is not computed, but has asked
        steps = 2 * block_length if settings.get("step_schedule") == "bernoulli" else output.num_forwards
        runs.append((steps, counter.waits.total()))
    (few_steps, few_waits), (many_steps, many_waits) = runs
    assert many_steps - few_steps > 2
    assert many_waits - few_waits <= many_steps - few_steps


@pytest.mark.parametrize(
    "settings",
    [
        {"max_denoising_steps": 12},
        {"threshold": 1.0, "max_denoising_steps": 12},
        {"threshold": 1.0, "kl_threshold": 0.1, "max_denoising_steps": 12},
        {"suppress_eos": "rising", "max_denoising_steps": 12},
        {"commit_gaps": [99.0], "max_denoising_steps": 12},
    ],
)
def test_rows_with_different_plans_wait_once(settings):
    """Rows with 12 and 20 masks: in every step each commits another number."""
    ids = torch.randint(0, 40, (2, 30))
    ids[0, 5:25] = ids[1, 9:21] = 40
    few = {name: 3 if name == "max_denoising_steps" else value for name, value in settings.items()}
    runs = []
    for given in (few, settings):
        with DispatchCounter() as counter:
            output = tiny_llada().infill(ids, block_length=24, return_dict_in_generate=True, **given)
        runs.append((output.num_forwards, counter.waits.total()))
    (few_steps, few_waits), (many_steps, many_waits) = runs
    assert (few_steps, many_steps) == (3, 12)
    assert many_waits - few_waits <= many_steps - few_steps


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
