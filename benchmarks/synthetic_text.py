"""
Text that a small model learns in minutes and is sure of, except at known places.

A text repeats its first `PERIOD` words over and over. Most words have one form and are certain; a few have two, of
which every repetition draws one anew, so that no model can be sure of them. A full stop ends the text one period
later: what follows is filled with end-of-text tokens.
"""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast


EOS, MASK, STOP = 0, 1, 2
FIRST_WORD = 3
NUM_WORDS = 1000
NUM_FORMS = NUM_WORDS // 8  # words with a second form, the first ones
PERIOD = 32
SAME_FORM = 0.7


def draw_texts(num_texts: int, length: int, stops: float = 0.0, before: int = PERIOD, seed: int = 0) -> torch.Tensor:
    """
    Draws texts.

    Args:
        num_texts (`int`):
            Number of texts.
        length (`int`):
            Their length in tokens, more than one period.
        stops (`float`, *optional*, defaults to 0.0):
            Share of the texts that hold a full stop, and end one period later.
        before (`int`, *optional*):
            The full stop stands in the period before this position, anywhere. The first period by default.
        seed (`int`, *optional*, defaults to 0):
            Seed.

    Returns:
        `torch.LongTensor` of shape `(num_texts, length)`.
    """
    generator = torch.Generator().manual_seed(seed)
    # log-uniform ranks, as in language: few words are frequent
    ranks = torch.rand(num_texts, PERIOD, generator=generator).mul(torch.log(torch.tensor(NUM_WORDS + 1.0))).exp()
    order = torch.randperm(NUM_WORDS, generator=torch.Generator().manual_seed(0))
    words = order[ranks.long().clamp(1, NUM_WORDS) - 1]
    parts = [words]
    while PERIOD * len(parts) < length:
        flips = torch.rand(words.shape, generator=generator) >= SAME_FORM
        # the two forms of a word are neighbours
        words = torch.where(flips & (words < NUM_FORMS), words ^ 1, words)
        parts.append(words)
    texts = torch.cat(parts, dim=1)[:, :length] + FIRST_WORD
    stopped = torch.rand(num_texts, generator=generator) < stops
    places = torch.randint(before - PERIOD, before, (num_texts,), generator=generator).unsqueeze(1)
    positions = torch.arange(length)
    texts = texts.masked_fill(stopped.unsqueeze(1) & (positions == places), STOP)
    return texts.masked_fill(stopped.unsqueeze(1) & (positions >= places + PERIOD), EOS)


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer for these texts, one word per token. The last ids are words that no text holds."""
    vocabulary = {"<|endoftext|>": EOS, "<|mask|>": MASK, ".": STOP}
    vocabulary |= {f"w{number}": FIRST_WORD + number for number in range(vocab_size - FIRST_WORD)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", mask_token="<|mask|>"
    )


__all__ = ["EOS", "FIRST_WORD", "MASK", "NUM_FORMS", "PERIOD", "STOP", "draw_texts", "word_tokenizer"]
