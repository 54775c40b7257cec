"""
Whatever the settings and the canvas, a call ends with text that holds no mask, or with a `ValueError`.

    HYPOTHESIS_PROFILE=thorough python -m pytest tests/generation/test_any_settings.py

runs 10,000 examples.
"""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_llada, tiny_llada2_moe
from transformers import LogitsProcessor, LogitsProcessorList

from llada.generation import preset
from llada.generation.configuration_diffusion import SETTINGS, STOCK
from llada.generation.presets import PRESETS


EXAMPLES = {"quick": 100, "thorough": 10_000}[os.environ.get("HYPOTHESIS_PROFILE", "quick")]
MASK, END, SIZE = 10, 11, 12
# what no call takes, with a plan for 24 positions and at most 20 further steps in each of 24 blocks
MOST_FORWARDS = 1000

floats = st.one_of(
    st.floats(0, 1),
    st.floats(),
    st.sampled_from(
        [0.0, 1.0, 0.5, 5e-324, 1e-38, 1e38, 3e38, 1e39, float("nan"), float("inf"), -1.0, -0.0, True, "1"]
    ),
)
counts = st.one_of(
    st.integers(1, 6), st.integers(-2, 40), st.sampled_from([2**16, 2**31 - 1, 2**31, 10**30, 1.5, True])
)
tokens = st.one_of(st.integers(0, SIZE - 1), st.sampled_from([-1, SIZE, 10**9]))
fields = SETTINGS | STOCK
values = {name: floats for name, field in fields.items() if field.kind is float}
values |= {name: counts for name, field in fields.items() if field.kind is int and not name.endswith("_id")}
values |= {name: st.booleans() for name, field in fields.items() if field.kind is bool}
values |= {
    name: st.one_of(floats, st.lists(floats, max_size=3)) for name, field in fields.items() if field.item is float
}
values |= {
    name: st.one_of(counts, st.lists(counts, max_size=3)) for name, field in fields.items() if field.item is int
}
values |= {
    "max_post_steps": st.one_of(st.integers(-1, 20), st.just(10**9)),
    "max_new_tokens": st.one_of(st.integers(1, 9), st.integers(-1, 99), st.sampled_from([10**9, 10**30])),
    "num_return_sequences": st.integers(0, 3),
    "confidence_dtype": st.sampled_from(["float32", "float64", "float16"]),
    "do_sample": st.booleans(),
    "factor_compat": st.just("fast_dllm"),
    "kv_cache": st.sampled_from(["prefix", "dual", "vicinity", "delayed", "block", "static"]),
    "remasking": st.sampled_from(["low_confidence", "margin", "entropy", "random", "best"]),
    "rng_compat": st.just("llada"),
    "step_schedule": st.sampled_from(["dream", "bernoulli"]),
    "suppress_eos": st.sampled_from(["logits", "confidence", "rising"]),
    "bad_words_ids": st.lists(st.lists(tokens, max_size=2), max_size=2),
    "suppress_tokens": st.one_of(st.lists(tokens, max_size=3), st.just(list(range(SIZE)))),
    **{
        name: tokens for name in ("eos_token_id", "pad_token_id", "mask_token_id", "delete_token_id", "split_token_id")
    },
}
# settings that refine one another come together, else nearly all is refused
GROUPS = (
    ("threshold", "low_threshold"),
    ("threshold", "threshold_relaxation", "suffix_window"),
    ("threshold", "kl_threshold", "kl_history"),
    ("threshold", "verify_threshold"),
    ("threshold", "exploration_steps", "span_threshold", "span_window", "span_deviation", "span_stops_early"),
    ("threshold", "editing_threshold", "max_post_steps"),
    ("threshold", "remask_threshold"),
    ("running_confidence", "max_denoising_steps"),
    ("factor", "factor_compat"),
    ("frechet_margin", "max_denoising_steps"),
    ("entropy_bound", "steps"),
    ("threshold", "initial_length", "length_step", "length_threshold", "expand_threshold", "expand_factor"),
    ("length_candidates",),
    ("credit_weight", "credit_decay", "credit_exponent"),
    ("commit_gaps",),
    ("stable_steps", "stable_entropy"),
    ("step_schedule", "max_denoising_steps"),
    ("remasking", "remasking_temperature"),
    ("suppress_eos", "eos_weight"),
    ("kv_cache", "vicinity", "refresh_interval", "cache_warmup"),
    ("do_sample", "temperature", "top_k", "top_p", "min_p"),
    ("cfg_scale",),
    ("guidance_scale",),
)


