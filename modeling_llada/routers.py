"""
Routers: which experts see a token, and how much each of them counts.

A new way of routing is a class here and an entry in `ROUTERS`, under the name that configurations call it by.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .configuration_base import MixtureOfExpertsConfig
from .exact_buffers import ExactBuffersMixin


class RoutingBlocks(NamedTuple):
    """
    The blocks whose tokens share a pool of experts.

    Args:
        block_ids (`torch.LongTensor` of shape `(batch, length)`):
            The block of every token, counted from 0 in every row.
        is_token (`torch.BoolTensor` of shape `(batch, length)`):
            `False` for padding, which has no say in the pool.
    """

    block_ids: torch.Tensor
    is_token: torch.Tensor


def find_routing_blocks(
    position_ids: torch.Tensor, is_token: torch.Tensor | None, batch: int, block_size: int
) -> RoutingBlocks:
    """
    Cut rows into blocks by their positions: `block_size` positions each, counted from position 0.

    The published code counts tokens, and needs lengths that are multiples of `block_size`. Counted by positions, the
    blocks are the same for such rows, the last block of any other row is a short one, and left padding does not move
    blocks as long as positions do not count it. A position that is not larger than the one before it begins a new
    sequence, and with it a new block: packed documents and a second, clean copy of the text route by themselves.

    Args:
        position_ids (`torch.Tensor` of shape `(batch or 1, length)`):
            The positions.
        is_token (`torch.BoolTensor` of shape `(batch, length)`, *optional*):
            `False` for padding. All are tokens if not given.
        batch (`int`):
            Number of rows.
        block_size (`int`):
            Length of a block.

    Returns:
        [`RoutingBlocks`]: the blocks.
    """
    blocks = torch.div(position_ids, block_size, rounding_mode="floor")
    begins = (blocks[:, 1:] != blocks[:, :-1]) | (position_ids[:, 1:] <= position_ids[:, :-1])
    index = nn.functional.pad(begins.cumsum(1), (1, 0)).expand(batch, -1)
    return RoutingBlocks(index, torch.ones_like(index, dtype=torch.bool) if is_token is None else is_token)


def find_cut_block(position_ids: torch.Tensor, block_size: int) -> torch.Tensor:
    """
    The tokens of a part of a text that begins inside a block, up to the end of that block. Their pool lacks what the
    tokens before them would have voted for, so that what is computed for them is not what the whole text gives.

    Args:
        position_ids (`torch.LongTensor` of shape `(batch or 1, length)`):
            The positions of the part.
        block_size (`int`):
            Length of a block.

    Returns:
        `torch.BoolTensor` of the same shape.
    """
    first = position_ids[:, :1]
    return (position_ids // block_size == first // block_size) & (first % block_size != 0)


class TopKRouter(nn.Module):
    """
    Base class of routers that choose a fixed number of experts for every token.

    Called with the tokens, of shape `(batch, length, hidden_size)`, and the [`RoutingBlocks`] if the configuration has
    an `expert_capacity`, a router returns logits of shape `(batch * length, num_experts)`, then the weights and the
    indices of the chosen experts, both of shape `(batch * length, num_experts_per_tok)`.

    Args:
        config ([`MixtureOfExpertsConfig`]):
            The configuration.
    """

    def __init__(self, config: MixtureOfExpertsConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = bool(config.norm_topk_prob) and self.top_k > 1
        self.scaling_factor = 1 if config.routed_scaling_factor is None else config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def _scaled(self, scores: torch.Tensor) -> torch.Tensor:
        if self.norm_topk_prob:
            scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        return scores * self.scaling_factor

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, top_k={self.top_k}"


class SoftmaxRouter(TopKRouter):
    """The router of LLaDA-MoE: the most probable experts, weighted by their probabilities among all of them."""

    def forward(
        self, hidden_states: torch.Tensor, blocks: RoutingBlocks | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = nn.functional.linear(hidden_states.flatten(0, 1), self.weight)
        scores, indices = logits.softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        return logits, self._scaled(scores).to(logits.dtype), indices


class SigmoidRouter(ExactBuffersMixin, TopKRouter):
    """
    The router of LLaDA2. Every expert has a probability of its own. A bias per expert, which balances their load,
    takes part in the choice but not in the weights. Everything is computed in float32, and the bias is not rounded:
    experts a rounding apart would change places.

    Two rules narrow the choice down: in LLaDA2.0 and 2.1, to the experts of the groups whose two best are best
    together; in LLaDA2.2, where the configuration has an `expert_capacity`, to the experts that are best for any token
    of the block.
    """

    expert_bias: torch.Tensor

    def __init__(self, config: MixtureOfExpertsConfig):
        super().__init__(config)
        self.expert_capacity = config.expert_capacity or None
        self.num_groups = 1 if self.expert_capacity else config.n_group or 1
        self.topk_group = config.topk_group
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(
        self, hidden_states: torch.Tensor, blocks: RoutingBlocks | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with maybe_autocast(hidden_states.device.type, enabled=False):
            logits = nn.functional.linear(hidden_states.float(), self.weight.float())
        probabilities = logits.sigmoid()
        with torch.no_grad():
            scores = probabilities + self.expert_bias
            if self.expert_capacity is not None:
                assert blocks is not None, "a limit on the experts of a block needs the blocks"
                scores = self._limited_to_pools(scores, blocks, self.expert_capacity)
            elif self.num_groups > 1:
                scores = self._limited_to_groups(scores)
            indices = scores.topk(self.top_k, dim=-1).indices
        weights = self._scaled(probabilities.gather(-1, indices))
        return logits.flatten(0, 1), weights.flatten(0, 1), indices.flatten(0, 1)

    def _limited_to_groups(self, scores: torch.Tensor) -> torch.Tensor:
        groups = scores.unflatten(-1, (self.num_groups, -1))  # [batch, length, groups, experts of a group]
        best = groups.topk(2, dim=-1).values.sum(dim=-1).topk(self.topk_group, dim=-1).indices
        kept = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=scores.device).scatter(-1, best, True)
        return groups.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)

    def _limited_to_pools(self, scores: torch.Tensor, blocks: RoutingBlocks, capacity: int) -> torch.Tensor:
        block_of = blocks.block_ids.unsqueeze(-1).expand_as(scores)
        votes = scores.masked_fill(~blocks.is_token.unsqueeze(-1), -torch.inf)
        # a row has at most as many blocks as tokens: a bound that needs no look at the positions
        best = torch.full_like(scores, -torch.inf).scatter_reduce(1, block_of, votes, "amax")
        pool = best.topk(capacity, dim=-1).indices
        pooled = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, pool, True)
        return scores.masked_fill(~pooled.gather(1, block_of), -torch.inf)


ROUTERS: dict[str, type[TopKRouter]] = {"sigmoid": SigmoidRouter, "softmax": SoftmaxRouter}


__all__ = [
    "ROUTERS",
    "RoutingBlocks",
    "SigmoidRouter",
    "SoftmaxRouter",
    "TopKRouter",
    "find_cut_block",
    "find_routing_blocks",
]
