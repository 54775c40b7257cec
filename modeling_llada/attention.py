"""Norm, rotary embedding and attention of the mask predictor. Every position may see every other."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from ..generation.forwards.canvas_cache import CanvasCache
from .configuration_base import MaskedDiffusionConfig
from .exact_buffers import ExactBuffersMixin
from .kept_positions import take_positions


class LLaDARMSNorm(nn.Module):
    """Root mean square norm, computed in float32 and scaled in the dtype of its input."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        exact = hidden_states.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class LLaDARotaryEmbedding(ExactBuffersMixin, nn.Module):
    """
    Cosines and sines of the rotary embedding, in float32 if the model rotates in full precision (LLaDA-8B) and in the
    activation dtype otherwise.

    The frequencies are not rounded: an error of 1e-3 turns far positions by radians.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self.compute_rope_parameters()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def compute_rope_parameters(self) -> tuple[torch.Tensor, float]:
        """Inverse frequencies and scaling for the rope type of the configuration."""
        init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        # real even under `torch.device("meta")`: no checkpoint holds these buffers, so nothing would fill them
        with torch.device("cpu"):
            return init_fn(self.config)

    @staticmethod
    def compute_default_rope_parameters(config: MaskedDiffusionConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies (float32, shape `(rotary_dim / 2,)`) and the scaling of cosines and sines (1)."""
        dim = config.rotary_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    def recomputed_buffer(self) -> torch.Tensor:
        return self.compute_rope_parameters()[0]

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)  # [batch or 1, length, rotary_dim]
        dtype = torch.float if self.config.rope_full_precision else x.dtype
        return (angles.cos() * self.attention_scaling).to(dtype), (angles.sin() * self.attention_scaling).to(dtype)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotates queries or keys, `states` of shape `(batch, heads, length, head_dim)`, half against half. If `cos` is
    narrower than they are, the first dimensions turn and the others stay. The arithmetic runs in the dtype of `cos`,
    the result has the dtype of `states`.
    """
    turning, staying = states.tensor_split([cos.shape[-1]], dim=-1)
    exact = turning.to(cos.dtype)
    first, second = exact.chunk(2, dim=-1)
    rotated = exact * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
    rotated = rotated.to(states.dtype)
    return torch.cat((rotated, staying), dim=-1) if staying.shape[-1] else rotated


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `output_attentions`. `attention_mask` is additive."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LLaDAAttention(nn.Module):
    """Grouped-query attention in which every position sees every other."""

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        # read by the attention back-ends: without it they would apply a causal mask
        self.is_causal = False
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        has_bias = bool(config.attention_bias or config.use_qkv_bias)
        self.q_proj = nn.Linear(config.hidden_size, width, bias=has_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=has_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=has_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=bool(config.attention_bias))
        self.q_norm = LLaDARMSNorm(self.head_dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = LLaDARMSNorm(self.head_dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: CanvasCache | None = None,
        cache_position: torch.Tensor | None = None,
        inexact: torch.Tensor | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`positions_to_keep`, shape `(batch, kept)`, are the queries; everything is a query if not given."""
        asking, turns = hidden_states, position_embeddings
        if positions_to_keep is not None:
            asking = take_positions(hidden_states, positions_to_keep)
            cos, sin = position_embeddings
            turns = take_positions(cos, positions_to_keep), take_positions(sin, positions_to_keep)
        query = self.q_norm(self.q_proj(asking).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key = apply_rotary(query, *turns), apply_rotary(key, *position_embeddings)

        if past_key_values is not None and cache_position is not None:
            key, value = past_key_values.update(key, value, self.layer_idx, cache_position, inexact)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights


__all__ = [
    "LLaDAAttention",
    "LLaDARMSNorm",
    "LLaDARotaryEmbedding",
    "apply_rotary",
    "eager_attention_forward",
]
