"""Taking back what was committed, so that it can be predicted anew with more context."""

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block
from .revision import Revision
from .scores import confidence


class Remasking(Revision):
    """
    Masks committed tokens of the current block again that have become unlikely: those whose probability, given what
    the canvas now holds, has fallen below a threshold, the least likely first, and in every step fewer than it
    commits, so that it ends (dInfer, arXiv 2510.08666, hierarchical decoding with remasking). Models that were trained
    on masked positions only judge visible tokens poorly; [`ShadowVerification`] hides each from itself.

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


class ShadowVerification(Remasking):
    """
    Masks tokens again that the model would not write if it did not see them (WINO, arXiv 2507.18578). Goes with
    [`~llada.generation.shadow.ShadowForward`]. Only steps that commit at least two tokens take some back, and if these
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


__all__ = ["Remasking", "ShadowVerification"]
