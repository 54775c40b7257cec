"""Models of a few thousand weights, drawn wide enough that every one of them shows in the logits."""

from typing import Any

import torch

from llada import ILLaDAConfig, ILLaDAForCausalLM, LLaDAConfig, LLaDAModelLM


__all__ = ["tiny_illada", "tiny_llada", "tiny_settings"]


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


@torch.no_grad()
def _draw(model):
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    return model.eval()
