"""The autoregressive model to compare with: the same network, looking left only."""

from collections.abc import Sequence

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
def causal_answer_log_likelihood(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], answer_ids: Sequence[Sequence[int]]
) -> torch.Tensor:
    """
    The log-likelihood that a causal model gives to answers after their prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal model.
        prompt_ids, answer_ids (sequences of `list[int]`):
            One prompt and one answer per pair, of any lengths. A prompt has at least the start token.

    Returns:
        `torch.FloatTensor` of shape `(pairs,)`, in nats.
    """
    texts = [[*prompt, *answer] for prompt, answer in zip(prompt_ids, answer_ids, strict=True)]
    length = max(map(len, texts))
    # what stands behind a text is seen by nothing in it
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts], device=model.device)
    place = torch.arange(length, device=model.device)
    starts, ends = (torch.tensor([[len(row)] for row in rows], device=model.device) for rows in (prompt_ids, texts))
    logits = model(input_ids=ids, attention_mask=(place < ends).long()).logits[:, :-1].float()
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return -(losses * ((place >= starts) & (place < ends))[:, 1:]).sum(dim=1)


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
    rows = tokenizer(texts)["input_ids"]
    return causal_answer_log_likelihood(model, [ids[:1] for ids in rows], [ids[1:] for ids in rows])


__all__ = ["build_causal_twin", "causal_answer_log_likelihood", "causal_log_likelihood"]
