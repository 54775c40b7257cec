"""LLaDA written out a second time, from the description of the published checkpoints and on their tensor names."""

import math
from typing import Any

import torch
from torch import Tensor


__all__ = ["as_llada_tensors", "naive_logits", "naive_rotation"]

_ILLADA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def as_llada_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an iLLaDA checkpoint under the names of a LLaDA-8B checkpoint, the tied head among them."""
    renamed = {
        "model.transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "model.transformer.ln_f.weight": tensors["model.norm.weight"],
        "model.transformer.ff_out.weight": tensors["model.embed_tokens.weight"],
    }
    for name, tensor in tensors.items():
        if name.startswith("model.layers."):
            index, _, leaf = name.removeprefix("model.layers.").partition(".")
            renamed[f"model.transformer.blocks.{index}.{_ILLADA_NAMES[leaf.removesuffix('.weight')]}.weight"] = tensor
    return renamed


def naive_rotation(states: Tensor, theta: float, full_precision: bool) -> Tensor:
    """Turns pair `(i, i + d/2)` of `states` (shape `(..., length, d)`) at position `p` by `p * theta^(-2i/d)`."""
    length, dim = states.shape[-2:]
    angles = torch.tensor([[p / theta ** (2 * i / dim) for i in range(dim // 2)] for p in range(length)])
    dtype = torch.float32 if full_precision else states.dtype
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = states[..., : dim // 2].to(dtype), states[..., dim // 2 :].to(dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(states.dtype)


def _norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = hidden.float()
    return weight * (exact / (exact.square().mean(-1, keepdim=True) + eps).sqrt()).to(hidden.dtype)


def naive_logits(
    tensors: dict[str, Tensor], config: dict[str, Any], row: Tensor, visible: Tensor | None = None
) -> Tensor:
    """
    The logits of one sequence, one head at a time.

    Args:
        tensors (`dict[str, Tensor]`):
            A checkpoint in the LLaDA-8B layout.
        config (`dict[str, Any]`):
            Its `config.json`.
        row (`Tensor` of shape `(length,)`):
            Token ids.
        visible (`Tensor`, *optional*):
            Boolean, shape `(length,)` for keys or `(length, length)` for queries and keys. All if not given.

    Returns:
        `Tensor` of shape `(length, vocab_size)`.
    """
    heads, kv_heads, eps = config["n_heads"], config["n_kv_heads"], config["rms_norm_eps"]
    dim = config["d_model"] // heads
    hidden = tensors["model.transformer.wte.weight"][row]
    for index in range(config["n_layers"]):
        w = {
            name.split(".")[-2]: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.transformer.blocks.{index}.")
        }
        x = _norm(hidden, w["attn_norm"], eps)
        q, k, v = (
            (x @ w[name].T).view(len(row), -1, dim).transpose(0, 1) for name in ("q_proj", "k_proj", "v_proj")
        )  # [heads, length, dim]
        q, k = (naive_rotation(y, config["rope_theta"], config["rope_full_precision"]) for y in (q, k))
        attended = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[head] @ k[group].T / math.sqrt(dim)
            if visible is not None:
                scores = scores.masked_fill(~visible, -math.inf)
            attended.append(scores.float().softmax(-1).to(v.dtype) @ v[group])
        hidden = hidden + torch.cat(attended, dim=-1) @ w["attn_out"].T
        x = _norm(hidden, w["ff_norm"], eps)
        gate = x @ w["ff_proj"].T
        hidden = hidden + (gate * torch.sigmoid(gate) * (x @ w["up_proj"].T)) @ w["ff_out"].T
    return _norm(hidden, tensors["model.transformer.ln_f.weight"], eps) @ tensors["model.transformer.ff_out.weight"].T
