"""What changes in what a checkpoint writes, where something is changed around it."""

import pytest
import torch
from tiny_models import peaked_llada

from llada.evaluation.numerics import Record, Surroundings, compare, find_differences, halfway
from llada.generation import Trace
from llada.generation.listeners.trace import TraceEvent


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
MASK = 40
SETTINGS = {"max_new_tokens": 12, "steps": 6, "block_length": 12}


def trace(tokens: list[int], steps: list[int], final: int = 5) -> Trace:
    """An answer to the prompt `[1]`."""
    events = [
        TraceEvent(
            step=step,
            block=0,
            positions=[place + 1 for place, own in enumerate(steps) if own == step],
            tokens=[token for token, own in zip(tokens, steps, strict=True) if own == step],
            confidence=[0.5] * steps.count(step),
        )
        for step in sorted(set(steps))
    ]
    return Trace([1, *[MASK] * 4], [1, *tokens][:final], MASK, events)


def test_what_is_counted():
    logits = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, 0, 1], [1, 0, 0]])
    others = logits + torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0, 1.5, 0], [0, 0, 0]])
    expected = Record([trace([5, 6, 7, 8], [0, 0, 1, 1]), trace([5, 6, 7, 8], [0, 1, 2, 3])], list(logits.split(2)))
    # one token and two steps; an answer that ends earlier
    found = Record([trace([5, 6, 9, 8], [0, 1, 0, 1]), trace([5, 6, 7, 8], [0, 1, 2, 3], 3)], list(others.split(2)))
    difference = compare("other", expected, found)
    assert (difference.largest_logit, difference.mean_logit) == pytest.approx((1.5, 2 / 12))
    assert difference.predictions == 1 / 4
    assert (difference.tokens, difference.steps, difference.answers) == (3 / 8, 4 / 8, 1.0)
    assert (difference.num_positions, difference.num_answers) == (4, 2)
    same = compare("same", expected, expected)
    assert not any((same.largest_logit, same.predictions, same.steps, same.tokens, same.answers))
    assert halfway(expected.traces[1]) == [1, 5, 6, MASK, MASK]


def test_dtypes_and_batches():
    model = peaked_llada(0)
    loaded: list[torch.dtype | None] = []

    def load(dtype):
        loaded.append(dtype)
        return peaked_llada(0).to(dtype)

    variants = {
        "narrow": Surroundings(dtype=torch.bfloat16),
        "again": Surroundings(),
        "together": Surroundings(together=True),
        "narrow, together": Surroundings(dtype=torch.bfloat16, together=True),
        "wide": Surroundings(dtype=torch.float32, attention="eager"),
    }
    found = {entry.name: entry for entry in find_differences(load, PROMPTS, variants, **SETTINGS)}
    # each dtype once
    assert loaded == [None, torch.bfloat16]
    assert found["again"].largest_logit == 0
    for name in ("again", "together", "wide"):
        assert found[name].largest_logit < 1e-3 and not any((found[name].steps, found[name].tokens))
    assert found["together"].largest_logit > 0
    # the logits by hand: all of the prompt that has one token
    canvas = halfway(model.generate(torch.tensor(PROMPTS[2:]), output_trace=True, **SETTINGS).trace[0])
    with torch.no_grad():
        change = model(torch.tensor([canvas])).logits - peaked_llada(0).bfloat16()(torch.tensor([canvas])).logits
    (alone,) = find_differences(load, PROMPTS[2:], {"narrow": variants["narrow"]}, **SETTINGS)
    chosen = change.abs()[0, torch.tensor(canvas) == MASK]
    assert (alone.largest_logit, alone.mean_logit) == pytest.approx((chosen.max().item(), chosen.mean().item()))
    assert alone.num_positions == canvas.count(MASK) == len(chosen)


def test_draws_do_not_depend_on_the_batch():
    settings = {**SETTINGS, "temperature": 1.0, "remasking": "random"}
    variants = {"together": Surroundings(together=True)}
    (found,) = find_differences(lambda dtype: peaked_llada(0), PROMPTS, variants, seed=3, **settings)
    assert found.tokens == found.steps == 0


def test_surroundings_are_put_back(monkeypatch):
    model, threads = peaked_llada(0), torch.get_num_threads()
    numbers: list[int] = []
    # more threads than free cores wait for each other
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    variants = {
        "other": Surroundings(attention="eager", num_threads=threads + 1),
        "wrong": Surroundings(attention="x"),
    }
    found = find_differences(lambda dtype: model, PROMPTS, variants, **SETTINGS)
    assert next(found).name == "other"
    with pytest.raises(ValueError, match="x"):
        next(found)
    assert numbers == [threads, threads + 1, threads, threads] and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_nothing_to_compare_with(prompts):
    with pytest.raises(ValueError, match="give prompts of at least one token"):
        next(find_differences(lambda dtype: peaked_llada(0), prompts, {}, **SETTINGS))
