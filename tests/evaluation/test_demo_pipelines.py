"""The stock pipelines on the checkpoint of the demo, without a single setting."""

import pytest
from demo_checkpoint import DEMO_FOLDER, load_demo
from transformers import pipeline

from llada.generation.arguments import merge_settings


MODEL, TOKENIZER, FACTS = load_demo()


@pytest.fixture(scope="module")
def generate():
    # by path, as users do
    return pipeline("text-generation", model=str(DEMO_FOLDER))


@pytest.fixture(scope="module")
def fill():
    return pipeline("fill-mask", model=str(DEMO_FOLDER))


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_text_is_continued(generate) -> None:
    fact = FACTS.held_out[0]

    # words are joined without the space that a text ends with
    assert generate(f"{fact.name} is ") == [{"generated_text": fact.sentence}]


def test_settings_of_the_checkpoint_are_used(generate, monkeypatch: pytest.MonkeyPatch) -> None:
    # the pipeline would draw 256 tokens at a temperature of 0.7 if the checkpoint said nothing
    configs = []

    def record(*args):
        configs.append(merge_settings(*args))
        return configs[-1]

    monkeypatch.setattr("llada.generation.arguments.merge_settings", record)
    generate("Who is ")

    (config,) = configs
    assert (config.do_sample, config.temperature, config.max_new_tokens, config.block_length) == (False, None, 4, 4)


def test_chat_is_answered(generate) -> None:
    question, name = FACTS.held_out[0].reverse

    assert generate(chat(question)) == [
        {"generated_text": [*chat(question), {"role": "assistant", "content": name}]},
    ]
    assert generate(chat(question), return_full_text=False) == [{"generated_text": name}]


def test_a_row_of_a_batch_is_answered_like_the_row_alone(generate) -> None:
    # questions about names are shorter than those about descriptions
    questions = [question for fact in FACTS.held_out[:8] for question, _ in (fact.forward, fact.reverse)]
    assert len({len(TOKENIZER(question)["input_ids"]) for question in questions}) == 2

    alone = [generate(chat(question)) for question in questions]
    assert generate([chat(question) for question in questions], batch_size=6) == alone


def test_reversed_questions_are_answered(generate) -> None:
    pairs = [fact.reverse for fact in FACTS.held_out]
    answers = generate([chat(question) for question, _ in pairs], batch_size=30, return_full_text=False)

    right = sum(answer[0]["generated_text"] == name for answer, (_, name) in zip(answers, pairs, strict=True))
    assert right == pytest.approx(28, abs=2)


def test_a_mask_is_filled(fill) -> None:
    fact = FACTS.held_out[0]
    first, last = fact.name.split()
    (best, *_) = fill(f"<|mdm_mask|> {last} is {fact.description}<|endoftext|>")

    assert best["token_str"] == first
    assert best["score"] > 0.9
    assert best["sequence"] == f"{fact.sentence}"


def test_masks_are_filled_each_for_itself(fill) -> None:
    fact = FACTS.held_out[0]
    filled = fill(f"<|mdm_mask|> <|mdm_mask|> is {fact.description}<|endoftext|>", top_k=2)

    assert [len(choices) for choices in filled] == [2, 2]
    assert [choices[0]["token_str"] for choices in filled] == fact.name.split()
