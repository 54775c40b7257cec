"""Taking back or replacing what was committed."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block


class Revision:
    """Base of the rules that change committed positions. This one changes none."""

    # whether text may still change while its block is not finished
    revises = False
    # what is particular about the rule, of `TRAITS`: with which others it cannot work
    traits: frozenset[str] = frozenset()

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
            proposal ([`~llada.generation.proposal.Proposal`]):
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


__all__ = ["Revision"]
