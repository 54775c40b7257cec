"""Feeding streamers: settled text once, what is still being denoised as a draft after every step."""

import torch

from .canvas import Canvas, Delta
from .denoising import Listener
from .regions import Block


class StreamFeed(Listener):
    """
    Passes a growing canvas to a streamer of transformers. A token is settled once no mask stands before it; settled
    tokens go to `put`, once. If the streamer has a `put_draft` method, like
    [`~transformers.TextDiffusionStreamer`], it gets what follows after every step, masks included. What stands after
    the end of the text is not streamed.

    Args:
        streamer ([`~transformers.generation.BaseStreamer`]):
            The streamer. Those of transformers take one sequence.
        canvas ([`Canvas`]):
            The canvas before the first step. Its given beginning is put at once.
        revises (`bool`, *optional*, defaults to `False`):
            Whether committed tokens may change until their block is finished. They are settled then.
    """

    def __init__(self, streamer, canvas: Canvas, revises: bool = False):
        self.streamer = streamer
        self.revises = revises
        self.sent = int(canvas.masked.int().argmax(1).min())
        streamer.put(canvas.tokens[:, : self.sent].cpu())

    def on_step(self, canvas: Canvas, delta: Delta) -> None:
        if not self.revises:
            self._put(canvas)
        end = int(canvas.ends.max())
        if self.sent < end and hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(canvas.tokens[:, self.sent : end].cpu())

    def on_block_end(self, canvas: Canvas, block: Block) -> None:
        self._put(canvas)

    def _put(self, canvas: Canvas) -> None:
        end = int(canvas.ends.max())
        settled = int(torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), end).min())
        if settled > self.sent:
            self.streamer.put(canvas.tokens[:, self.sent : settled].cpu())
            self.sent = settled

    def end(self) -> None:
        """After the last step."""
        self.streamer.end()


__all__ = ["StreamFeed"]
