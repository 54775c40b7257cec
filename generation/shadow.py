"""Drafting and verifying in one forward pass: a second copy of the block, all masks, that sees the first."""

import copy

import torch

from .canvas import Canvas, true_first
from .forwards import FullForward
from .proposals import Proposal
from .regions import Block
from .selection import AdaptiveSelector


class DraftSelector(AdaptiveSelector):
    """
    Commits what exceeds a low threshold, but at most a share of the masks of the block (WINO, arXiv 2507.18578).

    Args:
        threshold (`float`):
            The confidence to exceed.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.selection.AdaptiveSelector`].
        tenths (`int`, *optional*, defaults to 7):
            The share in tenths.
        least, most (`int`, *optional*, default to 5 and 20):
            Bounds of that number.
    """

    def __init__(
        self,
        threshold: float,
        floors: list[list[list[int]]] | None = None,
        tenths: int = 7,
        least: int = 5,
        most: int = 20,
    ):
        super().__init__(floors)
        self.threshold = threshold
        self.tenths, self.least, self.most = tenths, least, most

    def sure(self, scores: torch.Tensor, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        most = (proposal.eligible.sum(1) * self.tenths // 10).clamp(self.least, self.most)
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        ranks = torch.arange(scores.shape[1], device=scores.device)
        chosen = (ranked > self.threshold) & (ranks < most.unsqueeze(1))
        return torch.zeros_like(chosen).scatter_(1, order, chosen)


class ShadowForward(FullForward):
    """
    Appends a shadow of the current block to the canvas: masks at the positions of the block. The canvas does not see
    them; they see it, but none sees the position that it stands for. So a shadow predicts a committed token from all
    but itself. The logits of masked positions are those of the canvas, the logits of committed ones those of their
    shadows (WINO, arXiv 2507.18578).
    """

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.block = block
        length, device = canvas.tokens.shape[1], canvas.tokens.device
        places = torch.arange(length, device=device)
        self.places = torch.cat([places, places[block.start : block.end]])
        is_shadow = torch.arange(len(self.places), device=device) >= length
        own = is_shadow.unsqueeze(1) & (self.places.unsqueeze(1) == places)
        seen_by_canvas = torch.cat([~own, is_shadow.unsqueeze(1).expand(-1, block.end - block.start)], dim=1)
        # text that was given has no shadow
        seen = torch.cat([torch.ones_like(block.inside), block.inside[:, block.start : block.end]], dim=1)
        if canvas.attention_mask is not None:
            seen[:, :length] &= canvas.attention_mask.bool()
        self.visible = (seen_by_canvas & seen.unsqueeze(1)).unsqueeze(1)  # [batch, 1, queries, keys]

    def _keep(self, canvas: Canvas, wanted: torch.Tensor) -> torch.Tensor:
        """What is wanted of the longer canvas."""
        shadow = (wanted & ~canvas.masked)[:, self.block.start : self.block.end]
        return torch.cat([wanted & canvas.masked, shadow], dim=1)

    def index(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        keep = self._keep(canvas, wanted)
        cells = true_first(keep.flatten(), sum(counts))
        return cells // keep.shape[1] * canvas.tokens.shape[1] + self.places[cells % keep.shape[1]]

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        shadow = canvas.tokens.new_full((len(canvas.tokens), self.block.end - self.block.start), canvas.mask_token_id)
        longer = copy.copy(canvas)
        longer.tokens = torch.cat([canvas.tokens, shadow], dim=1)
        longer.frozen = torch.cat([canvas.frozen, torch.zeros_like(shadow, dtype=torch.bool)], dim=1)
        longer.attention_mask = self.visible
        rows = [row for row, count in enumerate(counts) if count]
        everything = slice(None)
        extra = {"position_ids": self.places.unsqueeze(0)}
        return self._run(longer, self._keep(canvas, wanted), counts, rows, everything, everything, extra)


__all__ = ["DraftSelector", "ShadowForward"]
