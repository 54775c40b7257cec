"""
Surrogates of log π(answer | prompt), which a masked diffusion model does not give: pure functions of noisy inputs.

A model of this family gives the distribution of every masked token given what stands around it, and no probability of
a whole answer. Each published method of policy optimisation puts something else in its place:

| function | sees | gives, by | from |
|---|---|---|---|
| [`diffu_grpo_logps`] | an answer of masks after a partly masked prompt | token | d1 |
| [`coupled_logps`] | masks only, a mask and its complement | token | DiffuCoder |
| [`elbo`] | exactly `k` masks, and the complement | sequence | ESPO |
| [`evidence_bounds`] | any masks | sequence, two bounds | SPG |
| [`trajectory_logps`] | the states that the sampler went through | token | AGRPO, CJ-GRPO, arXiv 2509.23924 |
| [`left_to_right_logps`] | the answer so far, and masks | token | JustGRPO |
| [`block_elbo`] | a noisy block after clean ones, all blocks at once | sequence | EBPO of LLaDA2.1 |

All noise is given: two models, or one model at two times, are compared under the same masks by giving them the same
noisy inputs. Positions belong to the answer if they are the last ones of the row; a token of the answer counts as
masked where the noisy row differs from it. Padding before the prompt is not seen if `attention_mask` says so.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ..modeling_llada.masked_diffusion import masked_cross_entropy
from ..modeling_llada.noisy_and_clean import lay_out_noisy_and_clean
from ..modeling_llada.packed_documents import count_tokens_before
from ..modeling_llada.token_losses import CHUNK
from .diffusion_trainer import find_mask_token_id


def _config(model: Any) -> PreTrainedConfig:
    # wrappers of data parallelism hold the model in `module`
    return getattr(model, "module", model).config


def _mask_token_id(model: Any) -> int:
    return find_mask_token_id(_config(model))


def _masked(noisy_ids: torch.Tensor, completion_ids: torch.Tensor) -> torch.Tensor:
    """Which tokens of the answer are masked in each view, of shape `(batch, views, length)`."""
    return noisy_ids[:, :, -completion_ids.shape[1] :] != completion_ids.unsqueeze(1)


def _flatten(
    noisy_ids: torch.Tensor, completion_ids: torch.Tensor, scored: torch.Tensor, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Views as rows: noisy ids, what is scored in them, its tokens, and the other inputs, repeated for each view."""
    batch, views, _ = noisy_ids.shape
    prompt_length = noisy_ids.shape[2] - completion_ids.shape[1]
    rows = noisy_ids.flatten(0, 1)
    scored = torch.nn.functional.pad(scored.flatten(0, 1), (prompt_length, 0))
    targets = torch.cat([rows[:, :prompt_length], completion_ids.repeat_interleave(views, dim=0)], dim=1)
    repeated = {
        name: value.repeat_interleave(views, dim=0)
        if isinstance(value, torch.Tensor) and len(value) == batch
        else value
        for name, value in inputs.items()
    }
    return rows, scored, targets, repeated


def view_logps(
    model: Callable,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    scored: torch.Tensor,
    temperature: float = 1.0,
    **inputs,
) -> torch.Tensor:
    """
    Log-probabilities of some tokens of the answer in some views of it, what all surrogates are made of.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        noisy_ids (`torch.LongTensor` of shape `(batch, views, prompt_length + length)`):
            The views: prompt and answer with masks.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        scored (`torch.BoolTensor` of shape `(batch, views, length)`):
            Which tokens count in which view.
        temperature (`float`, *optional*, defaults to 1.0):
            What the logits are divided by.
        inputs (*optional*):
            Further inputs of the model for a batch of answers, e.g. `attention_mask` of shape
            `(batch, prompt_length + length)`.

    Returns:
        `torch.FloatTensor` of shape `(batch, views, length)`, 0 where nothing is scored.
    """
    if temperature != 1:
        return _warped_logps(model, noisy_ids, completion_ids, scored, temperature=temperature, **inputs)
    rows, flat, targets, inputs = _flatten(noisy_ids, completion_ids, scored, inputs)
    losses, _ = masked_cross_entropy(model, rows, flat, targets, **inputs)
    return -losses[:, -completion_ids.shape[1] :].view(scored.shape)


