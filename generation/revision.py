"""Taking back or replacing what was committed."""

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block


class Revision:
    """Base of the rules that change committed positions. This one changes none."""

    # whether text may still change while its block is not finished
    revises = False

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        """
        The committed positions whose logits the rule needs in the coming step, `torch.BoolTensor` of shape
        `(batch, length)`. A block goes on as long as something is watched or eligible.
        """
        return torch.zeros_like(canvas.masked)

    def revise(
        self, proposal: Proposal, committed: torch.Tensor, canvas: Canvas, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            proposal ([`~llada.generation.proposals.Proposal`]):
                Tokens and scores of the eligible and the watched positions.
            committed (`torch.BoolTensor` of shape `(batch, length)`):
                The positions that this step commits.
            canvas ([`Canvas`]):
                The canvas before this step.
            block ([`Block`]):
                The block.

        Returns:
            `tuple`: The positions that this step changes, the committed ones included, and the tokens of the canvas
            after it, both of shape `(batch, length)`.
        """
        return committed, proposal.spread(proposal.tokens, canvas.tokens)

    def repeats(self, proposal: Proposal, changed: torch.Tensor, canvas: Canvas, block: Block) -> torch.Tensor | None:
        """
        How many more masks this step puts behind each mask that it leaves, `torch.LongTensor` of shape `(batch,
        length)`, `None` if the rule never does. The arguments are those of `revise`, with the positions it returned.
        """
        return None


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


__all__ = ["Revision", "TokenEditing"]
