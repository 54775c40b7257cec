"""
The noise of the estimators of `policy_estimates.py`: which masks a rollout is looked at under.

Noise is a function of the key of a row, see [`~llada.trainers.rollouts.Rollouts.keys`]. Two models, or one model at
two times, are compared under the same masks by giving the same keys. What follows the end of text is masked: nothing
tells how long the answer is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling_llada.masked_diffusion import mask_exactly, noise_generator, sample_times
from ..modeling_llada.packed_documents import count_tokens_before
from .policy_estimates import (
    block_elbo,
    coupled_logps,
    diffu_grpo_logps,
    elbo,
    evidence_bounds,
    left_to_right_logps,
    trajectory_logps,
    trajectory_views,
)
from .rollouts import Rollouts


# masks per answer, of estimates of whole answers
NUM_DRAWS = 2
# the band that DiffuCoder draws its mask ratio from
COUPLED_RATIOS = (0.2, 0.8)


@dataclass
class Settings:
    """
    What the estimators have to know.

    Args:
        mask_token_id (`int`):
            Id of the mask token.
        num_draws (`int`, *optional*):
            Masks per answer, or steps of each answer that are looked at.
        prompt_mask_ratio (`float`, *optional*, defaults to 0):
            Probability with which `"diffu_grpo"` masks a token of the prompt.
        spg_beta (`float`, *optional*, defaults to 1.5):
            Exponent of the upper bound.
        temperature, top_k, top_p (*optional*):
            The sampler's.
        inputs (`dict`, *optional*):
            Further inputs of the model, such as `block_length` where attention is block-causal.
    """

    mask_token_id: int
    num_draws: int | None = None
    prompt_mask_ratio: float = 0.0
    spg_beta: float = 1.5
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    inputs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Estimate:
    """
    What an estimator says of rollouts.

    Args:
        logps (`torch.FloatTensor` of shape `(batch, length)` or `(batch,)`):
            In the place of log π, of tokens or of answers.
        weights (`torch.FloatTensor` of shape `(batch, length)`):
            What each token counts: 0 where it does not, and the inverse of the probability with which it is looked at
            where some are.
        lengths (`torch.FloatTensor` of shape `(batch,)`):
            Number of tokens of each answer.
        upper (`torch.FloatTensor` of shape `(batch,)`, *optional*):
            The upper bound, where there is one.
    """

    logps: torch.Tensor
    weights: torch.Tensor
    lengths: torch.Tensor
    upper: torch.Tensor | None = None


def draw_noise(where: torch.Tensor, keys: Sequence[bytes], draws: int = 1) -> torch.Tensor:
    """
    Noise of rows, independent of padding and of what else is in the batch.

    Args:
        where (`torch.BoolTensor` of shape `(batch, length)`):
            The tokens that get some.
        keys (`Sequence`):
            A key per row.
        draws (`int`, *optional*, defaults to 1):
            How many times.

    Returns:
        `torch.FloatTensor` of shape `(batch, draws, length)`, uniform on [0, 1), and 1 elsewhere.
    """
    noise = torch.ones(len(where), draws, where.shape[1])
    for row, (key, places) in enumerate(zip(keys, where.cpu(), strict=True)):
        noise[row][:, places] = torch.rand(draws, int(places.sum()), generator=noise_generator("policy", key))
    return noise.to(where.device)


def _draw_counts(
    counted: torch.Tensor, keys: Sequence[bytes], draws: int, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Masks of `k` tokens each, for `k` uniform on `least` ... `L` and spread evenly over the draws: `k`, of shape
    `(batch, draws)`, and the masks, of shape `(batch, draws, length)`.
    """
    noise, lengths = draw_noise(counted, keys, draws), counted.sum(dim=1, keepdim=True)
    times = torch.stack([sample_times(draws, "stratified", noise_generator("count", key)) for key in keys])
    counts = (times.to(counted.device) * (lengths + 1 - least)).floor().long() + least
    counts = torch.minimum(counts, lengths)
    masked = mask_exactly(counted.repeat_interleave(draws, dim=0), counts.flatten(), noise.flatten(0, 1)).unflatten(
        0, (-1, draws)
    )
    return counts, masked


