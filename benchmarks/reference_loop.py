"""
The plain loop that everything is measured against: the published sampler (arXiv 2502.09992, §2.4), step by step, as it
is commonly written. Logits, probabilities and noise for the whole canvas in every step, and no step left out.
"""

from collections.abc import Callable

import torch


@torch.no_grad()
def reference_generate(
    model: Callable,
    prompt: torch.Tensor,
    mask_token_id: int,
    max_new_tokens: int,
    block_length: int,
    steps: int,
    temperature: float = 0.0,
    confidence_dtype: torch.dtype | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Continues prompts.

    Args:
        model (`Callable`):
            Takes `input_ids` and `attention_mask`, returns an output with `logits`.
        prompt (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts, padded on the left.
        mask_token_id (`int`):
            Id of the mask token.
        max_new_tokens, block_length, steps (`int`):
            New tokens, tokens per block, and steps over all blocks, each a multiple of the one before.
        temperature (`float`, *optional*, defaults to 0.0):
            Temperature, 0 for the likeliest tokens.
        confidence_dtype (`torch.dtype`, *optional*):
            Precision of the probabilities, that of the logits if not given.
        attention_mask (`torch.LongTensor` of shape `(batch, prompt_length)`, *optional*):
            0 for padding.

    Returns:
        `torch.LongTensor` of shape `(batch, prompt_length + max_new_tokens)`.
    """
    batch, prompt_length = prompt.shape
    canvas = torch.cat([prompt, prompt.new_full((batch, max_new_tokens), mask_token_id)], dim=1)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, max_new_tokens)], dim=1)
    steps_per_block = steps * block_length // max_new_tokens
    for start in range(prompt_length, canvas.shape[1], block_length):
        end = start + block_length
        num_masks = (canvas[:, start:end] == mask_token_id).sum(1)
        for step in range(steps_per_block):
            masked = canvas == mask_token_id
            logits = model(input_ids=canvas, attention_mask=attention_mask).logits
            noisy = logits
            if temperature:
                noise = -torch.log(torch.rand_like(logits, dtype=torch.float64))
                noisy = logits.double().exp() / noise**temperature
            tokens = noisy.argmax(-1)
            probabilities = logits.to(confidence_dtype or logits.dtype).softmax(-1)
            confidence = probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            confidence[:, end:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            tokens = torch.where(masked, tokens, canvas)
            for row in range(batch):
                base, extra = divmod(int(num_masks[row]), steps_per_block)
                chosen = confidence[row].topk(base + (step < extra)).indices
                canvas[row, chosen] = tokens[row, chosen]
    return canvas


__all__ = ["reference_generate"]
