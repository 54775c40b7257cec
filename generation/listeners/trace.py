"""What happened in every step, to look at, to save and to replay."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch

from ..canvas import Canvas, Delta
from ..denoising import Listener
from ..proposal import Proposal
from ..regions import Block


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
        alternatives (`list[list[tuple[int, float]]]`):
            With `trace_top_k`, for each position the likeliest tokens and their probabilities, the likeliest first.
            None for a position that the model was not asked about in this step.
        end, fill (`int`, *optional*):
            Where the sequence ended after the step, if it did, and the token that what follows was filled with.
        inserted (`list[int]`):
            The positions behind which a mask was put afterwards, one entry for each mask, in ascending order. What
            follows moved to the right.
    """

    step: int
    block: int
    positions: list[int]
    tokens: list[int]
    confidence: list[float]
    inserted: list[int] = field(default_factory=list)
    end: int | None = None
    fill: int | None = None
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass
class Trace:
    """
    How one sequence came about. `generate(..., output_trace=True)` returns one per row, in `output.trace`.

    Args:
        start (`list[int]`):
            The canvas before the first step, without padding.
        final (`list[int]`):
            The sequence in the end, without what fills it up after its end of text or a stop.
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
        """`list[int]`: The step in which each position of `final` got its last token, -1 if it was given."""
        steps = [-1] * len(self.start)
        for event in self.events:
            for position in event.positions:
                steps[position] = event.step
            _insert(steps, event, -1)
        return steps[: len(self.final)]

    @property
    def confidence(self) -> list[float]:
        """`list[float]`: How sure the model was of the last token at each position of `final`, 1 if it was given."""
        values = [1.0] * len(self.start)
        for event in self.events:
            for position, confidence in zip(event.positions, event.confidence, strict=True):
                values[position] = confidence
            _insert(values, event, 1.0)
        return values[: len(self.final)]

    @property
    def tokens_per_forward(self) -> float:
        """`float`: Tokens that were generated, the end of the text included, over the steps that it took."""
        return sum(step >= 0 for step in self.step_of) / max(len(self.events), 1)

    def frames(self) -> Iterator[list[int]]:
        """The canvas before the first step, then after every step. The last one is `final` and what fills it up."""
        canvas = list(self.start)
        yield list(canvas)
        for event in self.events:
            for position, token in zip(event.positions, event.tokens, strict=True):
                canvas[position] = token
            _insert(canvas, event, self.mask_token_id)
            if event.end is not None and event.fill is not None:
                canvas[event.end :] = [event.fill] * (len(canvas) - event.end)
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
        for event in events:
            event.alternatives = [[(token, share) for token, share in likely] for likely in event.alternatives]
        return cls(events=events, **values)


class TraceRecorder(Listener):
    """
    Listens to the deltas of a batch.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        settings (`dict`):
            The generation config.
        top_k (`int`, *optional*, defaults to 0):
            How many of the likeliest tokens to keep for each position that changes.
    """

    def __init__(self, canvas: Canvas, settings: dict, top_k: int = 0):
        self.top_k = top_k
        # left out of the traces
        self.padding = canvas.padding.tolist()
        rows = zip(canvas.tokens.tolist(), self.padding, canvas.ends.tolist(), strict=True)
        self.traces = [
            Trace(tokens[start:end], [], canvas.mask_token_id, settings=settings) for tokens, start, end in rows
        ]

    def on_proposal(self, proposal: Proposal, canvas: Canvas, block: Block) -> None:
        if self.top_k:
            tokens, probabilities = proposal.top(min(self.top_k, proposal.logits.shape[1]))
            self.likely = {
                divmod(place, proposal.shape[1]): list(zip(*pair, strict=True))
                for place, *pair in zip(proposal.index.tolist(), tokens.tolist(), probabilities.tolist(), strict=True)
            }

    def on_step(self, canvas: Canvas, delta: Delta) -> None:
        rows, positions = delta.positions.nonzero(as_tuple=True)
        cells = (rows, positions, delta.tokens[rows, positions], delta.confidence[rows, positions])
        events: dict[int, TraceEvent] = {}
        for row, position, token, confidence in zip(*(values.tolist() for values in cells), strict=True):
            event = events.setdefault(row, TraceEvent(delta.step, delta.block, [], [], []))
            event.positions.append(position - self.padding[row])
            event.tokens.append(token)
            event.confidence.append(confidence)
            if self.top_k:
                event.alternatives.append(self.likely.get((row, position), []))
        if delta.repeats is not None:
            rows, positions = delta.repeats.nonzero(as_tuple=True)
            repeated = (rows, positions, delta.repeats[rows, positions])
            for row, position, count in zip(*(values.tolist() for values in repeated), strict=True):
                events[row].inserted += [position - self.padding[row]] * count
        for row, event in events.items():
            self.traces[row].events.append(event)

    def on_change(self, canvas: Canvas, delta: Delta) -> None:
        if delta.ends is None:
            return
        rows = zip(delta.ends.tolist(), delta.tokens[:, -1].tolist(), self.padding, self.traces, strict=True)
        for end, fill, padding, trace in rows:
            if end >= 0:
                trace.events[-1].end, trace.events[-1].fill = end - padding, fill

    def finish(self, sequences: torch.Tensor, ends: torch.Tensor) -> list[Trace]:
        """
        The traces, with the final sequences.

        Args:
            sequences (`torch.LongTensor` of shape `(batch, length)`):
                The sequences.
            ends (`torch.LongTensor` of shape `(batch,)`):
                Where each of them ends.
        """
        rows = zip(self.traces, sequences.tolist(), self.padding, ends.tolist(), strict=True)
        for trace, tokens, start, end in rows:
            trace.final = tokens[start:end]
        return self.traces


def _insert(values: list, event: TraceEvent, blank: float) -> None:
    """Puts `blank` where an event inserted masks."""
    for position in reversed(event.inserted):
        values.insert(position + 1, blank)


__all__ = ["Trace", "TraceEvent", "TraceRecorder"]
