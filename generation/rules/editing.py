"""Replacing committed tokens: token editing of LLaDA2.1 (arXiv 2602.08676)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability, setting
from .revision import Revision


class TokenEditing(Revision):
    """
    Replaces committed tokens of the current block that the model would write differently (LLaDA2.1, arXiv 2602.08676,
    Eq. 1-3): in every step those whose proposal differs and is surer than a threshold. A block is finished when a step
    that found no mask edited nothing, or after `max_post_steps` steps that found no mask.

    Args:
        editing_threshold (`float`):
            Confidence that a proposal has to exceed. 0 edits everything that differs.
        max_post_steps (`int`):
            Steps per block after its masks are filled.
    """

    revises = True

    def __init__(self, editing_threshold: float, max_post_steps: int):
        self.editing_threshold = editing_threshold
        self.max_post_steps = max_post_steps

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.open = block.inside.any(1) & ~canvas.finished
        self.post_steps = torch.zeros_like(canvas.ends)

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        self.clean = ~(canvas.masked & block.reached).any(1)
        self.post_steps = self.post_steps + self.clean.long()
        self.open = self.open & (self.post_steps <= self.max_post_steps)
        return block.inside & ~canvas.masked & self.open.unsqueeze(1)

    def revise(
        self, proposal: Proposal, committed: torch.Tensor, canvas: Canvas, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = proposal.spread(proposal.tokens, canvas.tokens)
        sure = proposal.spread(proposal.confidence, 0.0) > self.editing_threshold
        watched = block.inside & ~canvas.masked & self.open.unsqueeze(1)
        edited = watched & sure & (tokens != canvas.tokens)
        self.open = self.open & ~(self.clean & ~edited.any(1))
        return committed | edited, tokens


class Editing(Rule):
    """A bound on the confidence of what replaces a token."""

    switches = ("editing_threshold",)
    needs = "threshold"
    decides = ("what becomes of kept predictions",)
    traits = frozenset({"reopens"})
    table = Table(
        "any",
        "token editing",
        "LLaDA2.1, [2602.08676](https://arxiv.org/abs/2602.08676)",
        "the same, and steps after a block is filled",
        "LLaDA2.1, which was trained for it",
    )

    class Settings(Fields):
        editing_threshold: float | None = probability(
            "Replaces committed tokens of the current block by predictions that differ and are surer than this "
            "(LLaDA2.1, arXiv 2602.08676). 0 replaces all that differ, `None` none. Needs `threshold`."
        )
        max_post_steps: int | None = setting(
            int,
            "Steps that may follow in a block after its masks are filled, to edit.",
            default=16,
            least=0,
            # edits may go round in circles
            most=1000,
            alone=True,
        )

    @classmethod
    def revision(cls, setup: Setup) -> TokenEditing:
        return TokenEditing(setup.config.editing_threshold, cls.get(setup.config, "max_post_steps"))


__all__ = ["Editing", "TokenEditing"]
