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
        entropies (`torch.FloatTensor` of shape `(batch, length)`, *optional*):
            Entropy of the prediction in nats, 0 where nothing is scored, with `entropy_temperature`.
    """

    token_losses: torch.FloatTensor | None = None
    correct: torch.BoolTensor | None = None
    entropies: torch.FloatTensor | None = None


def find_leading_positions(given: torch.Tensor, labels: torch.Tensor, scored: torch.Tensor) -> torch.Tensor | None:
    """
    The positions of the input that have labels: the first ones.

    Args:
        given (`torch.Tensor` of shape `(batch, length)` or `(batch, length, hidden_size)`):
            The input.
        labels, scored (of shape `(batch, labelled)`):
            As in [`chunked_cross_entropy`], for as many positions as there are, or fewer.

    Returns:
        `torch.LongTensor` of shape `(batch, labelled)`, or `None` if these are all positions.

    Raises:
        ValueError: If the shapes do not fit.
    """
    batch, length = given.shape[:2]
    if labels.shape != scored.shape or labels.shape != (batch, min(labels.shape[-1], length)):
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and `logits_to_keep` {tuple(scored.shape)}; write both as "
            f"{(batch, length)}, or both shorter, for the first positions of the input."
        )
    num_labels = labels.shape[1]
    return None if num_labels == length else torch.arange(num_labels, device=labels.device).expand(batch, -1)


class _CrossEntropy(torch.autograd.Function):
    """
    Cross entropy, and whether the most likely token is the right one. The gradient is written over the only copy of
    the probabilities, where autograd has three: the logits of a chunk are most of what a step holds.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_probabilities = logits.log_softmax(dim=-1)
        counted = targets != -100
        index = targets.clamp(min=0).unsqueeze(-1)
        losses = log_probabilities.gather(-1, index).squeeze(-1).neg() * counted
        ctx.save_for_backward(log_probabilities, index, counted)
        correct = log_probabilities.argmax(dim=-1) == targets
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor, None]:
        log_probabilities, index, counted = ctx.saved_tensors
        # a second backward pass finds another version of this tensor, and says so
        gradient = (gradient * counted).unsqueeze(-1)
        result = log_probabilities.exp_().mul_(gradient)
        return result.scatter_add_(-1, index, -gradient), None


def chunked_cross_entropy(
    head: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    scored: torch.Tensor,
    entropy_temperature: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
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
        entropy_temperature (`float`, *optional*):
            Divides the logits whose entropy is computed, too. None is computed if not given.

    Returns:
        `tuple`: Cross entropy, whether the most likely token is the right one (`bool`), and entropy or `None`, of
        shape `(batch, length)` and 0 where nothing is scored. The first and the last are differentiable, also if
        nothing is scored at all.
    """

    def score(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = targets.to(logits.device)
        if entropy_temperature is None:
            return _CrossEntropy.apply(logits, targets)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        correct = logits.detach().argmax(dim=-1) == targets
        # not `torch.special.entr`, whose gradient is infinite where a probability rounds to 0
        log_probabilities = nn.functional.log_softmax(logits / entropy_temperature, dim=-1)
        return losses, correct, -(log_probabilities.exp() * log_probabilities).sum(dim=-1)

    # layers and head may be on several devices
    states = hidden_states[scored.to(hidden_states.device)]
    chunks = list(zip(states.split(CHUNK), labels[scored].split(CHUNK), strict=True))
    parts = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks[:-1]]
    # the backward pass starts here, so these logits may stay until then
    parts.append(score(*chunks[-1]))
    scores = [torch.cat(part) for part in zip(*parts, strict=True)]
    scored = scored.to(scores[0].device)
    scores = [values.new_zeros(scored.shape).masked_scatter(scored, values) for values in scores]
    return scores[0], scores[1], scores[2] if len(scores) > 2 else None


__all__ = ["CHUNK", "TokenLossOutput", "chunked_cross_entropy", "find_leading_positions"]