@st.composite
def any_settings(draw):
    names = {"max_new_tokens", "block_length"} | set(draw(st.sampled_from(GROUPS)))
    names |= set(draw(st.lists(st.sampled_from(sorted(values)), max_size=3)))
    # half of them are such that most go together
    modest = draw(st.booleans())
    chosen = {}
    for name in sorted(names):
        value = values[name]
        if modest and value is floats:
            value = st.floats(1, 3) if fields[name].least == 1 else st.floats(0, 1)
        elif modest and value is counts:
            value = st.integers(1, 6)
        chosen[name] = draw(value)
    return chosen


class Interferes(LogitsProcessor):
    """Writes a value over some logits, everywhere or at texts of even length."""

    def __init__(self, value, column, everywhere):
        self.value, self.column, self.everywhere = value, column, everywhere

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        if self.everywhere or input_ids.shape[1] % 2 == 0:
            scores[:, self.column] = self.value
        return scores


processors = st.none() | st.builds(
    Interferes,
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, 0.0]),
    st.sampled_from([slice(None), 0, END, slice(0, SIZE - 1)]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def models():
    sizes = {"vocab_size": SIZE, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "mask_token_id": MASK, "max_position_embeddings": 24}
    sizes |= {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": END, "initializer_range": 0.6}
    models = [tiny_llada(**sizes), tiny_llada2_moe(**sizes, first_k_dense_replace=1)]
    for model in models:
        model.register_forward_pre_hook(count)
    return models


def count(model, _):
    model.num_forwards += 1
    assert model.num_forwards < MOST_FORWARDS, "it does not end"


@given(
    model=st.integers(0, 1),
    fills=st.booleans(),
    canvas=st.lists(st.lists(st.integers(-1, SIZE), min_size=5, max_size=5), min_size=1, max_size=3),
    mask=st.none() | st.lists(st.integers(0, 5), min_size=3, max_size=3),
    processor=processors,
    chosen=any_settings(),
    name=st.none() | st.sampled_from(sorted(PRESETS)),
    bad_weight=st.sampled_from([None] * 9 + [float("nan"), float("inf"), 1e38]),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_call_ends_with_text_or_says_why_not(
    models, model, fills, canvas, mask, processor, chosen, name, bad_weight
):
    model = models[model]
    model.num_forwards = 0
    given = torch.tensor(canvas).clamp(0, SIZE - 1)
    if not fills:
        given = given.masked_fill(given == MASK, 3)
    elif not (given == MASK).any():
        given[:, 2] = MASK
    padding = None
    if mask is not None:
        padding = (torch.arange(5) >= torch.tensor(mask[: len(given)])[:, None]).long()
    weight = model.lm_head.weight.data
    kept = weight.clone()
    if bad_weight is not None:
        weight[3] = bad_weight
    call = model.infill if fills else model.generate
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = None if name is None else preset(name, max_new_tokens=6, block_length=3)
            output = call(
                given,
                config,
                attention_mask=padding,
                logits_processor=None if processor is None else LogitsProcessorList([processor]),
                **chosen,
            )
    except ValueError as error:
        # it says something
        assert len(str(error)) > 20
        return
    finally:
        weight.copy_(kept)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    is_text = torch.ones_like(sequences, dtype=torch.bool)
    if padding is not None:
        repeats = len(sequences) // len(given)
        is_text[:, :5] = padding.repeat_interleave(repeats, dim=0).bool()
    assert not (is_text & (sequences == chosen.get("mask_token_id", MASK))).any()
    assert ((sequences >= 0) & (sequences < SIZE)).all()
