"""The authors' sampler once more, as plain as it can be written, to compare against on any model and setting."""

import torch


__all__ = ["quota_rows", "reference_sample"]


def quota_rows(num_masked: list[int], steps: int) -> list[list[int]]:
    """How many masks each row commits in each step of a block."""
    return [[n // steps + (step < n % steps) for step in range(steps)] for n in num_masked]


@torch.no_grad()
def reference_sample(
    model,
    prompt,
    attention_mask=None,
    gen_length=16,
    block_length=16,
    steps=16,
    temperature=0.0,
    cfg_scale=0.0,
    remasking="low_confidence",
    eos_token_id=None,
    eot_token_id=None,
    logits_eos_inf=False,
    confidence_eos_eot_inf=False,
    mask_token_id=300,
):
    """Steps are a multiple of the blocks, blocks tile the new tokens."""
    batch, prompt_length = prompt.shape
    canvas = torch.full((batch, prompt_length + gen_length), mask_token_id)
    canvas[:, :prompt_length] = prompt
    given = canvas != mask_token_id
    mask = None
    if attention_mask is not None:
        mask = torch.cat([attention_mask, torch.ones(batch, gen_length, dtype=attention_mask.dtype)], dim=1)
    num_blocks = gen_length // block_length
    per_block = steps // num_blocks
    for block in range(num_blocks):
        start = prompt_length + block * block_length
        end = start + block_length
        quotas = quota_rows((canvas[:, start:end] == mask_token_id).sum(1).tolist(), per_block)
        for step in range(per_block):
            masked = canvas == mask_token_id
            logits = model(canvas, attention_mask=mask).logits
            if cfg_scale > 0:
                blank = torch.where(given, mask_token_id, canvas)
                without = model(blank, attention_mask=mask).logits
                logits = without + (cfg_scale + 1) * (logits - without)
            if logits_eos_inf:
                logits[..., eos_token_id] = -torch.inf
            noisy = logits
            if temperature > 0:
                uniform = torch.rand_like(logits, dtype=torch.float64)
                noisy = logits.double().exp() / (-uniform.log()) ** temperature
            tokens = noisy.argmax(-1)
            if confidence_eos_eot_inf:
                noisy[..., eos_token_id] = -torch.inf
                logits[..., eot_token_id] = -torch.inf
            if remasking == "low_confidence":
                score = logits.softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            else:
                score = torch.rand(tokens.shape)
            score[:, end:] = -torch.inf
            score = torch.where(masked, score, -torch.inf)
            for row in range(batch):
                chosen = score[row].topk(quotas[row][step]).indices
                canvas[row, chosen] = torch.where(masked[row], tokens[row], canvas[row])[chosen]
    return canvas
