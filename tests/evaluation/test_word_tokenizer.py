"""The tokenizer with a token per word."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llada.evaluation.word_tokenizer import build_word_tokenizer


TEXTS = ["Ada is a baker.", "Who is Ada?\na baker", "a\n\nbaker?", "", "Ada"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(["Who", "is", "Ada", "a", "baker", "Ada"], max_length=32)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]

    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokens_are_words(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Who is <|mdm_mask|><|mdm_mask|> Eve?\n")["input_ids"])

    assert tokens == ["<|startoftext|>", "Who", "is", "<|mdm_mask|>", "<|mdm_mask|>", "<|unknown|>", "?", "\n"]
    # a word that is given twice counts once
    assert len(tokenizer) == 4 + 3 + 5


def test_special_tokens_are_those_of_llada(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.mask_token == "<|mdm_mask|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token == "<|startoftext|>"


def test_shorter_texts_are_padded_on_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["Ada is a baker", "Ada"], padding=True)

    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_chat_template_renders_the_last_question(tokenizer: PreTrainedTokenizerFast) -> None:
    first = [{"role": "user", "content": " Who is Ada? "}, {"role": "assistant", "content": "a baker"}]
    question = [{"role": "user", "content": "Who is a baker?"}]

    def render(messages: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert render(question) == render(first + question) == "<|startoftext|>Who is a baker?\n"
    assert render(first) == "<|startoftext|>Who is Ada?\na baker<|endoftext|>"
    marked = tokenizer.apply_chat_template(first, return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, mark in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(answer) == "a baker <|endoftext|>"


def test_it_is_loaded_as_it_was_saved(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 32)
    assert loaded.chat_template == tokenizer.chat_template
