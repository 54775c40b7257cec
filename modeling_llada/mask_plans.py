"""
Which tokens of an answer to mask, and which of them to score, so that the scores add up to its log-likelihood.

A model of this family predicts any token of an answer from any part of the others. Every estimator of `log p(answer)`
is a list of such questions with their weights:

    bound (arXiv 2502.09992, eq. 14)    sum over masks of L/k * sum over the k masked tokens, k uniform on 1 ... L
    chain rule                          one token after the other, in some order, each given those before it
    pseudo-likelihood                   every token given all others
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .likelihood_bound import enumerate_masks
from .masked_diffusion import mask_exactly, sample_times


# as many masks are drawn together, one in each of as many equal parts of the mask ratio
STRATA = 16
# more are not enumerated
MAX_ENUMERATED = 16


@dataclass(frozen=True)
class MaskPlan:
    """
    What to ask a model about an answer of `length` tokens.

    Args:
        masked (`torch.BoolTensor` of shape `(questions, length)`):
            What stands as a mask.
        scored (`torch.BoolTensor` of shape `(questions, length)`):
            Which of it is scored.
        weight (`torch.DoubleTensor` of shape `(questions,)`):
            Weight of the scores.
        replicate (`torch.LongTensor` of shape `(questions,)`):
            Independent estimates, from 0, that the question belongs to. The mean over them is the estimate.
        is_exact (`bool`):
            Whether nothing was drawn.
    """

    masked: torch.Tensor
    scored: torch.Tensor
    weight: torch.Tensor
    replicate: torch.Tensor
    is_exact: bool

    @classmethod
    def of(cls, masked: torch.Tensor, scored: torch.Tensor, weight: torch.Tensor | None = None) -> "MaskPlan":
        """A plan without a draw, of weights 1 if none are given."""
        weight = torch.ones(len(masked), dtype=torch.double) if weight is None else weight
        return cls(masked, scored, weight, torch.zeros(len(masked), dtype=torch.long), True)


def all_masks(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The bound, summed over all `2 ** length - 1` masks."""
    if length > MAX_ENUMERATED:
        raise ValueError(
            f"{length} tokens have 2**{length} - 1 masks, and at most {MAX_ENUMERATED} are enumerated; write "
            "`estimator='monte_carlo'`."
        )
    masked, weight = enumerate_masks(length)
    # of one mask of k tokens; the sum over masks of their weights is that of 1 / k over k
    return MaskPlan.of(masked, masked, weight)


def drawn_masks(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The bound, estimated from drawn masks: summed over all masks where these are no more."""
    if length <= MAX_ENUMERATED and 2**length - 1 <= num_draws:
        return all_masks(length, num_draws, generator)
    num_replicates = max(num_draws // STRATA, min(num_draws, 2))
    sizes = [len(part) for part in torch.arange(num_draws).tensor_split(num_replicates)]
    times = torch.cat([sample_times(size, "stratified", generator) for size in sizes])
    counts = (times * length).floor().long() + 1
    masked = mask_exactly(
        torch.ones(num_draws, length, dtype=torch.bool), counts, torch.rand(num_draws, length, generator=generator)
    )
    size = torch.tensor(sizes).repeat_interleave(torch.tensor(sizes))
    replicate = torch.arange(num_replicates).repeat_interleave(torch.tensor(sizes))
    return MaskPlan(masked, masked, length / (counts * size).double(), replicate, False)


def reference_masks(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """
    The bound with the counts of the authors' code: in each batch, evenly spaced and rounded to even numbers, so that
    for most lengths they are not uniform and the estimate is a little off.
    """
    size = min(num_draws, STRATA)
    if num_draws % size:
        raise ValueError(f"`num_draws={num_draws}` is no multiple of {STRATA}, the batch of `estimator='reference'`.")
    counts = []
    for _ in range(num_draws // size):
        first = int(torch.randint(1, length + 1, (), generator=generator))
        spaced = torch.linspace(first, first + (size - 1) * (length / size), size)
        counts.append((spaced.round().long() - 1) % length + 1)
    count = torch.cat(counts)
    noise = torch.rand(num_draws, length, generator=generator)
    masked = mask_exactly(torch.ones(num_draws, length, dtype=torch.bool), count, noise)
    replicate = torch.arange(num_draws) // size
    return MaskPlan(masked, masked, length / (count * size).double(), replicate, False)


def _chain(order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and scored tokens of the chain rule in the order `(length,)`."""
    length = len(order)
    place = torch.empty_like(order)
    place[order] = torch.arange(length)
    step = torch.arange(length)[:, None]
    return place >= step, place == step


def left_to_right(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The chain rule from the first token to the last: exact for a sampler of that order."""
    return MaskPlan.of(*_chain(torch.arange(length)))


def right_to_left(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The chain rule from the last token to the first."""
    return MaskPlan.of(*_chain(torch.arange(length).flip(0)))


def any_order(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The chain rule in `num_draws` drawn orders: their mean estimates the bound, without a weight."""
    if length == 1:
        return left_to_right(length, num_draws, generator)
    chains = [_chain(torch.randperm(length, generator=generator)) for _ in range(num_draws)]
    masked, scored = (torch.cat(part) for part in zip(*chains, strict=True))
    replicate = torch.arange(num_draws).repeat_interleave(length)
    return MaskPlan(masked, scored, torch.ones(len(masked), dtype=torch.double), replicate, False)


def one_at_a_time(length: int, num_draws: int, generator: torch.Generator) -> MaskPlan:
    """The pseudo-likelihood: every token given all others. No bound of the likelihood, and above it as a rule."""
    masked = torch.eye(length, dtype=torch.bool)
    return MaskPlan.of(masked, masked)


# name: plan, draws if not said (0 if it draws nothing)
ESTIMATORS: dict[str, tuple[Callable[[int, int, torch.Generator], MaskPlan], int]] = {
    "monte_carlo": (drawn_masks, 128),
    "reference": (reference_masks, 128),
    "exact": (all_masks, 0),
    "left_to_right": (left_to_right, 0),
    "right_to_left": (right_to_left, 0),
    "any_order": (any_order, 8),
    "pseudo": (one_at_a_time, 0),
}


__all__ = ["ESTIMATORS", "MaskPlan", "left_to_right"]
