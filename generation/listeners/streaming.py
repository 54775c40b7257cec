"""Feeding streamers: settled text once, what is still being denoised as a draft after every step."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from ..canvas import Canvas, Delta
from ..denoising import Listener
from ..regions import Block


P = ParamSpec("P")
R = TypeVar("R")


def ends_streamer(method: Callable[P, R]) -> Callable[P, R]:
    """
    A decorator for methods that have an argument `streamer`, and end it themselves when all went well: it is ended
    when they fail, too. Whoever reads a [`~transformers.TextIteratorStreamer`] in another thread would wait for ever.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        streamer = signature.bind(*args, **kwargs).arguments.get("streamer")
        try:
            return method(*args, **kwargs)
        except BaseException:
            if streamer is not None:
                streamer.end()
            raise

    return wrapper


class StreamFeed(Listener):
    """
    Passes a growing canvas to a streamer of transformers. A token is settled once no mask stands before it; settled
    tokens go to `put`, once, and are those of the sequence in the end. If the streamer has a `put_draft` method, like
    [`~transformers.TextDiffusionStreamer`], it gets what follows after every step, masks included.

    Args:
        streamer ([`~transformers.generation.BaseStreamer`]):
            The streamer. Those of transformers take one sequence.
        canvas ([`Canvas`]):
            The canvas before the first step. Its given beginning is put at once.
        num_positions (`int`):
            Number of positions that were asked for. A canvas of whole blocks may be longer.
        by_block (`bool`, *optional*, defaults to `False`):
            Whether committed tokens may be changed, or cut off, until their block is finished. They are settled then.
    """

    def __init__(self, streamer, canvas: Canvas, num_positions: int, by_block: bool = False):
        self.streamer = streamer
        self.num_positions = num_positions
        self.by_block = by_block
        self.sent = int(canvas.masked.int().argmax(1).min())
        streamer.put(canvas.tokens[:, : self.sent].cpu())

    def on_step(self, canvas: Canvas, delta: Delta) -> None:
        if not self.by_block:
            self._put(canvas)
        end = min(int(canvas.ends.max()), self.num_positions)
        if self.sent < end and hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(canvas.tokens[:, self.sent : end].cpu())

    def on_block_end(self, canvas: Canvas, block: Block) -> None:
        self._put(canvas)

    def _put(self, canvas: Canvas) -> None:
        end = canvas.ends.max().clamp(max=self.num_positions)
        settled = torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), end)
        self._put_until(canvas.tokens, int(settled.min().clamp(max=end)))

    def _put_until(self, tokens: torch.Tensor, end: int) -> None:
        if end > self.sent:
            self.streamer.put(tokens[:, self.sent : end].cpu())
            self.sent = end

    def end(self, sequences: torch.Tensor) -> None:
        """After the last step: what is left of the sequences, such as the fill of an infilled row that ended."""
        self._put_until(sequences, sequences.shape[1])
        self.streamer.end()


__all__ = ["StreamFeed", "ends_streamer"]
