"""Drafting and verifying in one forward pass, by a copy of the block that sees it: WINO (arXiv 2507.18578)."""

import copy

import torch

from ..canvas import Canvas, true_first
from ..forwards.full import FullForward
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import floors
from .remasking import Remasking
from .selection import AdaptiveSelector


class DraftSelector(AdaptiveSelector):
    """
    Commits what exceeds a low threshold, but at most a share of the masks of the block (WINO, arXiv 2507.18578).

    Args:
        threshold (`float`):
            The confidence to exceed.
        floors (`list[list[list[int]]]`, *optional*):
            As in [`~llada.generation.rules.selection.AdaptiveSelector`].
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

    same_shapes = False

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


class ShadowVerification(Remasking):
    """
    Masks tokens again that the model would not write if it did not see them (WINO, arXiv 2507.18578). Goes with
    [`ShadowForward`]. Only steps that commit at least two tokens take some back, and if these
    are as many as the step before committed, one fewer.

    Args:
        threshold (`float`):
            Probability below which a token is taken back.
        first_limit (`int`, *optional*, defaults to 30):
            What limits the first step of a block.
    """

    def __init__(self, threshold: float, first_limit: int = 30):
        super().__init__(threshold)
        self.first_limit = first_limit

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.limit = torch.full_like(canvas.ends, self.first_limit)

    def most(self, unlikely: torch.Tensor, committed: torch.Tensor) -> torch.Tensor:
        most = torch.where(unlikely >= self.limit, self.limit - 1, unlikely)
        self.limit = torch.where(committed > 0, committed, self.limit)
        return torch.where(committed > 1, most, 0)


class Wino(Rule):
    """Drafts that are verified and taken back."""

    switches = ("verify_threshold",)
    refines = "threshold"
    decides = ("how a threshold is used", "what becomes of kept predictions")
    traits = frozenset({"aligns_rows", "needs_whole_canvas", "reopens", "sees_both_sides"})
    table = Table(
        "threshold",
        "WINO",
        "[2507.18578](https://arxiv.org/abs/2507.18578)",
        "a forward pass computes the block twice, with a mask per query (no flash attention), no cache",
        "quality at a low threshold: drafts are verified and taken back",
    )

    class Settings(Fields):
        verify_threshold: float | None = probability(
            "With a low `threshold`: takes back the tokens of the block that the model gives less probability than "
            "this when they are hidden from it (WINO, arXiv 2507.18578). A forward pass computes the block twice."
        )

    @classmethod
    def selector(cls, setup: Setup) -> DraftSelector:
        return DraftSelector(setup.config.threshold, floors(setup))

    @classmethod
    def revision(cls, setup: Setup) -> ShadowVerification:
        return ShadowVerification(setup.config.verify_threshold)

    @classmethod
    def forward(cls, setup: Setup, selector) -> ShadowForward:
        return ShadowForward(setup.model, setup.config.guidance)


__all__ = ["DraftSelector", "ShadowForward", "ShadowVerification", "Wino"]
