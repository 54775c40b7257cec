"""Every estimator that the arguments allow against sums over all masks and integrals over all ratios, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from llada.modeling_llada.likelihood_bound import enumerate_masks
from llada.modeling_llada.masked_diffusion import (
    ForwardProcess,
    MaskedBatch,
    noise_generator,
    reduce_loss,
    sample_times,
)


MASK = 9
NODES, WEIGHTS = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(40))
# distribution functions of the ratio, and their inverses
TIMES = {"linear": lambda p: p, "cosine": lambda p: 1 - 2 / math.pi * math.acos(p)}
RATIOS = {"linear": lambda t: t, "cosine": lambda t: math.cos(math.pi / 2 * (1 - t))}


def _integral(function, low, high, edges=()):
    """Of a function that is smooth between the edges."""
    points = sorted({low, high, *(edge for edge in edges if low < edge < high)})
    total = 0.0
    for start, end in itertools.pairwise(points):
        values = [function(start + (end - start) * (node + 1) / 2) for node in NODES.tolist()]
        total += (end - start) / 2 * np.dot(WEIGHTS.numpy(), values)
    return total


def _outcomes(process, length):
    """
    All that a process makes of one row, with probabilities that sum to 1: times are the nodes of a quadrature, noise
    has every order of the tokens or, where they are masked independently, lies on either side of the ratio.
    """
    low, high = (TIMES[process.mask_schedule](end) for end in (process.min_mask_ratio, process.max_mask_ratio))
    exact = process.mask_sampling == "exact"
    edges = {0.0, 1.0}
    if exact:
        # a number of tokens is that of a range of ratios
        counts = length + 1 if process.complementary_masks else length
        edges |= {(TIMES[process.mask_schedule](k / counts) - low) / (high - low) for k in range(counts + 1)}
    points = sorted(edge for edge in edges if 0 <= edge <= 1)
    times, probabilities, noise = [], [], []
    for start, end in itertools.pairwise(points):
        for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
            time = start + (end - start) * (node + 1) / 2
            share = weight * (end - start) / 2
            ratio = RATIOS[process.mask_schedule](low + (high - low) * time)
            if process.complementary_masks:
                ratio = min(max(ratio, process.mask_eps), 1 - process.mask_eps)
            else:
                ratio = process.mask_eps + (1 - process.mask_eps) * ratio
            if exact:
                draws = [(order, 1 / math.factorial(length)) for order in itertools.permutations(range(length))]
            else:
                draws = [
                    (
                        [ratio - 1e-12 if bit else ratio + 1e-12 for bit in bits],
                        ratio ** sum(bits) * (1 - ratio) ** (length - sum(bits)),
                    )
                    for bits in itertools.product((0, 1), repeat=length)
                ]
            for values, probability in draws:
                times.append(time)
                noise.append(values)
                probabilities.append(share * probability)
    ids = torch.zeros(len(times), length, dtype=torch.long)
    batch = process.mask(
        ids, ids == 0, torch.tensor(times, dtype=torch.float64), torch.tensor(noise, dtype=torch.float64)
    )
    probabilities = torch.tensor(probabilities, dtype=torch.float64)
    assert abs(probabilities.sum() - 1) < 1e-12
    return batch, probabilities


def _cross_entropy(masked):
    """Of a model that predicts every token differently from every set of masks."""
    codes = (masked * 2 ** torch.arange(masked.shape[1])).sum(1, keepdim=True) + 1
    return (2 + torch.sin(codes * (3 + torch.arange(masked.shape[1])).double())) * masked


def _of_count(process, length):
    """
    What the process is to give the losses of each set of `k` masks in the mean of its draws, by theory: the part of
    the bound (1) in the band, or (2), divided by the share of the times in it; or how likely the set is.
    """
    low, high = process.min_mask_ratio, process.max_mask_ratio
    time = TIMES[process.mask_schedule]
    share = time(high) - time(low)
    eps, elbo = process.mask_eps, process.loss_weighting == "elbo"
    result = []
    for k in range(1, length + 1):
        sides = []
        # the row, and its complement, whose ratio is 1 - p
        for side in range(2 if process.complementary_masks else 1):
            if process.mask_sampling == "exact":
                bins = length + 1 if process.complementary_masks else length
                cell = k - 1 if not process.complementary_masks else (length - k if side else k)
                whole = time((cell + 1) / bins) - time(cell / bins)
                inside = max(0, time(min(high, (cell + 1) / bins)) - time(max(low, cell / bins)))
                probability = inside / share
                sides.append(probability / math.comb(length, k) / (k * whole if elbo else 1))
                continue

            def integrand(t, k=k, side=side):
                p = RATIOS[process.mask_schedule](t)
                density = 1 if process.mask_schedule == "linear" else 2 / math.pi / math.sqrt(1 - p * p)
                p = min(max(p, eps), 1 - eps) if process.complementary_masks else eps + (1 - eps) * p
                p = 1 - p if side else p
                return p**k * (1 - p) ** (length - k) / (p * density if elbo else 1)

            edges = [time(eps), time(1 - eps)]
            sides.append(_integral(integrand, time(low), time(high), edges) / share)
        result.append(sum(sides) / len(sides))
    return result


BANDS = {"all": {}, "band": {"min_mask_ratio": 0.3, "max_mask_ratio": 0.8}}
CASES = [
    pytest.param(
        schedule,
        sampling,
        weighting,
        complementary,
        BANDS[band],
        id=f"{schedule}-{sampling}-{weighting}-{'pair' if complementary else 'alone'}-{band}",
    )
    for schedule in TIMES
    for sampling in ("bernoulli", "exact")
    for weighting in ("elbo", "uniform")
    for complementary in (False, True)
    for band in BANDS
]


@pytest.mark.parametrize(("schedule", "sampling", "weighting", "complementary", "band"), CASES)
def test_every_estimator_is_unbiased(schedule, sampling, weighting, complementary, band):
    process = ForwardProcess(
        MASK,
        mask_sampling=sampling,
        mask_schedule=schedule,
        complementary_masks=complementary,
        loss_weighting=weighting,
        mask_eps=0.0,
        **band,
    )
    rows = {}
    for length in (1, 2, 3, 4):
        batch, probabilities = _outcomes(process, length)
        num = len(probabilities)
        # losses are linear in cross entropy: the mean over outcomes is the loss of all, each with its probability
        losses = _cross_entropy(batch.masked) * probabilities.repeat(len(batch.masked) // num)[:, None]
        estimate = batch.sum_losses(losses, num).sum()
        masks, bound_weights = enumerate_masks(length)
        of_mask = _cross_entropy(masks).sum(1)
        of_count = torch.tensor(_of_count(process, length), dtype=torch.float64)
        expected = (of_count[masks.sum(1) - 1] * of_mask).sum()
        torch.testing.assert_close(estimate, expected, rtol=1e-6, atol=1e-9)
        if weighting == "elbo" and not band:
            torch.testing.assert_close(estimate, (bound_weights * of_mask).sum(), rtol=1e-6, atol=1e-9)
        rows[length] = estimate
        # what "masked" divides by
        counted = (batch.count_scored(num).double() * probabilities).sum()
        if weighting == "uniform":
            number = (of_count[masks.sum(1) - 1] * masks.sum(1)).sum()
            torch.testing.assert_close(counted, number, rtol=1e-6, atol=1e-9)
    # a batch of rows of unequal length
    estimates, lengths = torch.stack([rows[2], rows[4]]), torch.tensor([2, 4])
    assert reduce_loss(estimates, lengths, "sequence") == pytest.approx((rows[2] / 2 + rows[4] / 4).item() / 2)
    assert reduce_loss(estimates, lengths, "token") == pytest.approx((rows[2] + rows[4]).item() / 6)
    assert reduce_loss(estimates, lengths, "batch") == pytest.approx((rows[2] + rows[4]).item() / 2)


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize("complementary", [False, True], ids=["alone", "pair"])
def test_what_the_smallest_probability_changes(schedule, complementary):
    process = ForwardProcess(MASK, mask_schedule=schedule, complementary_masks=complementary)
    for length in (1, 4):
        masks, bound_weights = enumerate_masks(length)
        of_mask = _cross_entropy(masks).sum(1)
        of_count = torch.tensor(_of_count(process, length), dtype=torch.float64)
        bias = ((of_count[masks.sum(1) - 1] * of_mask).sum() / (bound_weights * of_mask).sum()).item() - 1
        assert abs(bias) < 2 * process.mask_eps
        if not complementary:
            batch, probabilities = _outcomes(process, length)
            estimate = batch.sum_losses(
                _cross_entropy(batch.masked) * probabilities[:, None], len(probabilities)
            ).sum()
            torch.testing.assert_close(estimate, (of_count[masks.sum(1) - 1] * of_mask).sum(), rtol=1e-6, atol=1e-9)


def test_the_mean_over_masked_tokens_of_a_batch():
    """The expectation of a ratio of sums, over the masks of two rows together."""
    process = ForwardProcess(MASK, loss_weighting="uniform", mask_eps=0.0, min_mask_ratio=0.3, max_mask_ratio=0.8)
    expected, estimate = 0.0, 0.0
    sets = {length: (torch.arange(2**length)[:, None] >> torch.arange(length)) & 1 == 1 for length in (1, 3)}
    likely = {}
    for length, rows in sets.items():
        of_count = [
            _integral(lambda p, k=k, n=length: p**k * (1 - p) ** (n - k), 0.3, 0.8) / 0.5 for k in range(length + 1)
        ]
        likely[length] = [of_count[k] for k in rows.sum(1).tolist()]
    drawn = {}
    for length, rows in sets.items():
        batch, probabilities = _outcomes(process, length)
        drawn[length] = [(probabilities * (batch.masked == row).all(1)).sum().item() for row in rows]
    for i, j in itertools.product(range(2), range(8)):
        masked = torch.zeros(2, 3, dtype=torch.bool)
        masked[0, :1], masked[1] = sets[1][i], sets[3][j]
        losses = torch.zeros(2, 3, dtype=torch.float64)
        losses[0, :1], losses[1] = _cross_entropy(sets[1][i][None])[0], _cross_entropy(sets[3][j][None])[0]
        batch = MaskedBatch(masked.long(), masked, torch.ones(2), torch.ones(2))
        loss = reduce_loss(batch.sum_losses(losses, 2), batch.count_scored(2), "masked").item()
        estimate += drawn[1][i] * drawn[3][j] * loss
        expected += likely[1][i] * likely[3][j] * losses.sum().item() / max(masked.sum().item(), 1)
    assert estimate == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sampling", ["iid", "stratified", "low_discrepancy"])
def test_every_row_has_a_uniform_time(sampling, monkeypatch):
    """Moments of the time of each row of three, over all deals of the strata and all offsets."""
    monkeypatch.setattr(torch, "rand", lambda size, generator: generator.uniform.expand(size))
    monkeypatch.setattr(torch, "randperm", lambda size, generator: torch.tensor(generator.deal))

    class Fixed:
        uniform, deal = torch.zeros(()), ()

    deals = list(itertools.permutations(range(3)))
    moments = torch.zeros(3, 3, dtype=torch.float64)
    # the grid of a low discrepancy starts anew at every third
    for start, (node, weight) in itertools.product(range(3), zip(NODES, WEIGHTS, strict=True)):
        for deal in deals:
            Fixed.uniform, Fixed.deal = (start + (node + 1) / 2) / 3, deal
            times = sample_times(3, sampling, Fixed)
            moments += weight / 6 / len(deals) * torch.stack([times**power for power in (1, 2, 3)])
    torch.testing.assert_close(
        moments, (1 / torch.tensor([2.0, 3, 4], dtype=torch.float64))[:, None].expand(3, 3), rtol=1e-6, atol=0
    )


def test_a_call_is_a_function_of_its_draws():
    process = ForwardProcess(MASK, mask_sampling="exact", complementary_masks=True)
    ids = torch.zeros(5, 4, dtype=torch.long)
    called = process(ids, ids == 0, noise_generator(1))
    generator = noise_generator(1)
    times, noise = sample_times(5, "iid", generator), torch.rand(5, 4, generator=generator)
    masked = process.mask(ids, ids == 0, times, noise)
    assert all(torch.equal(value, vars(masked)[name]) for name, value in vars(called).items())
