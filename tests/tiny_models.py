"""Models of a few thousand weights, drawn wide enough that every one of them shows in the logits."""

from typing import Any

import torch

from llada import (
    ILLaDAConfig,
    ILLaDAForCausalLM,
    LLaDA2MoeConfig,
    LLaDA2MoeModelLM,
    LLaDAConfig,
    LLaDAModelLM,
    LLaDAMoEConfig,
    LLaDAMoEModelLM,
)


__all__ = [
    "as_block_causal",
    "peaked_llada",
    "tiny_illada",
    "tiny_llada",
    "tiny_llada2_moe",
    "tiny_llada_moe",
    "tiny_settings",
]


def as_block_causal(model: LLaDAModelLM) -> LLaDAModelLM:
    """The model, writing block by block: small and dense, where the family that does has experts."""
    model.config.block_causal = True
    return model


def tiny_settings(**overrides: Any) -> dict[str, Any]:
    """Settings of a small configuration, under standard names."""
    return {
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "mask_token_id": 40,
        "bos_token_id": 41,
        "eos_token_id": 42,
        "pad_token_id": 42,
        "initializer_range": 0.2,
        **overrides,
    }


def tiny_llada(**overrides: Any) -> LLaDAModelLM:
    """A small LLaDA in evaluation mode, with norm weights other than one."""
    return _draw(LLaDAModelLM(LLaDAConfig(**tiny_settings(**overrides))))


def tiny_illada(**overrides: Any) -> ILLaDAForCausalLM:
    """A small iLLaDA in evaluation mode, with norm weights other than one."""
    return _draw(ILLaDAForCausalLM(ILLaDAConfig(**tiny_settings(**overrides))))


def tiny_llada_moe(**overrides: Any) -> LLaDAMoEModelLM:
    """A small LLaDA-MoE in evaluation mode, with norm weights other than one."""
    experts = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
    return _draw(LLaDAMoEModelLM(LLaDAMoEConfig(**tiny_settings(**experts | overrides))))


def tiny_llada2_moe(**overrides: Any) -> LLaDA2MoeModelLM:
    """
    A small LLaDA2 in evaluation mode, with norm weights other than one and biases that choose other experts. Its first
    layer has none.
    """
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "n_group": 4, "topk_group": 2}
    return _draw(LLaDA2MoeModelLM(LLaDA2MoeConfig(**tiny_settings(**experts | overrides))))


@torch.no_grad()
def peaked_llada(seed: int, **overrides: Any) -> LLaDAModelLM:
    """A small LLaDA that is sure of some tokens and not of others."""
    torch.manual_seed(seed)
    model = tiny_llada(initializer_range=0.3, **overrides)
    model.get_output_embeddings().weight.mul_(2.5)
    return model


@torch.no_grad()
def _draw(model):
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.uniform_(-0.2, 0.2)
    return model.eval()
