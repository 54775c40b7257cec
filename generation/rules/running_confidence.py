"""Filling all, and masking the least sure again: running-confidence remasking of MDPO (arXiv 2508.13148)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from .revision import Revision


class RunningConfidence(Revision):
    """
    Compares what a step predicts with what earlier steps of the block kept (running-confidence remasking of MDPO,
    arXiv 2508.13148): every mask is filled and its score noted, then the positions with the lowest noted scores are
    masked again, as many as the plan leaves after the step, whether they were filled in this step or before. A
    position that is predicted again gets its new score. The last step of a plan leaves no mask, so that nothing is
    masked again.

    Committed positions keep the score of the step that predicted them, so none of their logits are needed. What is
    filled and masked again in the same step has not changed; in every step more positions are kept than before.
    """

    revises = True

    def begin(self, canvas: Canvas, block: Block) -> None:
        # of text that was given there is none, and it is never masked
        self.noted = torch.full_like(canvas.confidence, -torch.inf)

    def revise(
        self, proposal: Proposal, committed: torch.Tensor, canvas: Canvas, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.noted = torch.where(canvas.masked, proposal.eligible_scores(), self.noted)
        is_noted = self.noted > -torch.inf
        most = (is_noted & ~canvas.masked).sum(1) + committed.sum(1)
        order = self.noted.argsort(dim=1, descending=True, stable=True)
        ranks = torch.arange(order.shape[1], device=order.device).expand(order.shape)
        kept = is_noted & torch.zeros_like(is_noted).scatter_(1, order, ranks < most.unsqueeze(1))
        taken = is_noted & ~canvas.masked & ~kept
        tokens = proposal.spread(proposal.tokens, canvas.tokens).masked_fill(taken, canvas.mask_token_id)
        return (kept & canvas.masked) | taken, tokens


class RunningConfidenceRemasking(Rule):
    """A plan of steps whose choices may be taken back."""

    switches = ("running_confidence",)
    decides = ("what becomes of kept predictions",)
    traits = frozenset({"changes_order", "needs_a_plan", "reopens"})
    table = Table(
        "any",
        "running confidence",
        "RCR of MDPO, [2508.13148](https://arxiv.org/abs/2508.13148)",
        "a sort per step",
        "few steps of a fixed plan: what an early step was least sure of is predicted anew. Only with a fixed plan",
    )

    class Settings(Fields):
        running_confidence: bool | None = setting(
            bool,
            "With a fixed plan of steps: each fills all masks of the block, and masks again as many as the plan "
            "leaves, those that the model was least sure of when it predicted them, in this step or before (MDPO, "
            "arXiv 2508.13148).",
        )

    @classmethod
    def revision(cls, setup: Setup) -> RunningConfidence:
        return RunningConfidence()


__all__ = ["RunningConfidence", "RunningConfidenceRemasking"]
