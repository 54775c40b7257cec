"""
LLaDA-MoE and LLaDA2 written out a second time, on the tensor names of their published checkpoints: one sequence, one
head, one token and one expert at a time.
"""

import math
from typing import Any

import torch
from naive_llada import naive_rotation
from torch import Tensor


__all__ = ["naive_moe_logits", "naive_sigmoid_routes", "naive_softmax_routes"]

# what a router answers for a token: the experts, best first, and their weights
Routes = list[tuple[list[int], list[Tensor]]]


def _best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda expert: -scores[expert])[:count]


def naive_softmax_routes(logits: Tensor, config: dict[str, Any]) -> Routes:
    """The routes of `logits` (shape `(length, num_experts)`) in LLaDA-MoE."""
    routes = []
    for token in logits:
        probabilities = token.float().exp() / token.float().exp().sum()
        experts = _best(dict(enumerate(probabilities.tolist())), config["num_experts_per_tok"])
        total = sum(probabilities[expert] for expert in experts) if config["norm_topk_prob"] else 1
        factor = config["routed_scaling_factor"]
        routes.append((experts, [(probabilities[expert] / total * factor).to(token.dtype) for expert in experts]))
    return routes


def naive_sigmoid_routes(logits: Tensor, bias: Tensor, config: dict[str, Any], positions: list[int]) -> Routes:
    """The routes of `logits` (shape `(length, num_experts)`) in LLaDA2. `positions` cut them into blocks."""
    probabilities = [1 / (1 + (-token).exp()) for token in logits]
    scores = [dict(enumerate((p + bias).tolist())) for p in probabilities]
    routes = []
    for place, own in enumerate(scores):
        if config.get("expert_capacity"):
            block = positions[place] // config["block_size"]
            members = [other for other, position in enumerate(positions) if position // config["block_size"] == block]
            pool = _best({e: max(scores[other][e] for other in members) for e in own}, config["expert_capacity"])
            allowed = {e: own[e] for e in pool}
        elif config.get("n_group"):
            size = len(own) // config["n_group"]
            groups = [list(range(start, start + size)) for start in range(0, len(own), size)]
            value = {g: sum(sorted((own[e] for e in group), reverse=True)[:2]) for g, group in enumerate(groups)}
            allowed = {e: own[e] for g in _best(value, config["topk_group"]) for e in groups[g]}
        else:
            allowed = own
        experts = _best(allowed, config["num_experts_per_tok"])
        weights = [probabilities[place][expert] for expert in experts]
        if config["norm_topk_prob"] and len(experts) > 1:
            weights = [weight / sum(weights) for weight in weights]
        routes.append((experts, [weight * config["routed_scaling_factor"] for weight in weights]))
    return routes


def _norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = hidden.float()
    return weight * (exact / (exact.square().mean(-1, keepdim=True) + eps).sqrt()).to(hidden.dtype)


def _mlp(x: Tensor, tensors: dict[str, Tensor], prefix: str) -> Tensor:
    gate = x @ tensors[f"{prefix}.gate_proj.weight"].T
    return (gate * torch.sigmoid(gate) * (x @ tensors[f"{prefix}.up_proj.weight"].T)) @ tensors[
        f"{prefix}.down_proj.weight"
    ].T


def _mixture(x: Tensor, tensors: dict[str, Tensor], prefix: str, config: dict[str, Any], positions) -> Tensor:
    second = config["model_type"] == "llada2_moe"
    gate = tensors[f"{prefix}.gate.weight"]
    if second:
        bias = tensors[f"{prefix}.gate.expert_bias"].float()
        routes = naive_sigmoid_routes(x.float() @ gate.float().T, bias, config, positions)
    else:
        routes = naive_softmax_routes(x @ gate.T, config)
    mixed = []
    for token, (experts, weights) in zip(x, routes, strict=True):
        pairs = list(zip(experts, weights, strict=True))
        outputs = [_mlp(token, tensors, f"{prefix}.experts.{e}") * w for e, w in (pairs if second else sorted(pairs))]
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        mixed.append(total.to(x.dtype))
    mixed = torch.stack(mixed)
    return mixed + _mlp(x, tensors, f"{prefix}.shared_experts") if second else mixed


def naive_moe_logits(
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    row: Tensor,
    visible: Tensor | None = None,
    positions: list[int] | None = None,
) -> Tensor:
    """
    The logits of one sequence.

    Args:
        tensors (`dict[str, Tensor]`):
            A checkpoint in the layout of LLaDA-MoE or LLaDA2.
        config (`dict[str, Any]`):
            Its `config.json`.
        row (`Tensor` of shape `(length,)`):
            Token ids.
        visible (`Tensor`, *optional*):
            Boolean, shape `(length,)` for keys or `(length, length)` for queries and keys. All if not given.
        positions (`list[int]`, *optional*):
            Positions, for the blocks of routers; rotations begin at 0. From 0 on if not given.

    Returns:
        `Tensor` of shape `(length, vocab_size)`.
    """
    second = config["model_type"] == "llada2_moe"
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    dim = config["head_dim"]
    turning = int(dim * config["partial_rotary_factor"])
    positions = positions or list(range(len(row)))
    hidden = tensors["model.word_embeddings.weight" if second else "model.embed_tokens.weight"][row]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        x = _norm(hidden, tensors[f"{layer}.input_layernorm.weight"], eps)
        if second:
            fused = x @ tensors[f"{layer}.attention.query_key_value.weight"].T
            q, k, v = fused.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
            names = ("attention.query_layernorm", "attention.key_layernorm", "attention.dense")
        else:
            q, k, v = (x @ tensors[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkv")
            names = ("self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj")
        q_norm, k_norm, output = (tensors[f"{layer}.{name}.weight"] for name in names)
        q, k, v = (states.view(len(row), -1, dim).transpose(0, 1) for states in (q, k, v))
        q, k = _norm(q, q_norm, eps), _norm(k, k_norm, eps)
        q, k = (
            torch.cat([naive_rotation(y[..., :turning], config["rope_theta"], False), y[..., turning:]], -1)
            for y in (q, k)
        )
        attended = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[head] @ k[group].T / math.sqrt(dim)
            if visible is not None:
                scores = scores.masked_fill(~visible, -math.inf)
            attended.append(scores.float().softmax(-1).to(v.dtype) @ v[group])
        hidden = hidden + torch.cat(attended, dim=-1) @ output.T
        x = _norm(hidden, tensors[f"{layer}.post_attention_layernorm.weight"], eps)
        if second and index < config["first_k_dense_replace"]:
            hidden = hidden + _mlp(x, tensors, f"{layer}.mlp")
        else:
            hidden = hidden + _mixture(x, tensors, f"{layer}.mlp", config, positions)
    logits = _norm(hidden, tensors["model.norm.weight"], eps) @ tensors["lm_head.weight"].T
    return logits.float() if second else logits
