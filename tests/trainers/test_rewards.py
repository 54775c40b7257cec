"""Rewards that come with the package."""

import sys

import pytest

from llada.trainers.rewards import exact_match, reasoning_gym_task


def test_an_answer_is_right_or_wrong() -> None:
    said = [" 4\n", "4.", [{"role": "assistant", "content": "5"}]]
    assert exact_match(said, ["4", "4", 5], prompts=[]) == [1.0, 0.0, 1.0]


def test_tasks_of_reasoning_gym_are_scored_by_it() -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra `rl`")
    dataset, reward = reasoning_gym_task("chain_sum", size=4, seed=3, max_terms=2, as_messages=False)
    again, _ = reasoning_gym_task("chain_sum", size=4, seed=3, max_terms=2)
    assert dataset["answer"] == again["answer"] and reward.__name__ == "chain_sum"
    assert again[0]["prompt"] == [{"role": "user", "content": dataset[0]["prompt"].removesuffix("\n")}]
    right, messages = dataset["answer"][:2], [[{"role": "assistant", "content": text}] for text in dataset["answer"]]
    assert reward([*right, "none"], entry=[0, 1, 2]) == [1.0, 1.0, 0.0]
    assert reward(messages, entry=dataset["entry"]) == [1.0] * 4
    with pytest.raises(ValueError, match="reasoning-gym has no task 'sums' with the settings {}"):
        reasoning_gym_task("sums")
    with pytest.raises(ValueError, match="reasoning-gym has no task 'chain_sum' with the settings {'terms': 2}"):
        reasoning_gym_task("chain_sum", terms=2)


def test_the_extra_is_named_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"needs reasoning-gym: pip install 'llada-hf\[rl\]'"):
        reasoning_gym_task("chain_sum")
