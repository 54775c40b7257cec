"""A tokenizer with one token per word, for models small enough to train in a minute."""

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


# words, the full stop, the question mark and the line feed
_TOKEN = r"\n|[.?]|[^\s.?]+"
BOS, EOS, MASK, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|unknown|>"

# the last question, a line feed, the answer; what was said before is left out
CHAT_TEMPLATE = """\
{%- set turn = namespace(start=0) -%}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}{%- set turn.start = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages[turn.start:] -%}
    {%- if message["role"] == "assistant" -%}
        {%- generation -%}{{- message["content"] | trim + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message["content"] | trim + "\\n" -}}
    {%- endif -%}
{%- endfor -%}
"""


def find_words(text: str) -> list[str]:
    """What a text is cut into."""
    return re.findall(_TOKEN, text)


def build_word_tokenizer(words: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """
    Builds a tokenizer whose tokens are words, the full stop, the question mark and the line feed. The special tokens
    have the names of LLaDA's. A text comes back as it was, but for its spaces.

    Args:
        words (`Iterable[str]`):
            The words.
        max_length (`int`):
            Longest sequence, in tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: The tokenizer. It puts a start token before every text, pads on the
        left with the end of text, and its chat template writes a question and its answer on a line each.
    """
    special = [BOS, EOS, MASK, UNKNOWN]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*special, "\n", ".", "?", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            # joins with spaces, and takes away those before punctuation
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK,
        pad_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


__all__ = ["build_word_tokenizer", "find_words"]