def _views(rollouts: Rollouts, masked: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """Prompts and answers with masks, of shape `(batch, views, prompt_length + length)`."""
    hidden = masked | ~rollouts.completion_mask.bool().unsqueeze(1)
    answers = rollouts.completion_ids.unsqueeze(1).masked_fill(hidden, mask_token_id)
    prompts = rollouts.prompt_ids.unsqueeze(1).expand(-1, masked.shape[1], -1)
    return torch.cat([prompts, answers], dim=2)


def _choose_steps(
    step_of: torch.Tensor, keys: Sequence[bytes], number: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The steps of each row, or `number` of them: of shape `(batch, views)`, -1 where a row has fewer; and how many there
    are for each that was chosen, of shape `(batch, 1)`.
    """
    chosen, factors = [], []
    for row, key in zip(step_of.cpu(), keys, strict=True):
        steps = row[row >= 0].unique()
        kept = steps
        if number is not None and number < len(steps):
            kept = steps[torch.randperm(len(steps), generator=noise_generator("steps", key))[:number]]
        chosen.append(kept)
        factors.append(len(steps) / max(len(kept), 1))
    # a view in which nothing counts where no row has a step
    chosen[0] = torch.nn.functional.pad(chosen[0], (0, int(len(chosen[0]) == 0)), value=-1)
    padded = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1)
    return padded.to(step_of.device), torch.tensor(factors, device=step_of.device).unsqueeze(1)


def _estimate_diffu_grpo(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    noise = draw_noise(rollouts.prompt_mask.bool(), keys).squeeze(1)
    prompts = rollouts.prompt_ids.masked_fill(noise < settings.prompt_mask_ratio, settings.mask_token_id)
    masks = torch.full_like(rollouts.completion_ids, settings.mask_token_id)
    noisy_ids = torch.cat([prompts, masks], dim=1)
    return _by_token(
        rollouts, diffu_grpo_logps(model, noisy_ids, rollouts.completion_ids, **_inputs(rollouts, settings))
    )


def _estimate_coupled(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    low, high = COUPLED_RATIOS
    counted = rollouts.completion_mask.bool()
    times = torch.cat([torch.rand(1, generator=noise_generator("ratio", key)) for key in keys]).to(counted.device)
    ratio = low + (high - low) * times
    first = (draw_noise(counted, keys).squeeze(1) < ratio.unsqueeze(1)) & counted
    masked = torch.stack([counted, first, counted & ~first], dim=1)
    views = _views(rollouts, masked, settings.mask_token_id)
    return _by_token(
        rollouts, coupled_logps(model, views, rollouts.completion_ids, ratio, **_inputs(rollouts, settings))
    )


def _estimate_elbo(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    counted = rollouts.completion_mask.bool()
    counts, masked = _draw_counts(counted, keys, settings.num_draws or NUM_DRAWS, least=0)
    bound = elbo(
        model,
        _views(rollouts, masked, settings.mask_token_id),
        rollouts.completion_ids,
        counts / (counted.sum(dim=1, keepdim=True) + 1),
        counted,
        **_inputs(rollouts, settings),
    )
    return Estimate(bound, counted.float(), counted.sum(dim=1).float())


def _estimate_blocks(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    counted = rollouts.completion_mask.bool()
    before = count_tokens_before(rollouts.attention_mask.bool())[:, -counted.shape[1] :]
    masked = _mask_blocks(counted, before // settings.inputs["block_length"], keys, settings.num_draws or NUM_DRAWS)
    bound = block_elbo(
        model,
        _views(rollouts, masked, settings.mask_token_id),
        rollouts.completion_ids,
        completion_mask=counted,
        **_inputs(rollouts, settings),
    )
    return Estimate(bound, counted.float(), counted.sum(dim=1).float())


def _mask_blocks(counted: torch.Tensor, blocks: torch.Tensor, keys: Sequence[bytes], draws: int) -> torch.Tensor:
    """In every block `k` masks, `k` uniform on 1 ... L, of shape `(batch, draws, length)`."""
    masked = torch.zeros(len(counted), draws, counted.shape[1], dtype=torch.bool)
    for row, (key, places, block_of) in enumerate(zip(keys, counted.cpu(), blocks.cpu(), strict=True)):
        generator = noise_generator("blocks", key)
        for block in block_of[places].unique():
            inside = (places & (block_of == block)).nonzero().flatten()
            for draw, time in enumerate(sample_times(draws, "stratified", generator)):
                order = torch.randperm(len(inside), generator=generator)
                masked[row, draw, inside[order[: int(time * len(inside)) + 1]]] = True
    return masked.to(counted.device)


def _estimate_bounds(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    counted = rollouts.completion_mask.bool()
    _, masked = _draw_counts(counted, keys, settings.num_draws or NUM_DRAWS, least=1)
    views = _views(rollouts, masked, settings.mask_token_id)
    lower, upper = evidence_bounds(
        model, views, rollouts.completion_ids, counted, settings.spg_beta, **_inputs(rollouts, settings)
    )
    return Estimate(lower, counted.float(), counted.sum(dim=1).float(), upper)


def _estimate_trajectory(model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings) -> Estimate:
    assert rollouts.drawn is not None and rollouts.step_of is not None, "kept for this estimator"
    # an answer that does not count has no steps
    step_of = rollouts.step_of.masked_fill(~rollouts.completion_mask.bool().any(dim=1, keepdim=True), -1)
    steps, factors = _choose_steps(step_of, keys, settings.num_draws)
    noisy_ids, committed = trajectory_views(
        rollouts.prompt_ids, rollouts.drawn, step_of, steps, settings.mask_token_id
    )
    logps = trajectory_logps(
        model, noisy_ids, rollouts.drawn, committed, **_inputs(rollouts, settings), **_support(settings)
    )
    return Estimate(logps, committed.any(dim=1) * factors, (step_of >= 0).sum(dim=1).float())


def _estimate_left_to_right(
    model: Callable, rollouts: Rollouts, keys: Sequence[bytes], settings: Settings
) -> Estimate:
    counted = rollouts.completion_mask.bool()
    places = torch.arange(counted.shape[1], device=counted.device).expand(counted.shape)
    positions, factors = _choose_steps(places.masked_fill(~counted, -1), keys, settings.num_draws)
    logps = left_to_right_logps(
        model,
        rollouts.prompt_ids,
        rollouts.completion_ids,
        positions,
        **_inputs(rollouts, settings),
        **_support(settings),
    )
    looked_at = (places.unsqueeze(1) == positions.unsqueeze(2)).any(dim=1)
    return Estimate(logps, looked_at * factors, counted.sum(dim=1).float())


def _by_token(rollouts: Rollouts, logps: torch.Tensor) -> Estimate:
    return Estimate(logps, rollouts.completion_mask.float(), rollouts.completion_mask.sum(dim=1).float())


def _inputs(rollouts: Rollouts, settings: Settings) -> dict[str, Any]:
    return {"attention_mask": rollouts.attention_mask, "temperature": settings.temperature, **settings.inputs}


def _support(settings: Settings) -> dict[str, Any]:
    return {"top_k": settings.top_k, "top_p": settings.top_p}


# each a function of the model, the rollouts, the keys of their rows, and `Settings`
ESTIMATORS: dict[str, Callable[[Callable, Rollouts, Sequence[bytes], Settings], Estimate]] = {
    "diffu_grpo": _estimate_diffu_grpo,
    "coupled": _estimate_coupled,
    "elbo": _estimate_elbo,
    "blocks": _estimate_blocks,
    "bounds": _estimate_bounds,
    "trajectory": _estimate_trajectory,
    "left_to_right": _estimate_left_to_right,
}
# of answers, the others are of tokens
BY_SEQUENCE = frozenset({"elbo", "blocks", "bounds"})
# follow the sampler
BY_STEPS = frozenset({"trajectory", "left_to_right"})


__all__ = ["BY_SEQUENCE", "BY_STEPS", "ESTIMATORS", "Estimate", "Settings", "draw_noise"]
