"""
The bound on the likelihood of a text, estimated with fixed noise or summed over all masks (arXiv 2502.09992, §2).

It is equation (2) of `masked_diffusion.py`: the cross entropy of exactly `k` masked tokens of `L`, weighted by `L/k`,
with `k` uniform on 1 ... L. The noise of a text depends on a seed and on the text, so that two models, or one model at
two times, are compared under the same masks.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import torch

from .masked_diffusion import mask_exactly, noise_generator, sample_times


def content_keys(input_ids: torch.Tensor, visible: torch.Tensor | None = None) -> list[bytes]:
    """
    One key per row that depends on the tokens of the row and on nothing else: neither on padding, nor on the batch,
    nor on the process that holds the row, nor on the integer type of the ids.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`):
            Token ids.
        visible (`torch.Tensor` of shape `(batch, length)`, *optional*):
            Which tokens count, e.g. the attention mask, 0 for padding. All if not given.
    """
    rows = input_ids.cpu().long().numpy()
    kept = None if visible is None else visible.cpu().bool().numpy()
    return [
        hashlib.blake2b((row if kept is None else row[kept[i]]).tobytes(), digest_size=16).digest()
        for i, row in enumerate(rows)
    ]


def bound_masks(
    maskable: torch.Tensor, num_draws: int, row_keys: Sequence[int | str | bytes], seed: int = 0
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """
    The masks of a Monte Carlo estimate of the bound (2). The counts of a row are stratified over its draws; its masks
    depend on `seed`, its key and its number of maskable tokens, not on the batch or on padding.

    Args:
        maskable (`torch.BoolTensor` of shape `(batch, length)`):
            Which tokens are scored.
        num_draws (`int`):
            Number of masks per row.
        row_keys (`Sequence`):
            One key per row, see [`content_keys`]. Models that are compared must be given the same ones.
        seed (`int`, *optional*, defaults to 0):
            Seed of the noise.

    Yields:
        `tuple`: `num_draws` times the masks (`bool`, of shape `(batch, length)`) and the weights `L/k` (of shape
        `(batch,)`).

    Raises:
        ValueError: If there are no draws, or not as many keys as rows.
    """
    if num_draws < 1:
        raise ValueError(f"`num_draws={num_draws}` gives no estimate; write at least 1.")
    if len(row_keys) != len(maskable):
        raise ValueError(f"There are {len(row_keys)} `row_keys` for {len(maskable)} rows; give one per row.")
    lengths = maskable.sum(dim=1).cpu()
    times = torch.zeros(num_draws, len(lengths))
    noise = torch.zeros(num_draws, *maskable.shape)
    on_cpu = maskable.cpu()
    for row, (key, length) in enumerate(zip(row_keys, lengths.tolist(), strict=True)):
        generator = noise_generator(seed, "bound", key)
        times[:, row] = sample_times(num_draws, "stratified", generator)
        noise[:, row, on_cpu[row]] = torch.rand(num_draws, length, generator=generator)
    for draw in range(num_draws):
        counts = torch.minimum((times[draw] * lengths).floor().long() + 1, lengths)
        weight = lengths / counts.clamp(min=1)
        yield (
            mask_exactly(maskable, counts.to(maskable.device), noise[draw].to(maskable.device)),
            weight.to(maskable.device),
        )


def enumerate_masks(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    All masks of a short sequence, for which the bound (2) is a finite sum: `-ELBO = sum over masks of weight * CE`.

    Args:
        length (`int`):
            Number of maskable tokens.

    Returns:
        `tuple`: Masks (`bool`, of shape `(2 ** length - 1, length)`) and weights (float64, of shape
        `(2 ** length - 1,)`).
    """
    numbers = torch.arange(1, 2**length)
    masked = (numbers[:, None] >> torch.arange(length)) & 1 == 1
    weights = [1 / (k * math.comb(length, k)) for k in masked.sum(dim=1).tolist()]
    return masked, torch.tensor(weights, dtype=torch.float64)


def likelihood_bound(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    mask_token_id: int,
    num_draws: int = 128,
    row_keys: Sequence[int | str | bytes] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """
    Estimates the bound on the negative log-likelihood of the maskable tokens given the others, in nats.

    The noise is fixed: two calls give the same number, and two models are compared under the same masks.

    Args:
        score (`Callable`):
            Gives the cross entropy of the masked tokens, of shape `(batch, length)` and 0 elsewhere, from noisy ids
            and mask: the first result of [`masked_cross_entropy`].
        input_ids (`torch.LongTensor` of shape `(batch, length)`):
            Clean tokens.
        maskable (`torch.BoolTensor` of shape `(batch, length)`):
            Which tokens are scored.
        mask_token_id (`int`):
            Id of the mask token.
        num_draws (`int`, *optional*, defaults to 128):
            Number of masks per row, and of forward passes. 128 as in the paper.
        row_keys (`Sequence`, *optional*):
            See [`bound_masks`]; if not given, the tokens of the rows that are scored, so that padding does not count.
        seed (`int`, *optional*, defaults to 0):
            Seed of the noise.

    Returns:
        `torch.FloatTensor` of shape `(batch, length)`: What each token contributes. A row's sum is the estimate.
    """
    row_keys = content_keys(input_ids, maskable) if row_keys is None else row_keys
    total = torch.zeros((), device=input_ids.device)
    for masked, weight in bound_masks(maskable, num_draws, row_keys, seed):
        total = total + weight[:, None] * score(input_ids.masked_fill(masked, mask_token_id), masked)
    return total / num_draws


__all__ = ["bound_masks", "content_keys", "enumerate_masks", "likelihood_bound"]
