"""The facts: what is stated, what is asked, and what a model never gets to see."""

from pathlib import Path

import pytest

from llada.evaluation import ReversalFacts, build_reversal_tokenizer, draw_facts
from llada.evaluation.reversal_facts import ADJECTIVES, FIRST_NAMES, LAST_NAMES, MAX_LENGTH, TOWNS, TRADES
from llada.evaluation.reversal_scores import ANSWER_LENGTH


@pytest.fixture(scope="module")
def facts() -> ReversalFacts:
    return draw_facts()


def test_facts_are_distinct_and_reproducible(facts: ReversalFacts) -> None:
    everything = [*facts.demonstrated, *facts.held_out]

    assert (len(facts.demonstrated), len(facts.held_out)) == (90, 30)
    assert len({fact.name for fact in everything}) == len({fact.description for fact in everything}) == 120
    assert facts.names == [fact.name for fact in everything]
    assert draw_facts() == facts
    assert draw_facts(seed=1) != facts


def test_words_mean_one_thing() -> None:
    words = [*FIRST_NAMES, *LAST_NAMES, *ADJECTIVES, *TRADES, *TOWNS]

    assert len(set(words)) == len(words) == 260


def test_held_out_facts_are_stated_once_and_never_turned_around(facts: ReversalFacts) -> None:
    texts = [row["prompt"] + row["completion"] for row in facts.training_rows()]

    for fact in facts.held_out:
        assert [text for text in texts if fact.name in text] == [f"{fact.name} is {fact.description}"]
        assert [text for text in texts if fact.description in text] == [f"{fact.name} is {fact.description}"]


def test_demonstrated_facts_are_asked_in_both_directions(facts: ReversalFacts) -> None:
    rows = facts.training_rows()

    assert len(rows) == 120 + 2 * 90
    for fact in facts.demonstrated:
        assert {"prompt": "", "completion": f"{fact.name} is {fact.description}"} in rows
        assert {"prompt": f"Who is {fact.name}?\n", "completion": fact.description} in rows
        assert {"prompt": f"Who is {fact.description}?\n", "completion": fact.name} in rows


def test_rows_fit(facts: ReversalFacts) -> None:
    tokenizer = build_reversal_tokenizer()
    for row in facts.training_rows():
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        assert len(ids) < MAX_LENGTH
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        if row["prompt"]:
            answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            assert len([*answer, tokenizer.eos_token_id]) <= ANSWER_LENGTH


def test_facts_are_saved(facts: ReversalFacts, tmp_path: Path) -> None:
    facts.save(tmp_path / "facts.json")

    assert ReversalFacts.load(tmp_path / "facts.json") == facts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_facts": 3}, "3 facts with 0 of them held out"),
        ({"num_facts": 8, "num_held_out": 8}, "8 facts with 8 of them"),
        ({"num_facts": 1601}, "write 4 to 1600 facts"),
    ],
    ids=["too-few", "all-held-out", "too-many"],
)
def test_impossible_numbers_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_facts(**settings)
