"""Making room for an answer while it is filled."""

import copy
from collections.abc import Callable

import torch

from .answer_length import mean_of_last
from .canvas import Canvas
from .forwards import FullForward
from .proposals import Proposal
from .regions import Block
from .revision import Revision
from .scores import confidence, likeliest


class Expansion(Revision):
    """
    Puts more masks where the model does not know what to write, because there is too little room (DAEDAL, arXiv
    2508.00819, iterative mask insertion): in every step, of the masks of the block that stay, the one the model is
    least sure of is replaced by several if its confidence is below a threshold and the model is not sure that the text
    ends. What follows moves to the right, out of the block if need be; the block stays as long as it is. No row grows
    beyond the canvas.

    Args:
        threshold (`float`):
            Confidence below which a mask is replaced.
        factor (`int`):
            How many masks take its place, as far as there is room.
        end_threshold (`float`):
            How sure the model has to be that the text ends for its length to be left alone, see
            [`~llada.generation.answer_length.end_confidence`]. An end of text that is committed counts as 1.
        window (`int`):
            How many positions count for that.
        eos_token_ids (`torch.LongTensor` of shape `(ids,)`):
            Ids that end the text.
    """

    def __init__(self, threshold: float, factor: int, end_threshold: float, window: int, eos_token_ids: torch.Tensor):
        self.threshold = threshold
        self.factor = factor
        self.end_threshold = end_threshold
        self.window = window
        self.eos_token_ids = eos_token_ids

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        # all masks of the rows that take part in the step and may grow
        is_open = (canvas.masked & block.reached).any(1) & (canvas.ends < canvas.tokens.shape[1])
        return canvas.masked & ~block.reached & is_open.unsqueeze(1)

    def repeats(self, proposal: Proposal, changed: torch.Tensor, canvas: Canvas, block: Block) -> torch.Tensor:
        doubt = proposal.spread(proposal.confidence, torch.inf).masked_fill(~proposal.eligible | changed, torch.inf)
        grows = (doubt.amin(1) < self.threshold) & (self._end_confidence(proposal, canvas) < self.end_threshold)
        room = canvas.tokens.shape[1] - canvas.ends
        more = torch.where(grows, room.clamp(max=self.factor - 1), 0)
        position = doubt.argmin(1, keepdim=True)
        return torch.zeros_like(canvas.tokens).scatter_(1, position, more.unsqueeze(1))

    def _end_confidence(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        """How sure the model is that the text of each row ends, `(batch,)`."""
        tokens = likeliest(proposal.logits)
        probability = proposal.spread(confidence(proposal.logits, tokens), 1.0)
        text = torch.where(canvas.masked, proposal.spread(tokens, 0), canvas.tokens)
        is_end = torch.isin(text, self.eos_token_ids) & ~canvas.frozen
        return mean_of_last(probability, is_end, self.window)


class ExpandingForward(FullForward):
    """
    Computes the canvas up to the end of its longest row: what follows is room to grow.

    Args:
        model, guidance:
            As in [`~llada.generation.forwards.FullForward`].
        canvas ([`~llada.generation.canvas.Canvas`]):
            The canvas before the first step.
    """

    def __init__(self, model: Callable, canvas: Canvas, guidance: float = 0.0):
        super().__init__(model, guidance)
        self.padding = canvas.padding.tolist()

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        # in the same wait
        counts, ends = torch.stack([numbers, canvas.ends]).tolist()
        active = [row for row, count in enumerate(counts) if count]
        self.end = max((ends[row] for row in active), default=0)
        self.is_even = not any(self.padding[row] or ends[row] < self.end for row in active)
        return counts

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        if self.is_even:
            # attention without a mask has faster kernels
            canvas = copy.copy(canvas)
            canvas.attention_mask = None
        return super().__call__(canvas, wanted, counts)


__all__ = ["ExpandingForward", "Expansion"]
