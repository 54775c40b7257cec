"""
Losses of policy optimisation from surrogates of log π, whichever: pure functions of tensors.

Log-probabilities are by token, of shape `(batch, length)`, or by sequence, of shape `(batch,)`: see
`policy_estimates.py`.
"""

import math
from typing import Literal

import torch


def _lengths_of(logps: torch.Tensor, mask: torch.Tensor | None, lengths: torch.Tensor | int | None) -> torch.Tensor:
    """What the lengths are if they are not given, of shape `(batch,)` and at least 1."""
    if lengths is None:
        if mask is None and logps.dim() == 1:
            raise ValueError(
                "Log-probabilities of sequences are given, and neither `lengths` nor `mask`; write "
                "`lengths=completion_mask.sum(dim=1)`."
            )
        lengths = logps.shape[1] if mask is None else mask.sum(dim=1)
    lengths = torch.as_tensor(lengths, device=logps.device, dtype=logps.dtype)
    return lengths.expand(len(logps)).clamp(min=1)


def _by_draw(logps: torch.Tensor, *rows: torch.Tensor) -> list[torch.Tensor]:
    """Numbers of rows, as they go with log-probabilities of rows or of their draws."""
    return [values.unsqueeze(1) if logps.dim() == 2 else values for values in rows]


def approximate_kl(logps: torch.Tensor, ref_logps: torch.Tensor, kl: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """
    Divergence from the reference, of samples of the policy (joschu.net/blog/kl-approx.html).

    Args:
        logps, ref_logps (`torch.Tensor`):
            Log-probabilities under the policy and the reference, of the same shape.
        kl (`"k1"`, `"k2"` or `"k3"`):
            The log ratio, with the gradient of the divergence, since its own is 0 in expectation; half its square,
            whose gradient is right in expectation, and which stays moderate for sequences; or `exp(-d) + d - 1`,
            positive and without bias.

    Returns:
        `torch.Tensor` of the same shape.

    Raises:
        ValueError: If `kl` is unknown.
    """
    delta = logps - ref_logps
    if kl == "k1":
        return delta + (logps - logps.detach()) * delta.detach()
    if kl == "k2":
        return delta**2 / 2
    if kl == "k3":
        return torch.exp(-delta) + delta - 1
    raise ValueError(f"`kl={kl!r}` is unknown; write 'k1', 'k2' or 'k3'.")


def grpo_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    ref_logps: torch.Tensor | None = None,
    beta: float = 0.0,
    kl: Literal["k1", "k2", "k3"] = "k3",
    lengths: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    The clipped objective of GRPO (arXiv 2402.03300): `-min(r A, clip(r, 1 - ε_low, 1 + ε_high) A) + β KL`.

    Of tokens: their sum divided by the sum of lengths. Of sequences: the mean over rows, with the ratio
    `exp((log π - log π_old) / length)`, and the divergence of undivided bounds, divided by the length afterwards.

    Args:
        logps, old_logps (`torch.Tensor` of shape `(batch, length)` or `(batch,)`):
            Surrogates under the policy, and under the one that the answers came from, of the same noise. Without the
            latter it is the policy itself: all ratios are 1, the gradient is the plain one.
        advantages (`torch.Tensor` of shape `(batch,)`):
            Advantages of the answers.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            1 where a token counts, up to the end of text. All if not given.
        epsilon_low, epsilon_high (`float`, *optional*, default to 0.2):
            How far below and above 1 a ratio has a gradient.
        ref_logps (`torch.Tensor`, *optional*):
            Surrogates under the reference, needed if `beta` is not 0.
        beta (`float`, *optional*, defaults to 0.0):
            Weight of the divergence.
        kl (`"k1"`, `"k2"` or `"k3"`, *optional*, defaults to `"k3"`):
            See [`approximate_kl`].
        lengths (`torch.Tensor` of shape `(batch,)` or `int`, *optional*):
            Lengths of the answers. Those of the mask if not given.

    Returns:
        `torch.Tensor`: A scalar.

    Raises:
        ValueError: If there is no reference to diverge from, or no length of sequences, or `kl` is unknown.
    """
    if beta and ref_logps is None:
        raise ValueError(f"`beta={beta}` weights the divergence from a reference; give `ref_logps`, or `beta=0`.")
    row_lengths = _lengths_of(logps, mask, lengths)
    is_sequence = logps.dim() == 1
    scale = row_lengths if is_sequence else 1
    (advantages,) = _by_draw(logps, advantages)
    ratio = torch.exp((logps - (logps.detach() if old_logps is None else old_logps)) / scale)
    losses = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)
    if beta and ref_logps is not None:
        losses = losses + beta * approximate_kl(logps, ref_logps, kl) / scale
    if is_sequence:
        return losses.mean()
    if mask is not None:
        losses = losses.masked_fill(~mask.bool(), 0.0)
    return losses.sum() / row_lengths.sum()


def wd1_loss(
    logps: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    log_totals: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    The weighted likelihoods of wd1, without ratio and reference: answers are made likelier with the
    weights softmax(A), and less likely with the weights softmax(-A).

    Args:
        logps (`torch.Tensor` of shape `(batch, length)`):
            Surrogates under the policy.
        advantages (`torch.Tensor` of shape `(batch,)`):
            Advantages, of all answers that the weights are shared by.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts, up to the end of text.
        log_totals (`tuple` of two `torch.Tensor`, *optional*):
            Logarithms of the sums of exp(A) and of exp(-A), over more answers than those that are given here.

    Returns:
        `torch.Tensor`: A scalar.
    """
    likelier, unlikelier = (
        (advantages.logsumexp(dim=0), (-advantages).logsumexp(dim=0)) if log_totals is None else log_totals
    )
    weights = (-advantages - unlikelier).exp() - (advantages - likelier).exp()
    return (weights * logps.masked_fill(~mask.bool(), 0.0).sum(dim=1)).sum()


def spg_loss(
    lower: torch.Tensor, upper: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor, mix: float = 1.0
) -> torch.Tensor:
    """
    The sandwiched gradient of SPG: good answers by the lower bound, the others by a mixture.

    Args:
        lower, upper (`torch.Tensor` of shape `(batch,)`):
            Bounds per token, see [`~llada.trainers.policy_estimates.evidence_bounds`].
        advantages (`torch.Tensor` of shape `(batch,)`):
            Advantages of the answers.
        lengths (`torch.Tensor` of shape `(batch,)`):
            Lengths of the answers.
        mix (`float`, *optional*, defaults to 1.0):
            Share of the upper bound where the advantage is not positive; the rest is the lower one's.

    Returns:
        `torch.Tensor`: A scalar.
    """
    logps = torch.where(advantages > 0, lower, mix * upper + (1 - mix) * lower)
    return -(advantages * logps * lengths).sum() / lengths.sum().clamp(min=1)


def bgpo_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor | int,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> torch.Tensor:
    """
    The bound of BGPO on the clipped objective: the ratio of good answers is `1 + Δ`, which is below `exp(Δ)`, that of
    the others `exp(Δ)`. It adds up over draws, so that any number of them takes the memory of one.

    Args:
        logps, old_logps (`torch.Tensor` of shape `(batch,)` or `(batch, draws)`):
            Bounds of sequences, of each draw if there are several, of the same noise.
        advantages (`torch.Tensor` of shape `(batch,)`):
            Advantages of the answers.
        lengths (`torch.Tensor` of shape `(batch,)` or `int`):
            Lengths of the answers, which Δ is divided by.
        epsilon_low, epsilon_high (`float`, *optional*, default to 0.2):
            How far below and above 1 a ratio has a gradient.

    Returns:
        `torch.Tensor`: A scalar, the mean over rows and draws.
    """
    advantages, lengths = _by_draw(logps, advantages, _lengths_of(logps, None, lengths))
    delta = (logps - old_logps) / lengths
    # not the exponential of log(1 + Δ), which is no number from -1 on downwards
    ratio = torch.where(advantages > 0, 1 + delta, torch.exp(delta))
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    return -torch.min(ratio * advantages, clipped * advantages).mean()


def gdsd_loss(
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor | int,
    psi: float = 1.0,
    epsilon_low: float = 4e-4,
    epsilon_high: float = 4e-4,
) -> torch.Tensor:
    """
    The squared distance of GDSD: `(clamp(Δ, log(1 - ε_low), log(1 + ε_high)) / length - ψ A)²`. Where Δ is clamped, it
    has no gradient.

    Args:
        logps, old_logps (`torch.Tensor` of shape `(batch,)` or `(batch, draws)`):
            Bounds of sequences, of each draw if there are several, of the same noise.
        advantages (`torch.Tensor` of shape `(batch,)`):
            Advantages of the answers.
        lengths (`torch.Tensor` of shape `(batch,)` or `int`):
            Lengths of the answers.
        psi (`float`, *optional*, defaults to 1.0):
            Scale of the advantages, 1 to 10 in published runs.
        epsilon_low, epsilon_high (`float`, *optional*, default to 4e-4):
            Size of the trust region.

    Returns:
        `torch.Tensor`: A scalar, the mean over rows and draws.
    """
    advantages, lengths = _by_draw(logps, advantages, _lengths_of(logps, None, lengths))
    delta = (logps - old_logps).clamp(math.log(1 - epsilon_low), math.log(1 + epsilon_high))
    return ((delta / lengths - psi * advantages) ** 2).mean()


__all__ = ["approximate_kl", "bgpo_loss", "gdsd_loss", "grpo_loss", "spg_loss", "wd1_loss"]
