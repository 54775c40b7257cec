"""Rules with a state of their own, and plans of what is computed, against plain loops written from their papers."""

import pytest
import torch
from naive_samplers import NaiveSampler
from tiny_models import peaked_llada


LENGTH, BLOCK = 20, 10


def vicinity(look, warmup=1, interval=None):
    def computed(step, start, end, previous):
        if step < warmup or (interval and step % interval == 0):
            return range(5 + LENGTH)
        return range(max(start - look, 0), min(end + look, 5 + LENGTH))

    return computed


def delayed(interval, warmup=2):
    def computed(step, start, end, previous):
        return range(5 + LENGTH) if step < warmup or step % interval == 0 else previous

    return computed


CASES = {
    "klass": ({"threshold": 0.5, "kl_threshold": 0.1}, lambda s: s.klass(0.5, 0.1)),
    "klass, history 1": ({"threshold": 0.4, "kl_threshold": 0.3, "kl_history": 1}, lambda s: s.klass(0.4, 0.3, 1)),
    "klass, history 3": ({"threshold": 0.4, "kl_threshold": 0.3, "kl_history": 3}, lambda s: s.klass(0.4, 0.3, 3)),
    "hierarchical": ({"threshold": 0.9, "low_threshold": 0.5}, lambda s: s.hierarchical(0.9, 0.5)),
    "streaming": (
        {"threshold": 0.9, "threshold_relaxation": 0.4, "suffix_window": 4},
        lambda s: s.streaming(0.9, 0.4, 4),
    ),
    "suffix window of nothing": ({"threshold": 0.7, "suffix_window": 0}, lambda s: s.streaming(0.7, 0.0, 0)),
    "context threshold": ({"threshold": 0.9, "threshold_relaxation": 0.4}, lambda s: s.streaming(0.9, 0.4, 99)),
    "credit": ({"threshold": 0.8, "credit_weight": 0.7}, lambda s: s.credit(0.8, 0.7, 0.2, 0.8)),
    "strong credit": (
        {"threshold": 0.8, "credit_weight": 3.0, "credit_exponent": 0.5, "credit_decay": 0.9},
        lambda s: s.credit(0.8, 3.0, 0.5, 0.9),
    ),
    "wino": ({"threshold": 0.3, "verify_threshold": 0.6}, lambda s: s.wino(0.3, 0.6)),
    "strict wino": ({"threshold": 0.2, "verify_threshold": 0.99}, lambda s: s.wino(0.2, 0.99)),
    "remask": ({"threshold": 0.4, "remask_threshold": 0.7}, lambda s: s.remask(0.4, 0.7)),
    "slowfast": ({"threshold": 0.8, "exploration_steps": 3}, lambda s: s.slow_fast(0.8, 3, 0.3, 2, 1.0)),
    "slowfast, one step": (
        {"threshold": 0.5, "exploration_steps": 1, "span_threshold": 0.6},
        lambda s: s.slow_fast(0.5, 1, 0.6, 2, 1.0),
    ),
    "slowfast as in the paper": (
        {"threshold": 0.8, "exploration_steps": 6, "span_stops_early": True, "span_threshold": 0.6},
        lambda s: s.slow_fast(0.8, 6, 0.6, 2, 1.0, stops_early=True),
    ),
    "slowfast, wide window": (
        {"threshold": 0.8, "exploration_steps": 4, "span_window": 3, "span_deviation": 0.4, "span_threshold": 0.7},
        lambda s: s.slow_fast(0.8, 4, 0.7, 3, 0.4),
    ),
    "prophet": ({"commit_gaps": [3.0, 2.5, 2.0]}, lambda s: s.prophet([3.0, 2.5, 2.0])),
    "stable": ({"stable_steps": 1, "stable_entropy": 2.0}, lambda s: s.stable(1, 2.0)),
    "stable for long": ({"stable_steps": 2, "stable_entropy": 2.5}, lambda s: s.stable(2, 2.5)),
    "vicinity": (
        {"threshold": 0.7, "kv_cache": "vicinity", "vicinity": 2},
        lambda s: s.cached(0.7, vicinity(2)),
    ),
    "vicinity with refreshes": (
        {"threshold": 0.8, "kv_cache": "vicinity", "vicinity": 3, "cache_warmup": 2, "refresh_interval": 3},
        lambda s: s.cached(0.8, vicinity(3, 2, 3)),
    ),
    "delayed": ({"threshold": 0.8, "kv_cache": "delayed", "refresh_interval": 4}, lambda s: s.cached(0.8, delayed(4))),
    "delayed, rarely refreshed": ({"threshold": 0.9, "kv_cache": "delayed"}, lambda s: s.cached(0.9, delayed(8))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_answers_of_plain_loops(case):
    settings, naive = case
    plain = set()
    for seed in range(4):
        model = peaked_llada(seed)
        prompt = torch.randint(0, 40, (1, 5))
        expected = NaiveSampler(model, prompt[0].tolist(), LENGTH, BLOCK)
        naive(expected)
        lengths = []
        hook = model.model.register_forward_pre_hook(
            lambda module, args, kwargs, lengths=lengths: lengths.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )
        output = model.generate(
            prompt,
            max_new_tokens=LENGTH,
            block_length=BLOCK,
            eos_early_stop=False,
            confidence_dtype="float64",
            return_dict_in_generate=True,
            **settings,
        )
        hook.remove()
        assert output.sequences[0].tolist() == expected.canvas
        assert output.num_forwards == expected.forwards
        # and no position more
        assert sum(lengths) == expected.positions
        other = model.generate(
            prompt,
            max_new_tokens=LENGTH,
            block_length=BLOCK,
            eos_early_stop=False,
            return_dict_in_generate=True,
            threshold=settings.get("threshold"),
        )
        plain.add((output.num_forwards, *expected.canvas) == (other.num_forwards, *other.sequences[0].tolist()))
    # the rule does something that a threshold alone, or one token per step, does not
    assert False in plain
