"""
Stock logits processors and stopping criteria of transformers, applied position by position.

They were written for one next token after a prefix. Here many positions are predicted at once, so each of them gets
the text to its left, without padding, as if it were the next token. Masks in that text stay masks.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .canvas import Canvas


# change how a token is drawn, not how sure the model is of it
WARPERS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# do not look at the text: one call serves all positions
CONTEXT_FREE = (InfNanRemoveLogitsProcessor, LogitNormalization, SuppressTokensLogitsProcessor)


class CanvasLogitsProcessor(LogitsProcessor):
    """
    Base of processors that know the canvas: the position of each row of logits, and the text on both of its sides.
    Pass it to `generate` or `infill` in `logits_processor` like any other.

    Example:

    ```python
    >>> class Palindrome(CanvasLogitsProcessor):
    ...     def process(self, logits, canvas, index):
    ...         rows, length = index // canvas.tokens.shape[1], canvas.tokens.shape[1]
    ...         mirrored = canvas.tokens[rows, length - 1 - index % length]
    ...         known = mirrored != canvas.mask_token_id
    ...         wanted = torch.nn.functional.one_hot(mirrored, logits.shape[1]).bool()
    ...         return logits.masked_fill(known.unsqueeze(1) & ~wanted, -torch.inf)
    ```
    """

    def process(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
                Logits of the positions that may change.
            canvas ([`Canvas`]):
                The canvas they were computed from, masks included. Not to be changed.
            index (`torch.LongTensor` of shape `(positions,)`):
                Where they are, counted through the canvas row by row: the row is `index // length`, the position
                `index % length`, padding included.

        Returns:
            `torch.FloatTensor` of the shape of `logits`, minus infinity where a token may not stand.
        """
        raise NotImplementedError

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            f"{type(self).__name__} looks at both sides of a position, and this caller knows one; pass it to "
            "`generate` or `infill` of a LLaDA."
        )


class PositionalProcessors:
    """
    Applies logits processors to the logits of many positions.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        build (`Callable[[int], LogitsProcessorList]`):
            Makes the processors for a prompt of the given length. Called once per length without padding, so that
            processors that count tokens count the same in a padded row as in that row alone.
    """

    def __init__(self, canvas: Canvas, build: Callable[[int], LogitsProcessorList]):
        self.padding = canvas.padding.tolist()
        first = canvas.masked.int().argmax(1).tolist()
        self.prompt_lengths = [max(start - padding, 0) for start, padding in zip(first, self.padding, strict=True)]
        self.processors = {length: list(build(length)) for length in set(self.prompt_lengths)}
        some = next(iter(self.processors.values()))
        # the same kinds in the same order for every prompt length
        self.constraints = [number for number, processor in enumerate(some) if not isinstance(processor, WARPERS)]
        self.warpers = [processor for processor in some if isinstance(processor, WARPERS)]

    def constrain(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """
        Applies everything that says what the text may be: penalties, bans, minimum lengths.

        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
                Logits of some positions.
            canvas ([`Canvas`]):
                The canvas they were computed from.
            index (`torch.LongTensor` of shape `(positions,)`):
                Where they are, counted through the canvas row by row.
        """
        for number in self.constraints:
            processor = next(iter(self.processors.values()))[number]
            if isinstance(processor, CanvasLogitsProcessor):
                logits = processor.process(logits, canvas, index)
            elif isinstance(processor, CONTEXT_FREE):
                logits = processor(canvas.tokens, logits)
            else:
                logits = self._by_position(number, logits, canvas, index)
        return logits

    def warp(self, logits: torch.Tensor, canvas: Canvas) -> torch.Tensor:
        """Applies temperature, top-k, top-p and their like."""
        for warper in self.warpers:
            logits = warper(canvas.tokens, logits)
        return logits

    def _by_position(self, number: int, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        alike = defaultdict(list)
        length = canvas.tokens.shape[1]
        for place, (row, position) in enumerate(divmod(flat, length) for flat in index.tolist()):
            alike[self.prompt_lengths[row], self.padding[row], position].append((place, row))
        result = logits.clone()
        for (prompt_length, padding, position), members in alike.items():
            processor = self.processors[prompt_length][number]
            places = torch.tensor([place for place, _ in members], device=logits.device)
            rows = torch.tensor([row for _, row in members], device=logits.device)
            text = canvas.tokens[rows, padding:position]
            result[places] = _apply(processor, text, logits[places], canvas.mask_token_id)
        return result


def _apply(processor: LogitsProcessor, text: torch.Tensor, logits: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    processed = processor(text, logits.clone())
    if isinstance(processor, NoRepeatNGramLogitsProcessor):
        # an n-gram that begins with a mask is not known yet
        beginning = text[:, max(text.shape[1] - processor.ngram_size + 1, 0) :]
        return torch.where((beginning == mask_token_id).any(1, keepdim=True), logits, processed)
    return processed


def first_stop(
    criteria: StoppingCriteriaList, canvas: Canvas, row: int, padding: int, positions: Iterable[int]
) -> int | None:
    """
    The first of some positions of a row at which stopping criteria hold, each asked with the text up to and including
    that position.

    Returns:
        `int` or `None`: The position, `None` if there is none.
    """
    for position in positions:
        text = canvas.tokens[row : row + 1, padding : position + 1]
        if bool(criteria(text, None).any()):
            return position
    return None


__all__ = ["CanvasLogitsProcessor", "PositionalProcessors", "first_stop"]
