"""What the model would put at the positions it was asked about."""

from dataclasses import dataclass

import torch


@dataclass
class Proposal:
    """
    What the model would put at the positions it was asked about.

    Args:
        index (`torch.LongTensor` of shape `(positions,)`):
            Where they are, counted through the canvas row by row.
        shape (`torch.Size`):
            Shape of the canvas, `(batch, length)`.
        logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
            Their logits, with guidance and constraints.
        tokens (`torch.LongTensor` of shape `(positions,)`):
            The proposed tokens.
        confidence (`torch.FloatTensor` of shape `(positions,)`):
            The probabilities of these tokens.
        scores (`torch.FloatTensor` of shape `(positions,)`):
            How good each is. Of the positions that are eligible, the best is committed first.
        eligible (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that may be committed: those of `index` that are masked, and whose logits and score are
            numbers.
    """

    index: torch.Tensor
    shape: torch.Size
    logits: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    scores: torch.Tensor
    eligible: torch.Tensor

    def eligible_scores(self) -> torch.Tensor:
        """The scores on the canvas, `(batch, length)`, minus infinity where nothing may be committed."""
        return self.spread(self.scores, -torch.inf).masked_fill(~self.eligible, -torch.inf)

    def entropy(self) -> torch.Tensor:
        """The entropies of the distributions in nats, `torch.FloatTensor` of shape `(positions,)`."""
        return torch.special.entr(self.logits.float().softmax(1)).sum(1)

    def top(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `k` likeliest tokens and their probabilities, both of shape `(positions, k)`, the likeliest first."""
        values, tokens = self.logits.float().softmax(1).topk(k, dim=1)
        return tokens, values

    def spread(self, values: torch.Tensor, elsewhere: float | bool | torch.Tensor) -> torch.Tensor:
        """Values of shape `(positions,)` on the canvas, `elsewhere` where nothing was asked."""
        if isinstance(elsewhere, torch.Tensor):
            canvas = elsewhere.flatten()
        else:
            canvas = values.new_full((self.shape.numel(),), elsewhere)
        return canvas.index_copy(0, self.index, values).view(self.shape)


__all__ = ["Proposal"]
