"""A tokenizer for models that are trained from nothing on some text: bytes, or pieces learned from the text."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
_SPECIAL = (BOS, EOS, MASK)
# the bytes and the special tokens
SMALLEST_VOCABULARY = 256 + len(_SPECIAL)


def build_text_tokenizer(texts: Iterable[str] = (), vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """
    Builds a byte-level BPE tokenizer, into which any text goes and comes back.

    Args:
        texts (iterable of `str`, *optional*):
            What its pieces are learned from. Not read without a `vocab_size`.
        vocab_size (`int`, *optional*):
            Number of tokens, special ones included. If not given, every byte is a token.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: The tokenizer, with a start token that it puts before no text, an
        end-of-text token and a mask token.

    Raises:
        ValueError: If the vocabulary has no room for the bytes.
    """
    size = SMALLEST_VOCABULARY if vocab_size is None else vocab_size
    if size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"`vocab_size={vocab_size}` has no room for the bytes and the special tokens; write at least "
            f"{SMALLEST_VOCABULARY}, or leave it out for a token per byte."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=vocab_size is not None)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in _SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator([] if vocab_size is None else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, mask_token=MASK, padding_side="left"
    )


__all__ = ["SMALLEST_VOCABULARY", "build_text_tokenizer"]
