"""
What a model records of its routers when it is asked to (`output_router_logits=True`): losses that keep the load of
experts even while they are trained, and how many tokens each of them saw.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_base import MixtureOfExpertsConfig


@dataclass
class MoeMaskedLMOutput(MaskedLMOutput):
    """
    [`~transformers.modeling_outputs.MaskedLMOutput`] with a record of the routers.

    Args:
        aux_loss (`torch.FloatTensor`):
            See [`router_aux_loss`]. It is part of `loss`.
        router_logits (`tuple[torch.Tensor, ...]`):
            Of every layer with experts, shape `(batch * length, num_experts)`.
        router_indices (`tuple[torch.LongTensor, ...]`):
            The chosen experts, of every layer with experts, shape `(batch * length, num_experts_per_tok)`.
    """

    aux_loss: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    router_indices: tuple[torch.Tensor, ...] | None = None


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...],
    router_indices: tuple[torch.Tensor, ...],
    score_function: str = "softmax",
    is_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The load balancing loss of Switch Transformers (arXiv 2101.03961, eq. 4-6), mean over layers: the number of experts
    times the sum, over experts, of the share of tokens that an expert sees times the mean probability it is given.
    That is the number of experts per token if all experts see equally many tokens.

    Args:
        router_logits, router_indices (`tuple[torch.Tensor, ...]`):
            See [`MoeMaskedLMOutput`].
        score_function (`str`, *optional*, defaults to `"softmax"`):
            What makes probabilities of logits. Those of `"sigmoid"` are divided by their sum.
        is_token (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
            `False` for padding, which does not count.

    Returns:
        `torch.FloatTensor`: A scalar.
    """
    num_experts = router_logits[0].shape[-1]
    usage = expert_usage(router_indices, num_experts, is_token)
    losses = []
    for logits, counts in zip(router_logits, usage, strict=True):
        scores = logits.float().softmax(dim=-1) if score_function == "softmax" else logits.float().sigmoid()
        probabilities = _mean(scores / scores.sum(dim=-1, keepdim=True), is_token)
        shares = counts / counts.sum().clamp(min=1) * router_indices[0].shape[-1]
        losses.append(num_experts * (shares.to(probabilities.device) * probabilities).sum())
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def router_z_loss(router_logits: tuple[torch.Tensor, ...], is_token: torch.Tensor | None = None) -> torch.Tensor:
    """
    The router z-loss of ST-MoE (arXiv 2202.08906, eq. 5), mean over layers: the squared log of the sum of exponentials
    of a token's logits. It keeps logits small.

    Args:
        router_logits (`tuple[torch.Tensor, ...]`):
            See [`MoeMaskedLMOutput`].
        is_token (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
            `False` for padding, which does not count.

    Returns:
        `torch.FloatTensor`: A scalar.
    """
    losses = [_mean(logits.float().logsumexp(dim=-1).square(), is_token) for logits in router_logits]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


def router_aux_loss(
    config: MixtureOfExpertsConfig,
    router_logits: tuple[torch.Tensor, ...],
    router_indices: tuple[torch.Tensor, ...],
    is_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Both losses with the weights of a configuration, `router_aux_loss_coef` and `router_z_loss_coef`.

    Args:
        config ([`MixtureOfExpertsConfig`]):
            The configuration.
        router_logits, router_indices (`tuple[torch.Tensor, ...]`):
            See [`MoeMaskedLMOutput`].
        is_token (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
            `False` for padding, which does not count.

    Returns:
        `torch.FloatTensor`: A scalar.
    """
    balance = load_balancing_loss(router_logits, router_indices, config.score_function, is_token)
    return config.router_aux_loss_coef * balance + config.router_z_loss_coef * router_z_loss(router_logits, is_token)


def expert_usage(
    router_indices: tuple[torch.Tensor, ...], num_experts: int, is_token: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Counts the tokens that every expert saw. Counts of several batches may be added up; the coverage of a layer, the
    share of its experts that saw anything, is `(usage > 0).float().mean(dim=-1)`.

    Args:
        router_indices (`tuple[torch.Tensor, ...]`):
            See [`MoeMaskedLMOutput`].
        num_experts (`int`):
            Number of experts.
        is_token (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
            `False` for padding, which does not count.

    Returns:
        `torch.LongTensor` of shape `(layers with experts, num_experts)`.
    """
    counts = []
    for indices in router_indices:
        one = torch.ones_like(indices) if is_token is None else is_token.reshape(-1, 1).expand_as(indices).long()
        counts.append(one.new_zeros(num_experts).scatter_add(0, indices.flatten(), one.flatten()))
    return torch.stack([count.to(counts[0].device) for count in counts])


def _mean(values: torch.Tensor, is_token: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens, the first dimension."""
    if is_token is None:
        return values.mean(dim=0)
    counted = is_token.reshape(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    return (values * counted).sum(dim=0) / counted.sum().clamp(min=1)


__all__ = ["MoeMaskedLMOutput", "expert_usage", "load_balancing_loss", "router_aux_loss", "router_z_loss"]
