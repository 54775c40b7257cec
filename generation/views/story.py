"""What every picture of a trace is drawn from: the text of each position, and what was written there when."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ..listeners.trace import Trace
from ..printable import printable


# what a special token looks like, whose name would fill the line
END_OF_TEXT = "¶"


@dataclass
class Write:
    """
    Something that a step wrote at a position.

    Args:
        step (`int`):
            The step, counted from 1 among those of the row.
        text (`str`):
            The token as text, empty for a mask that a step put back.
        name (`str`):
            The token as the tokenizer calls it.
        confidence (`float`):
            How sure the model was of it, between 0 and 1.
        alternatives (`list[tuple[str, float]]`):
            The likeliest tokens there and their probabilities, if the trace has them.
    """

    step: int
    text: str
    name: str
    confidence: float
    alternatives: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Cell:
    """
    A position of the canvas, from first to last.

    Args:
        born (`int`):
            The step that inserted it, 0 if it was there before the first.
        given (`str`, *optional*):
            The text that the caller gave, `None` at a mask.
        writes (`list[Write]`):
            What was written, in order.
        gone (`int`, *optional*):
            The step that ended the text before it.
    """

    born: int = 0
    given: str | None = None
    writes: list[Write] = field(default_factory=list)
    gone: int | None = None


class Story:
    """
    What happened at each position of a canvas.

    Args:
        trace ([`~llada.Trace`]):
            What happened in each step.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Turns tokens into text. Without one, they are shown as numbers.
    """

    def __init__(self, trace: Trace, tokenizer: PreTrainedTokenizerBase | None = None):
        self.trace = trace
        self.tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self.cells = self._read()
        self.num_steps = len(trace.events)
        self.text = printable(tokenizer.decode(trace.final, skip_special_tokens=True)) if tokenizer else ""

    @property
    def num_revisions(self) -> int:
        """`int`: How many times a token was replaced or masked again."""
        return sum(len([write for write in cell.writes if write.text]) - 1 for cell in self.cells if cell.writes)

    def text_of(self, token: int) -> str:
        """The text of a token, for a place of its own: with its space in front, and a sign for an end of text."""
        if token not in self._texts:
            self._texts[token] = self._decode(token)
        return self._texts[token]

    def name_of(self, token: int) -> str:
        """What the tokenizer calls a token."""
        return str(token) if self.tokenizer is None else printable(str(self.tokenizer.convert_ids_to_tokens(token)))

    def _decode(self, token: int) -> str:
        if self.tokenizer is None:
            return f" {token}"
        if token in self.tokenizer.all_special_ids:
            is_end = token in (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
            return END_OF_TEXT if is_end else self.name_of(token)
        # decoders drop the space in front of a text
        before = self.tokenizer.decode([token])
        text = self.tokenizer.decode([token, token])[len(before) :] or before
        # a part of a character is no text
        return self.name_of(token) if "\ufffd" in text else printable(text)

    def _read(self) -> list[Cell]:
        """The cells in their final order."""
        trace = self.trace
        mask = trace.mask_token_id
        # control tokens of a chat template are no text
        hidden = set(self.tokenizer.all_special_ids) if self.tokenizer else ()
        cells = [
            Cell(given=None if token == mask else "" if token in hidden else self.text_of(token))
            for token in trace.start
        ]
        for step, event in enumerate(trace.events, start=1):
            alternatives = event.alternatives or [[]] * len(event.positions)
            written = zip(event.positions, event.tokens, event.confidence, alternatives, strict=True)
            for position, token, confidence, others in written:
                text = "" if token == mask else self.text_of(token)
                likely = [(self.text_of(other), probability) for other, probability in others]
                cells[position].writes.append(Write(step, text, self.name_of(token), confidence, likely))
            for position in reversed(event.inserted):
                cells.insert(position + 1, Cell(born=step))
            if event.end is not None:
                for cell in cells[event.end :]:
                    cell.gone = cell.gone or step
        for cell in cells[len(trace.final) :]:
            cell.gone = cell.gone or len(trace.events)
        return cells


__all__ = ["END_OF_TEXT", "Cell", "Story", "Write"]
