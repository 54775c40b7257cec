"""Perplexity and bits per byte of documents, however long they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .likelihood import encode_pair


@dataclass(frozen=True)
class DocumentScores:
    """
    What [`score_documents`] found. With an estimator of the bound, these are upper bounds.

    Args:
        perplexity (`float`):
            Of a token.
        bits_per_byte (`float`):
            Of the UTF-8 text.
        standard_error (`float`):
            Of `bits_per_byte`, of the draws alone.
        num_tokens, num_bytes (`int`):
            What was scored.
    """

    perplexity: float
    bits_per_byte: float
    standard_error: float
    num_tokens: int
    num_bytes: int


def windows(length: int, window: int, num_context: int) -> list[tuple[int, int, int]]:
    """
    Cuts a document into parts that are scored one after the other.

    Args:
        length (`int`):
            Tokens of the document.
        window (`int`):
            Tokens that a model is given at most.
        num_context (`int`):
            Tokens before each part but the first that it is given of them, at least where the document has them.

    Returns:
        `list` of `(first token given, first token scored, end)`: every token is scored once.
    """
    parts, start = [], 0
    while start < length:
        end = min(length, window if not start else start + window - num_context)
        parts.append((max(0, end - window), start, end))
        start = end
    return parts


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int | None = None,
    num_context: int | None = None,
    **kwargs: Any,
) -> DocumentScores:
    """
    Scores whole documents by the chain rule over parts of them: each part is an answer to what stands before it.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. A start token that it puts before a text is given and not scored.
        texts (sequence of `str`):
            The documents.
        window (`int`, *optional*):
            Tokens that the model is given at once, the longest text it was trained for if not given.
        num_context (`int`, *optional*):
            Tokens of the window that are given and not scored, in all parts but the first. Half of it if not given.
        kwargs (`dict[str, Any]`, *optional*):
            `estimator`, `num_draws`, `batch_size` and `seed` of [`LLaDAModelLM.log_likelihood`].

    Returns:
        [`DocumentScores`] of all documents together.

    Raises:
        ValueError: If there is no text, or the window is longer than the model or has no room for what is scored.
    """
    longest = model.config.longest_text
    window = longest if window is None else window
    num_context = window // 2 if num_context is None else num_context
    if not 1 <= window <= longest:
        raise ValueError(f"`window={window}` is no length of a text for this model; write 1 to {longest}.")
    if not 0 <= num_context < window:
        raise ValueError(f"`num_context={num_context}` leaves no room in a window of {window}; write less.")
    prompts, answers = [], []
    for text in texts:
        # what the tokenizer puts before a text is given
        before, after = encode_pair(tokenizer, "", text)
        ids = before + after
        for given, start, end in windows(len(ids), window, num_context):
            start = max(start, len(before))
            if start < end:
                prompts.append(ids[given:start])
                answers.append(ids[start:end])
    if not answers:
        raise ValueError("There is no text to score; give at least one that is not empty.")
    scores = model.log_likelihood(prompts, answers, **kwargs)
    num_tokens, num_bytes = int(scores.num_tokens.sum()), sum(len(text.encode()) for text in texts)
    nats = -float(scores.log_likelihood.sum())
    return DocumentScores(
        perplexity=math.exp(min(nats / num_tokens, 700)),
        bits_per_byte=nats / math.log(2) / num_bytes,
        standard_error=float(scores.standard_error.square().sum().sqrt()) / math.log(2) / num_bytes,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
    )


__all__ = ["DocumentScores", "score_documents", "windows"]
