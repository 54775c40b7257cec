"""A tokenizer of bytes, or learned from a text."""

import pytest

from llada.evaluation.text_tokenizer import SMALLEST_VOCABULARY, build_text_tokenizer


TEXT = "The cat sat on the mat.\n\tNaïve 猫 🙂 <|endoftext|>x"


def test_bytes_go_in_and_come_back() -> None:
    tokenizer = build_text_tokenizer()
    plain = TEXT.replace("<|endoftext|>", "")
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]

    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert len(ids) == len(plain.encode())
    assert tokenizer.decode(ids) == plain
    assert len({tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_pieces_are_learned() -> None:
    tokenizer = build_text_tokenizer([TEXT] * 20, 280)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]

    assert len(tokenizer) == 280
    assert len(ids) < len(TEXT.encode()) and tokenizer.eos_token_id in ids
    assert tokenizer.decode(ids) == TEXT


def test_bytes_need_room() -> None:
    with pytest.raises(ValueError, match="write at least 259"):
        build_text_tokenizer([TEXT], 258)
