"""What happened in every step, to look at, to save and to replay."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch

from .canvas import Canvas, Delta
from .denoising import Listener


@dataclass
class TraceEvent:
    """
    One step of one row.

    Args:
        step (`int`):
            Number of the step, from 0.
        block (`int`):
            Number of the block, from 0.
        positions (`list[int]`):
            The positions that changed.
        tokens (`list[int]`):
            Their new tokens.
        confidence (`list[float]`):
            How sure the model was of each, between 0 and 1.
    """

    step: int
    block: int
    positions: list[int]
    tokens: list[int]
    confidence: list[float]


@dataclass
class Trace:
    """
    How one sequence came about. `generate(..., output_trace=True)` returns one per row, in `output.trace`.

    Args:
        start (`list[int]`):
            The canvas before the first step, without padding.
        final (`list[int]`):
            The sequence in the end.
        mask_token_id (`int`):
            Id of the mask token.
        events (`list[TraceEvent]`):
            The steps in order.
        settings (`dict`):
            The generation config.

    Example:

    ```python
    >>> output = model.generate(**inputs, output_trace=True)
    >>> for frame in output.trace[0].frames():
    ...     print(tokenizer.decode(frame))
    ```
    """

    start: list[int]
    final: list[int]
    mask_token_id: int
    events: list[TraceEvent] = field(default_factory=list)
    settings: dict = field(default_factory=dict)

    @property
    def step_of(self) -> list[int]:
        """`list[int]`: The step in which each position got its last token, -1 if it was given."""
        steps = [-1] * len(self.start)
        for event in self.events:
            for position in event.positions:
                steps[position] = event.step
        return steps

    @property
    def confidence(self) -> list[float]:
        """`list[float]`: How sure the model was of the last token at each position, 1 if it was given."""
        values = [1.0] * len(self.start)
        for event in self.events:
            for position, confidence in zip(event.positions, event.confidence, strict=True):
                values[position] = confidence
        return values

    def frames(self) -> Iterator[list[int]]:
        """The canvas before the first step, then after every step."""
        canvas = list(self.start)
        yield list(canvas)
        for event in self.events:
            for position, token in zip(event.positions, event.tokens, strict=True):
                canvas[position] = token
            yield list(canvas)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trace to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trace":
        """Reads a trace that [`~Trace.save`] wrote."""
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        events = [TraceEvent(**event) for event in values.pop("events")]
        return cls(events=events, **values)


class TraceRecorder(Listener):
    """
    Listens to the deltas of a batch.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        settings (`dict`):
            The generation config.
    """

    def __init__(self, canvas: Canvas, settings: dict):
        # left out of the traces
        self.padding = canvas.padding.tolist()
        self.traces = [
            Trace(tokens[start:], [], canvas.mask_token_id, settings=settings)
            for tokens, start in zip(canvas.tokens.tolist(), self.padding, strict=True)
        ]

    def on_step(self, canvas: Canvas, delta: Delta) -> None:
        rows, positions = delta.positions.nonzero(as_tuple=True)
        cells = (rows, positions, delta.tokens[rows, positions], delta.confidence[rows, positions])
        events: dict[int, TraceEvent] = {}
        for row, position, token, confidence in zip(*(values.tolist() for values in cells), strict=True):
            event = events.setdefault(row, TraceEvent(delta.step, delta.block, [], [], []))
            event.positions.append(position - self.padding[row])
            event.tokens.append(token)
            event.confidence.append(confidence)
        for row, event in events.items():
            self.traces[row].events.append(event)

    def finish(self, sequences: torch.Tensor) -> list[Trace]:
        """The traces, with the final sequences."""
        for trace, tokens, start in zip(self.traces, sequences.tolist(), self.padding, strict=True):
            trace.final = tokens[start:]
        return self.traces


__all__ = ["Trace", "TraceEvent", "TraceRecorder"]
