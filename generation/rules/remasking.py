"""Taking back what has become unlikely, to predict it anew: remasking of dInfer (arXiv 2510.08666)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from ..scores import confidence
from .revision import Revision


class Remasking(Revision):
    """
    Masks committed tokens of the current block again that have become unlikely: those whose probability, given what
    the canvas now holds, has fallen below a threshold, the least likely first, and in every step fewer than it
    commits, so that it ends (dInfer, arXiv 2510.08666, hierarchical decoding with remasking). Models that were trained
    on masked positions only judge visible tokens poorly; [`~llada.generation.rules.wino.ShadowVerification`] hides
    each from itself.

    Args:
        threshold (`float`):
            Probability below which a token is taken back.
    """

    revises = True

    def __init__(self, threshold: float):
        self.threshold = threshold

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        has_masks = (canvas.masked & block.reached).any(1, keepdim=True)
        return block.inside & ~canvas.masked & has_masks

    def most(self, unlikely: torch.Tensor, committed: torch.Tensor) -> torch.Tensor:
        """
        How many tokens of each row may be taken back, `torch.LongTensor` of shape `(batch,)`, where so many are
        `unlikely` and `committed` in this step, both of shape `(batch,)`.
        """
        return committed - 1

    def revise(
        self, proposal: Proposal, committed: torch.Tensor, canvas: Canvas, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        present = canvas.tokens.flatten()[proposal.index]
        probability = proposal.spread(confidence(proposal.logits, present, proposal.confidence.dtype), torch.inf)
        probability = probability.masked_fill(canvas.masked | ~block.inside, torch.inf)
        values, order = probability.sort(dim=1, stable=True)
        most = self.most((probability < self.threshold).sum(1), committed.sum(1))
        ranks = torch.arange(values.shape[1], device=values.device)
        taken = (values < self.threshold) & (ranks < most.unsqueeze(1))
        taken = torch.zeros_like(taken).scatter_(1, order, taken)
        tokens = proposal.spread(proposal.tokens, canvas.tokens).masked_fill(taken, canvas.mask_token_id)
        return committed | taken, tokens


class TakingBack(Rule):
    """A bound on the probability of what was committed."""

    switches = ("remask_threshold",)
    decides = ("what becomes of kept predictions",)
    traits = frozenset({"outlasts_a_plan", "reopens"})
    table = Table(
        "any",
        "remasking",
        "dInfer's variant of hierarchical",
        "the head at committed positions of the block",
        "a low threshold with models that were trained on visible tokens; LLaDA-8B was not, use WINO",
    )

    class Settings(Fields):
        remask_threshold: float | None = probability(
            "With `threshold`, `factor`, `frechet_margin` or `entropy_bound`: takes back tokens of the current block "
            "whose probability has fallen below this, fewer per step than it keeps."
        )

    @classmethod
    def revision(cls, setup: Setup) -> Remasking:
        return Remasking(setup.config.remask_threshold)


__all__ = ["Remasking", "TakingBack"]
