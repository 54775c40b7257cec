"""
Cross entropy per token, without the logits of a batch in memory at once. With 126,464 tokens in the vocabulary, the
logits of a training batch are larger than everything else that a step keeps.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .router_losses import MoeMaskedLMOutput


# positions whose logits are in memory at once
CHUNK = 128


@dataclass
class TokenLossOutput(MoeMaskedLMOutput):
    """
    What a model returns with `token_losses=True`: everything but logits.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            With `loss_weights`, the sum of the losses of all tokens, each times its weight.
        token_losses (`torch.FloatTensor` of shape `(batch, length)`):
            Cross entropy, 0 where nothing is scored. With `loss_weights`, it has no gradient.
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


def _widen(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy, whether the most likely token is the right one, and all probabilities."""
    # on a CPU, several times as fast as `log_softmax`; the largest probability is never rounded to 0
    probabilities = logits.softmax(dim=-1)
    best = logits.argmax(dim=-1, keepdim=True)
    index = targets.clamp(min=0).unsqueeze(-1)
    losses = logits.gather(-1, best) - logits.gather(-1, index) - probabilities.gather(-1, best).log()
    return losses.squeeze(-1) * (targets != -100), best.squeeze(-1) == targets, probabilities


def _write_gradient(probabilities: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The gradient of weighted losses with respect to logits, written over the probabilities."""
    weights = (weights * (targets != -100)).unsqueeze(-1).to(probabilities.dtype)
    return probabilities.mul_(weights).scatter_add_(-1, targets.clamp(min=0).unsqueeze(-1), -weights)


class _CrossEntropy(torch.autograd.Function):
    """
    Cross entropy, and whether the most likely token is the right one. The gradient is written over the only copy of
    the probabilities, where autograd has three: the logits of a chunk are most of what a step holds.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses, correct, probabilities = _score(logits, targets)
        ctx.save_for_backward(probabilities, targets)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor, None]:
        # a second backward pass finds another version of the probabilities, and says so
        probabilities, targets = ctx.saved_tensors
        return _write_gradient(probabilities, targets, gradient), None


class _WeightedCrossEntropy(torch.autograd.Function):
    """
    The weighted sum of cross entropies, which also gives what [`_CrossEntropy`] does. As the weights are known, the
    gradients of states and head are computed with the logits of a chunk, which are then forgotten, and not once more.
    """

    @staticmethod
    def forward(
        ctx,
        head: nn.Module,
        names: list[str],
        states: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # others than those of the head, whose hooks wait for the backward pass
        leaves = {name: given.detach().requires_grad_() for name, given in zip(names, parameters, strict=True)}
        parts = [part.detach().requires_grad_(ctx.needs_input_grad[2]) for part in states.split(CHUNK)]
        chunks = zip(parts, targets.split(CHUNK), weights.split(CHUNK), strict=True)
        scores = [_differentiate(head, leaves, *chunk) for chunk in chunks]
        of_states = torch.cat([part.grad for part in parts]) if ctx.needs_input_grad[2] else None
        ctx.gradients = [of_states, None, None, *(leaf.grad for leaf in leaves.values())]
        losses, correct, sums = (torch.cat(values) for values in zip(*scores, strict=True))
        ctx.mark_non_differentiable(losses, correct)
        return sums.sum(), losses, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor, *_: None) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The gradient of this loss was taken before; call the model again.")
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(None if one is None else one.mul_(gradient.to(one.device)) for one in gradients)


def _differentiate(
    head: nn.Module,
    parameters: dict[str, torch.Tensor],
    states: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of a chunk, whether they are right, and weighted losses, whose gradient is added to those of leaves."""
    with torch.enable_grad():
        logits = functional_call(head, parameters, (states,))
    targets, weights = targets.to(logits.device), weights.to(logits.device)
    losses, correct, probabilities = _score(_widen(logits.detach()), targets)
    logits.backward(_write_gradient(probabilities, targets, weights).to(logits.dtype))
    return losses, correct, losses * weights


def _can_differentiate_at_once(head: nn.Module, states: torch.Tensor) -> bool:
    """
    Whether gradients of the head may be computed in the forward pass. Weights that are sharded or quantised are not
    simply those that the head computes with, and float16 needs the loss to be scaled before.
    """
    parameters = list(head.parameters())
    is_plain = all(type(parameter) is nn.Parameter and parameter.numel() for parameter in parameters)
    needed = states.requires_grad or any(parameter.requires_grad for parameter in parameters)
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    return torch.is_grad_enabled() and needed and bool(parameters) and is_plain and dtype != torch.float16


def chunked_cross_entropy(
    head: nn.Module,
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    scored: torch.Tensor,
    entropy_temperature: float | None = None,
    weights: torch.Tensor | None = None,
) -> TokenLossOutput:
    """
    Cross entropy of some positions. Logits are computed for [`CHUNK`] positions at a time: peak memory does not grow
    with the number of positions. Softmax is computed in float32 at least.

    For gradients, they are computed once more in the backward pass; if `weights` are given, together with the
    gradient, and once. The latter needs a head whose weights are whole, no float16 and no entropies. Elsewhere,
    `weights` change nothing but the results.

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
        weights (`torch.FloatTensor` of shape `(batch, length)`, *optional*):
            What each cross entropy counts in the loss. No gradient reaches them.

    Returns:
        [`TokenLossOutput`] with `token_losses`, `correct` and, if they are asked for, `entropies` and `loss`. They are
        differentiable also if nothing is scored at all.
    """

    def score(states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = _widen(head(states))
        targets = targets.to(logits.device)
        if entropy_temperature is None:
            return _CrossEntropy.apply(logits, targets)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        correct = logits.detach().argmax(dim=-1) == targets
        # not `torch.special.entr`, whose gradient is infinite where a probability rounds to 0
        log_probabilities = nn.functional.log_softmax(logits / entropy_temperature, dim=-1)
        return losses, correct, -(log_probabilities.exp() * log_probabilities).sum(dim=-1)

    # one wait for the device, of which there may be several
    places = scored.flatten().nonzero().squeeze(1)
    states = hidden_states.flatten(0, 1).index_select(0, places.to(hidden_states.device))
    targets = labels.flatten()[places.to(labels.device)]
    counts = None if weights is None else weights.detach().flatten()[places.to(weights.device)]
    loss = None
    if counts is not None and entropy_temperature is None and _can_differentiate_at_once(head, states):
        trained = {name: parameter for name, parameter in head.named_parameters() if parameter.requires_grad}
        loss, *scores = _WeightedCrossEntropy.apply(head, [*trained], states, targets, counts, *trained.values())
    else:
        chunks = list(zip(states.split(CHUNK), targets.split(CHUNK), strict=True))
        parts = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks[:-1]]
        # the backward pass starts here, so these logits may stay until then
        parts.append(score(*chunks[-1]))
        scores = [torch.cat(part) for part in zip(*parts, strict=True)]
        if counts is not None:
            loss = (scores[0] * counts.to(scores[0].device)).sum()
            scores[0] = scores[0].detach()
    scored = scored.to(scores[0].device)
    scores = [values.new_zeros(scored.shape).masked_scatter(scored, values) for values in scores]
    token_losses, correct, *entropies = scores
    return TokenLossOutput(
        loss=loss, token_losses=token_losses, correct=correct, entropies=next(iter(entropies), None)
    )


__all__ = ["CHUNK", "TokenLossOutput", "chunked_cross_entropy", "find_leading_positions"]
