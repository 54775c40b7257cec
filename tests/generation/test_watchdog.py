"""Numbers that are none and constraints that leave nothing end in an error, under every rule and plan."""

import pytest
import torch
from tiny_models import tiny_llada, tiny_llada2_moe
from transformers import LogitsProcessor, LogitsProcessorList

from llada.generation import preset


RULES = {
    "one": {},
    "steps": {"max_denoising_steps": 3},
    "bernoulli": {"max_denoising_steps": 3, "step_schedule": "bernoulli"},
    "random": {"remasking": "random"},
    "margin": {"remasking": "margin"},
    "calibrated": {"remasking": "position_calibrated", "token_frequencies": torch.full((48,), 0.01)},
    "drawn": {"do_sample": True, "temperature": 0.7, "top_k": 5},
    "drawn order": {"remasking_temperature": 1.0},
    "rising": {"suppress_eos": "rising"},
    "ends last": {"suppress_eos": "confidence"},
    "no ends": {"suppress_eos": "logits"},
    "threshold": {"threshold": 0.0},
    "factor": {"factor": 1.5},
    "reference factor": {"factor": 1.5, "factor_compat": "fast_dllm"},
    "frechet": {"frechet_margin": 0.0},
    "entropy bound": {"entropy_bound": 1.0, "remasking": "entropy"},
    "hierarchical": {"threshold": 0.9, "low_threshold": 0.0},
    "context": {"threshold": 0.9, "threshold_relaxation": 0.3},
    "klass": {"threshold": 0.5, "kl_threshold": 0.1},
    "wino": {"threshold": 0.5, "verify_threshold": 0.9},
    "slowfast": {"threshold": 0.5, "exploration_steps": 2},
    "credit": {"threshold": 0.9, "credit_weight": 0.7},
    "prophet": {"commit_gaps": [-1.0]},
    "stable": {"stable_steps": 1, "stable_entropy": 9.0},
    "remask": {"threshold": 0.5, "remask_threshold": 0.9},
    "running": {"max_denoising_steps": 3, "running_confidence": True},
    "edit": {"threshold": 0.5, "editing_threshold": 0.0},
    "edit and move": {"threshold": 0.5, "editing_threshold": 0.0, "delete_token_id": 45, "split_token_id": 46},
    "prefix": {"kv_cache": "prefix"},
    "dual": {"kv_cache": "dual", "threshold": 0.9},
    "delayed": {"kv_cache": "delayed"},
    "window": {"suffix_window": 2},
    "daedal": {"threshold": 0.5, "initial_length": 4, "expand_threshold": 0.5},
    "guidance": {"cfg_scale": 0.5},
    "official": preset("llada", max_new_tokens=8, steps=8, block_length=8).to_diff_dict(),
    "official, random": preset("llada", max_new_tokens=8, steps=8, block_length=8, remasking="random").to_diff_dict(),
}
PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Writes(LogitsProcessor):
    """Writes a value over the logits of texts that begin with 4: the second row."""

    def __init__(self, value: float, tokens: slice = slice(None)):
        self.value, self.tokens = value, tokens
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        # several positions of each step: far more than any plan asks for
        assert self.calls < 2000, "it does not end"
        scores = scores.clone()
        scores[input_ids[:, 0] == 4, self.tokens] = self.value
        return scores


KINDS = {
    "nan": (Writes(float("nan")), "the logits are NaN at"),
    "one nan": (Writes(float("nan"), slice(7, 8)), "the logits are NaN at"),
    "infinity": (Writes(float("inf"), slice(7, 8)), "the logits are (infinity|NaN) at"),
    "nothing": (Writes(float("-inf")), "minus infinity for every token at .* The constraints leave no token"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_says_what_it_was_given(rule, kind):
    settings = RULES[rule]
    processor, message = KINDS[kind]
    processor.calls = 0
    row = PROMPT[1:] if settings.get("kv_cache") == "delayed" else PROMPT
    arguments = {"max_new_tokens": 8, "block_length": 4, "pad_token_id": 42} | settings
    with pytest.raises(ValueError, match=rf"in rows \[{len(row) - 1}\].*{message}"):
        tiny_llada(num_hidden_layers=1).generate(row, logits_processor=LogitsProcessorList([processor]), **arguments)


@pytest.mark.parametrize("settings", [{}, {"kv_cache": None}, {"editing_threshold": 0.5}, {"threshold": None}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_of_llada2(settings, kind):
    processor, message = KINDS[kind]
    processor.calls = 0
    with pytest.raises(ValueError, match=rf"in rows \[1\].*{message}"):
        tiny_llada2_moe().generate(
            PROMPT, logits_processor=LogitsProcessorList([processor]), max_new_tokens=8, block_length=4, **settings
        )


@pytest.mark.parametrize("build", [tiny_llada, tiny_llada2_moe])
def test_weights_that_are_not_numbers(build):
    model = build()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match=r"Step 0, in block 0, decided nothing in rows \[0, 1\].*Look at the weights"):
        model.generate(PROMPT, max_new_tokens=8, block_length=4)
    with pytest.raises(ValueError, match=r"decided nothing in rows \[0\]"):
        model.infill(torch.tensor([[1, 40, 3]]), block_length=4)


def test_guidance_that_overflows():
    with pytest.raises(ValueError, match="Look at the weights, at the dtype .* at `cfg_scale`"):
        tiny_llada().generate(PROMPT, max_new_tokens=8, cfg_scale=3e38)


def test_a_position_that_is_forbidden_for_a_while_only():
    """A step needs one position at which it can decide something, not all."""

    class Waits(LogitsProcessor):
        def __call__(self, input_ids, scores):
            is_open = (input_ids != 40).all(1, keepdim=True)
            return torch.where(is_open, scores, -torch.inf)

    for settings in ({}, {"threshold": 0.5}):
        sequences = tiny_llada().generate(
            PROMPT, logits_processor=LogitsProcessorList([Waits()]), max_new_tokens=6, **settings
        )
        assert not (sequences == 40).any()
