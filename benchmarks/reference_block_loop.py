"""
The plain loop that block-causal models are measured against: the published sampler of LLaDA2.0 (arXiv 2512.15745)
and, with an editing threshold, of LLaDA2.1 (arXiv 2602.08676), as commonly written. Every step computes all blocks up
to the current one, with all their logits, and nothing is kept from the step before.
"""

from collections.abc import Callable

import torch


@torch.no_grad()
def reference_block_generate(
    model: Callable,
    prompt: torch.Tensor,
    mask_token_id: int,
    eos_token_id: int,
    max_new_tokens: int,
    block_length: int,
    threshold: float,
    steps: int | None = None,
    editing_threshold: float | None = None,
    max_post_steps: int = 0,
) -> torch.Tensor:
    """
    Continues a prompt.

    Args:
        model (`Callable`):
            Takes `input_ids` and `block_length`, returns an output with `logits`.
        prompt (`torch.LongTensor` of shape `(1, prompt_length)`):
            The prompt, the only one: the published samplers know no batches.
        mask_token_id, eos_token_id (`int`):
            Ids of the mask token and of the end of text.
        max_new_tokens, block_length (`int`):
            New tokens, and tokens per block. Blocks are counted from the beginning of the prompt.
        threshold (`float`):
            What is surer is committed.
        steps (`int`, *optional*):
            Steps per block, over which its positions are shared out: so many are committed at least. One if not given.
        editing_threshold (`float`, *optional*):
            What is surer than this replaces another token of the current block.
        max_post_steps (`int`, *optional*, defaults to 0):
            Steps of editing after a block is filled.

    Returns:
        `torch.LongTensor` of shape `(1, prompt_length + max_new_tokens)`, filled with ends of text after the first.
    """
    prompt_length = prompt.shape[1]
    length = prompt_length + max_new_tokens
    canvas = prompt.new_full((1, -(-length // block_length) * block_length), mask_token_id)
    canvas[:, :prompt_length] = prompt
    positions = torch.arange(canvas.shape[1], device=prompt.device)
    for start in range(prompt_length - prompt_length % block_length, canvas.shape[1], block_length):
        window = canvas[:, : start + block_length]
        answer = positions[start : start + block_length] >= prompt_length
        step = post_steps = 0
        while True:
            block = window[:, start:]
            masked = block == mask_token_id
            is_filled = not masked.any()
            post_steps += is_filled
            if is_filled and (editing_threshold is None or post_steps > max_post_steps):
                break
            logits = model(input_ids=window, block_length=block_length).logits[:, start:]
            probabilities = logits.float().softmax(-1)
            # the published loop never ends where a model proposes the mask token
            probabilities[..., mask_token_id] = 0
            confidence, tokens = probabilities.max(-1)
            base, extra = divmod(block_length, steps) if steps else (1, 0)
            least = min(base + (step < extra), int(masked.sum()))
            changed = masked & (confidence > threshold)
            if changed.sum() < least:
                best = torch.where(masked, confidence, -torch.inf).topk(least).indices
                changed = torch.zeros_like(masked).scatter_(1, best, True)
            if editing_threshold is not None:
                edited = answer & ~masked & (tokens != block) & (confidence > editing_threshold)
                if is_filled and not edited.any():
                    break
                changed |= edited
            # `block` is a part of the canvas
            block[changed] = tokens[changed]
            step += 1
        ends = (canvas[:, prompt_length : start + block_length] == eos_token_id).flatten()
        if ends.any():
            canvas[:, prompt_length + int(ends.int().argmax()) :] = eos_token_id
            break
    return canvas[:, :length]


__all__ = ["reference_block_generate"]
