"""The autoregressive model to compare with: the same network, looking left only."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_llada.configuration_llada import LLaDAConfig


def build_causal_twin(config: LLaDAConfig) -> LlamaForCausalLM:
    """
    A freshly initialised Llama with the sizes of a dense LLaDA, down to the number of parameters.

    Args:
        config ([`LLaDAConfig`]):
            The configuration of the model to compare with.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The model.
    """
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_act",
        "rms_norm_eps",
        "rope_parameters",
        "initializer_range",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    return LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in same}))


@torch.no_grad()
def causal_log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> torch.Tensor:
    """
    The log-likelihood that a causal model gives to texts, each after the start token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, which puts a start token before a text.
        texts (`list[str]`):
            The texts.

    Returns:
        `torch.FloatTensor` of shape `(len(texts),)`, in nats.
    """
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    logits = model(**batch).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    visible = batch["attention_mask"]
    # neither padding nor the start token after it is predicted
    return -(losses * (visible[:, 1:] * visible[:, :-1])).sum(dim=1)


__all__ = ["build_causal_twin", "causal_log_likelihood"]