def _warped_logps(
    model: Callable,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    scored: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    barred: int | None = None,
    **inputs,
) -> torch.Tensor:
    """As [`view_logps`], of the distribution that a sampler draws from. `barred` is a token that it never draws."""
    rows, flat, targets, inputs = _flatten(noisy_ids, completion_ids, scored, inputs)
    warpers: list[Callable] = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p is not None and top_p < 1 else []

    def score(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # as the sampler does, which decides at the edge of the support in this precision
        logits = logits.double()
        if barred is not None:
            logits = logits.index_fill(1, torch.tensor([barred], device=logits.device), -math.inf)
        warped = logits
        for warper in warpers:
            warped = warper(tokens, warped)
        # the token was drawn: where rounding puts it outside of the support, it belongs to it all the same
        drawn = logits.gather(1, tokens.unsqueeze(1)) / temperature
        warped = warped.scatter(1, tokens.unsqueeze(1), drawn)
        return (drawn.squeeze(1) - warped.logsumexp(dim=1)).float()

    logits = model(input_ids=rows, logits_to_keep=flat, **inputs).logits
    chunks = zip(logits.split(CHUNK), targets[flat].split(CHUNK), strict=True)
    logps = torch.cat([checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks])
    result = logps.new_zeros(flat.shape).masked_scatter(flat, logps)
    return result[:, -completion_ids.shape[1] :].view(scored.shape)


def diffu_grpo_logps(model: Callable, noisy_ids: torch.Tensor, completion_ids: torch.Tensor, **inputs) -> torch.Tensor:
    """
    The one-step estimate of d1: every token of the answer given the prompt alone, as if all were drawn at once.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        noisy_ids (`torch.LongTensor` of shape `(batch, prompt_length + length)`):
            The prompt, in which some tokens may be masked, and an answer of masks.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        inputs (*optional*):
            `temperature`, and further inputs of the model, see [`view_logps`].

    Returns:
        `torch.FloatTensor` of shape `(batch, length)`. Tokens after the end of text have a value too: leave them out
        with the mask of the loss.
    """
    scored = torch.ones_like(completion_ids, dtype=torch.bool).unsqueeze(1)
    return view_logps(model, noisy_ids.unsqueeze(1), completion_ids, scored, **inputs).squeeze(1)


def coupled_logps(
    model: Callable,
    views: torch.Tensor,
    completion_ids: torch.Tensor,
    mask_ratio: torch.Tensor | float,
    **inputs,
) -> torch.Tensor:
    """
    The coupled estimate of DiffuCoder: the mean of the log-probability under masks only, and of that in the one of two
    complementary views in which the token is masked, weighted by 1/t in the first and by 1/(1 - t) in the second.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        views (`torch.LongTensor` of shape `(batch, 3, prompt_length + length)`):
            The answer fully masked, masked with probability `t`, and its complement.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        mask_ratio (`torch.Tensor` of shape `(batch,)` or `float`):
            The probability `t`, between 0 and 1.
        inputs (*optional*):
            `temperature`, and further inputs of the model, see [`view_logps`].

    Returns:
        `torch.FloatTensor` of shape `(batch, length)`.
    """
    scored = _masked(views, completion_ids)
    logps = view_logps(model, views, completion_ids, scored, **inputs)
    ratio = torch.as_tensor(mask_ratio, device=logps.device, dtype=logps.dtype).reshape(-1, 1)
    return (logps[:, 0] + logps[:, 1] / ratio + logps[:, 2] / (1 - ratio)) / 2


def elbo(
    model: Callable,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    mask_ratio: torch.Tensor,
    completion_mask: torch.Tensor | None = None,
    complement: bool = True,
    **inputs,
) -> torch.Tensor:
    """
    The evidence lower bound of ESPO, the mean over draws of exactly `k` masks each. With the complement, each token is
    predicted once, in one of two views.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        noisy_ids (`torch.LongTensor` of shape `(batch, draws, prompt_length + length)`):
            The answer, with masks.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        mask_ratio (`torch.FloatTensor` of shape `(batch, draws)`):
            What a draw is divided by: `k / (L + 1)` for `k` uniform on 0 ... L, where a draw without masks counts as
            0; without the complement also `k / L` for `k` uniform on 1 ... L, or the probability of a mask.
        completion_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            1 where the answer counts, `L` times: up to its end of text. All if not given.
        complement (`bool`, *optional*, defaults to `True`):
            Whether to average each draw with its complement, in a second view.
        inputs (*optional*):
            `temperature`, and further inputs of the model, see [`view_logps`].

    Returns:
        `torch.FloatTensor` of shape `(batch,)`: the bound, not divided by the length.
    """
    draws = noisy_ids.shape[1]
    counted = torch.ones_like(completion_ids) if completion_mask is None else completion_mask
    counted = counted.bool().unsqueeze(1)
    masked = _masked(noisy_ids, completion_ids) & counted
    weight = torch.where(mask_ratio > 0, 1 / mask_ratio, 0.0)
    if complement:
        opposite = counted & ~masked
        answer = noisy_ids[:, :, -completion_ids.shape[1] :]
        answer = torch.where(masked, completion_ids.unsqueeze(1), answer)
        answer = answer.masked_fill(opposite, _mask_token_id(model))
        prompt = noisy_ids[:, :, : -completion_ids.shape[1]]
        noisy_ids = torch.cat([noisy_ids, torch.cat([prompt, answer], dim=2)], dim=1)
        left = opposite.sum(dim=2)
        weight = torch.cat([weight, (counted.sum(dim=2) + 1) / left.clamp(min=1)], dim=1) / 2
        masked = torch.cat([masked, opposite], dim=1)
    logps = view_logps(model, noisy_ids, completion_ids, masked, **inputs)
    return (weight * logps.sum(dim=2)).sum(dim=1) / draws


def evidence_bounds(
    model: Callable,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    beta: float,
    **inputs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The two bounds of SPG, per token. The lower one is the mean log-probability of the masked tokens. The upper one,
    for answers that are to become less likely, is of each token

        1/β · log mean over draws of [ p^β · 1(masked) / t ],

    with `t` the share that is masked, and the mean over the tokens that are masked in any draw.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        noisy_ids (`torch.LongTensor` of shape `(batch, draws, prompt_length + length)`):
            The answer with masks; published code masks all that follows the end of text.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        completion_mask (`torch.Tensor` of shape `(batch, length)`):
            1 where the answer counts, up to its end of text.
        beta (`float`):
            Exponent of the upper bound, at least 1. Published runs have 1 to 2.
        inputs (*optional*):
            `temperature`, and further inputs of the model, see [`view_logps`].

    Returns:
        `tuple` of two `torch.FloatTensor` of shape `(batch,)`: the lower and the upper bound, divided by the length.
    """
    counted = completion_mask.bool().unsqueeze(1)
    masked = _masked(noisy_ids, completion_ids) & counted
    logps = view_logps(model, noisy_ids, completion_ids, masked, **inputs)
    counts = masked.sum(dim=2)
    lower = (logps.sum(dim=2) / counts.clamp(min=1)).mean(dim=1)

    share = counts / counted.sum(dim=2).clamp(min=1)
    powers = beta * logps - share.clamp(min=torch.finfo(logps.dtype).tiny).log().unsqueeze(2)
    seen = masked.any(dim=1)
    # in logarithms: a power of a small probability is 0
    powers = powers.masked_fill(~masked & seen.unsqueeze(1), -math.inf)
    token_bounds = (powers.logsumexp(dim=1) - math.log(masked.shape[1])) / beta
    upper = token_bounds.masked_fill(~seen, 0.0).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
    return lower, upper


def trajectory_views(
    prompt_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    step_of: torch.Tensor,
    steps: torch.Tensor,
    mask_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What stood there before some steps of a sampler that writes every token once, and what the step committed.

    Args:
        prompt_ids (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answers.
        step_of (`torch.LongTensor` of shape `(batch, length)`):
            The step that committed each token, as [`~llada.generation.listeners.trace.Trace`] has it; -1 where none
            did, which is after the end of text: masks stood there.
        steps (`torch.LongTensor` of shape `(batch, views)`):
            The steps of each row. One that commits nothing gives a view in which nothing counts.
        mask_token_id (`int`):
            Id of the mask token.

    Returns:
        `tuple`: noisy ids, of shape `(batch, views, prompt_length + length)`, and what was committed (`bool`, of shape
        `(batch, views, length)`), for [`trajectory_logps`].
    """
    step_of, steps = step_of.unsqueeze(1), steps.unsqueeze(2)
    known = (step_of >= 0) & (step_of < steps)
    answer = torch.where(known, completion_ids.unsqueeze(1), mask_token_id)
    prompt = prompt_ids.unsqueeze(1).expand(-1, steps.shape[1], -1)
    return torch.cat([prompt, answer], dim=2), (step_of == steps) & (steps >= 0)


def trajectory_logps(
    model: Callable,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    committed: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    **inputs,
) -> torch.Tensor:
    """
    Tokens where the sampler drew them: given what stood there before the step, of the distribution that it drew from,
    in which the mask token has no share.

    If the sampler decides *where* to write without looking at what it draws, the sum over all steps is the
    log-probability of its path, and the gradient of the expected reward is exact. A few steps of each row, weighted by
    the inverse of their probability, estimate it without bias.

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        noisy_ids (`torch.LongTensor` of shape `(batch, views, prompt_length + length)`):
            What stood there before each step, see [`trajectory_views`].
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        committed (`torch.BoolTensor` of shape `(batch, views, length)`):
            What each step wrote.
        temperature, top_k, top_p (*optional*):
            The sampler's. A token that rounding puts outside of the support belongs to it all the same.
        inputs (*optional*):
            Further inputs of the model, see [`view_logps`].

    Returns:
        `torch.FloatTensor` of shape `(batch, length)`, 0 where no view committed a token.
    """
    support: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "barred": _mask_token_id(model),
    }
    return _warped_logps(model, noisy_ids, completion_ids, committed, **support, **inputs).sum(dim=1)


def left_to_right_logps(
    model: Callable,
    prompt_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    positions: torch.Tensor | None = None,
    **inputs,
) -> torch.Tensor:
    """
    Tokens given those to their left, and masks: exact for rollouts that wrote one token after the other (JustGRPO).

    Args:
        model (`Callable`):
            The model, possibly wrapped.
        prompt_ids (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answers.
        positions (`torch.LongTensor` of shape `(batch, views)`, *optional*):
            Which tokens of the answer to score, each in a view of its own: some at a time take the memory of some. All
            if not given.
        inputs (*optional*):
            `temperature`, `top_k` and `top_p` of the sampler, and further inputs of the model, see
            [`trajectory_logps`].

    Returns:
        `torch.FloatTensor` of shape `(batch, length)`, 0 for tokens that are not scored.
    """
    order = torch.arange(completion_ids.shape[1], device=completion_ids.device).expand(completion_ids.shape)
    views = trajectory_views(
        prompt_ids, completion_ids, order, order if positions is None else positions, _mask_token_id(model)
    )
    return trajectory_logps(model, views[0], completion_ids, views[1], **inputs)


def block_elbo(
    model: Any,
    noisy_ids: torch.Tensor,
    completion_ids: torch.Tensor,
    block_length: int,
    completion_mask: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    The evidence lower bound of a text that is written block by block, the mean over draws (EBPO, LLaDA2.1). Every
    block is predicted from its noisy self and from clean blocks before it, all in one forward pass: of each,

        L/k · sum over its masked tokens of log p,  k of its L tokens being masked.

    Args:
        model (`torch.nn.Module`):
            A model of this package, possibly wrapped, that writes in blocks.
        noisy_ids (`torch.LongTensor` of shape `(batch, draws, prompt_length + length)`):
            The answer with `k` masks in every block of it, any of them equally likely, `k` uniform on 1 ... L: a block
            without masks counts as 0.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answer.
        block_length (`int`):
            Length of a block. They count from the first token of a row: the first of an answer may be shorter, the
            prompt has the rest of it, and so may be the last.
        completion_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            1 where the answer counts: up to its end of text. All if not given.
        attention_mask (`torch.Tensor` of shape `(batch, prompt_length + length)`, *optional*):
            0 for padding.
        temperature (`float`, *optional*, defaults to 1.0):
            What the logits are divided by.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`: the bound, not divided by the length.

    Raises:
        ValueError: See [`~llada.modeling_llada.noisy_and_clean.lay_out_noisy_and_clean`].
    """
    draws, length = noisy_ids.shape[1], completion_ids.shape[1]
    clean_ids = torch.cat([noisy_ids[:, 0, :-length], completion_ids], dim=1).repeat_interleave(draws, dim=0)

    def see(input_ids: torch.Tensor, logits_to_keep: torch.Tensor, attention_mask=None, **arguments) -> Any:
        layout = lay_out_noisy_and_clean(_config(model), input_ids, clean_ids, block_length, attention_mask)
        if "labels" not in arguments:
            # the losses of tokens are about the noisy half, and logits are about both
            logits_to_keep = torch.nn.functional.pad(logits_to_keep, (0, logits_to_keep.shape[1]))
        return model(**layout, logits_to_keep=logits_to_keep, **arguments)

    is_token = torch.ones_like(noisy_ids[:, 0], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    blocks = count_tokens_before(is_token)[:, -length:] // block_length
    counted = is_token[:, -length:] if completion_mask is None else completion_mask.bool()
    # of every token, the tokens of its block: [batch, length, length]
    together = ((blocks.unsqueeze(2) == blocks.unsqueeze(1)) & counted.unsqueeze(1)).float()
    masked = _masked(noisy_ids, completion_ids) & counted.unsqueeze(1)
    weight = together.sum(dim=2).unsqueeze(1) / (masked.float() @ together.mT).clamp(min=1)
    logps = view_logps(see, noisy_ids, completion_ids, masked, temperature=temperature, attention_mask=attention_mask)
    return (weight * logps).sum(dim=(1, 2)) / draws


__all__ = [
    "block_elbo",
    "coupled_logps",
    "diffu_grpo_logps",
    "elbo",
    "evidence_bounds",
    "left_to_right_logps",
    "trajectory_logps",
    "trajectory_views",
    "view_logps",
]
