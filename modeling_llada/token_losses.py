"""
Cross entropy per token, without the logits of a batch in memory at once. With 126,464 tokens in the vocabulary, the
logits of a training batch are larger than everything else that a step keeps.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .router_losses import MoeMaskedLMOutput


# positions whose logits are in memory at once
CHUNK = 128


@dataclass
class TokenLossOutput(MoeMaskedLMOutput):
    """
    What a model returns with `token_losses=True`: everything but logits.

    Args:
        token_losses (`torch.FloatTensor` of shape `(batch, length)`):
            Cross entropy, 0 where nothing is scored.
        correct (`torch.BoolTensor` of shape `(batch, length)`):
            Where the most likely token is the label.
    """

    token_losses: torch.FloatTensor | None = None
    correct: torch.BoolTensor | None = None


def chunked_cross_entropy(
    head: nn.Module, hidden_states: torch.Tensor, labels: torch.Tensor, scored: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cross entropy of some positions. Logits are computed for [`CHUNK`] positions at a time and, for gradients, once
    more: peak memory does not grow with the number of positions. Softmax is computed in float32 at least.

    Args:
        head (`nn.Module`):
            The head. It is called as a module, so that adapters, hooks and sharded weights do what they do elsewhere.
        hidden_states (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            Last hidden states.
        labels (`torch.LongTensor` of shape `(batch, length)`):
            The right tokens, -100 where nothing is scored.
        scored (`torch.BoolTensor` of shape `(batch, length)`):
            Which positions are scored.

    Returns:
        `tuple`: Cross entropy and whether the most likely token is the right one (`bool`), both of shape
        `(batch, length)` and 0 where nothing is scored. The first is differentiable, also if nothing is scored at all.
    """

    def score(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = targets.to(logits.device)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses, logits.detach().argmax(dim=-1) == targets

    # layers and head may be on several devices
    states = hidden_states[scored.to(hidden_states.device)]
    chunks = list(zip(states.split(CHUNK), labels[scored].split(CHUNK), strict=True))
    parts = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks[:-1]]
    # the backward pass starts here, so these logits may stay until then
    parts.append(score(*chunks[-1]))
    losses, correct = (torch.cat(part) for part in zip(*parts, strict=True))
    scored = scored.to(losses.device)
    return (
        losses.new_zeros(scored.shape).masked_scatter(scored, losses),
        correct.new_zeros(scored.shape).masked_scatter(scored, correct),
    )


__all__ = ["CHUNK", "TokenLossOutput", "chunked_cross_entropy"]
