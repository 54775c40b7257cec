"""
What each estimator of the policy gradient is worth, exactly: `python -m benchmarks --policy` writes the tables in
docs/alignment.md.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llada.modeling_llada.likelihood_bound import enumerate_masks
from llada.trainers.policy_estimates import (
    block_elbo,
    coupled_logps,
    diffu_grpo_logps,
    elbo,
    evidence_bounds,
    left_to_right_logps,
    trajectory_logps,
    trajectory_views,
)

from .certificates import LENGTH, MASK, train_model
from .policy_gradients import LogitTable, PathEnumeration, Paths, Sampler


DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "alignment.md"
WORDS = 3
PROMPT = torch.tensor([0, 1, 2])
BLOCK_LENGTH = 2
# the exponent of the upper bound, as in published runs
BETA = 1.5
SAMPLERS = {
    "by chance": Sampler("chance"),
    "least entropy first": Sampler("entropy"),
    "from the left": Sampler("left"),
    "surest first": Sampler("confidence"),
    "surest two first": Sampler("confidence", per_step=2),
    "all at once": Sampler("chance", per_step=LENGTH),
    "in blocks": Sampler("confidence", block_length=BLOCK_LENGTH),
}

# probability and noise
Noise = list[tuple[float, Any]]
# gives one value or two for each path, from the table, the paths, noise, and inputs of the model
Surrogate = Callable[[LogitTable, Paths, Any, dict[str, Any]], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Estimator:
    """
    A surrogate and its noise.

    Args:
        surrogate (`Callable`):
            Gives the value of every path. If there are two, the second is for answers without an advantage.
        noise (`Callable`):
            Gives all noise with its probabilities, for a number of steps.
        passes (`Callable`):
            Forward passes with a gradient, for a number of steps. Twice the tokens count twice.
        needs_path (`bool`, *optional*, defaults to `False`):
            Whether it looks at how the answer was written.
        needs_blocks (`bool`, *optional*, defaults to `False`):
            Whether it is for a sampler that writes in blocks.
    """

    surrogate: Surrogate
    noise: Callable[[int], Noise]
    passes: Callable[[int], int]
    needs_path: bool = False
    needs_blocks: bool = False


def _views(paths: Paths, masks: torch.Tensor, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    """Every answer under some masks, `(paths, views, prompt_length + length)`."""
    answers = paths.answers.unsqueeze(1).masked_fill(masks, MASK)
    return torch.cat([prompt.expand(*answers.shape[:2], -1), answers], dim=2)


def _full(number: int = 1) -> torch.Tensor:
    return torch.ones(number, LENGTH, dtype=torch.bool)


def _prompt_noise(ratio: float) -> Noise:
    kept = [torch.tensor(choice) for choice in product([False, True], repeat=len(PROMPT))]
    found = [(ratio ** int(mask.sum()) * (1 - ratio) ** int((~mask).sum()), mask) for mask in kept]
    return [(chance, mask) for chance, mask in found if chance > 0]


def _coupled_noise() -> Noise:
    masks = [torch.tensor(choice) for choice in product([False, True], repeat=LENGTH)]
    # what is integrated over the ratio, uniform between these, is smooth
    points, weights = np.polynomial.legendre.leggauss(8)
    ratios = [(0.5 + 0.3 * float(point), float(weight) / 2) for point, weight in zip(points, weights, strict=True)]
    return [
        (weight * ratio ** int(mask.sum()) * (1 - ratio) ** int((~mask).sum()), (mask, ratio))
        for ratio, weight in ratios
        for mask in masks
    ]


def _exact_noise(least: int) -> Noise:
    """Masks of `k` tokens, any of them equally likely, `k` uniform on `least` ... L."""
    masks = [torch.zeros(LENGTH, dtype=torch.bool)] * (least == 0) + [*enumerate_masks(LENGTH)[0]]
    return [(1 / (LENGTH + 1 - least) / math.comb(LENGTH, int(mask.sum())), mask) for mask in masks]


def _pair_noise() -> Noise:
    singles = _exact_noise(1)
    return [
        (first[0] * second[0] * (1 if first is second else 2), torch.stack([first[1], second[1]]))
        for first, second in combinations_with_replacement(singles, 2)
    ]


def _block_noise() -> Noise:
    """Of every block, as [`_exact_noise`] of the whole."""
    numbers = [(len(PROMPT) + place) // BLOCK_LENGTH for place in range(LENGTH)]
    parts = []
    for block in sorted(set(numbers)):
        masks = enumerate_masks(numbers.count(block))[0]
        length = masks.shape[1]
        parts.append([(1 / length / math.comb(length, int(mask.sum())), mask) for mask in masks])
    return [(math.prod(p for p, _ in parts), torch.cat([mask for _, mask in parts])) for parts in product(*parts)]


def _diffu_grpo(table: LogitTable, paths: Paths, noise: torch.Tensor, inputs: dict) -> tuple[torch.Tensor, ...]:
    views = _views(paths, _full(), PROMPT.masked_fill(noise, MASK))
    return (diffu_grpo_logps(table, views[:, 0], paths.answers, **inputs).sum(dim=1),)


def _coupled(table: LogitTable, paths: Paths, noise: Any, inputs: dict) -> tuple[torch.Tensor, ...]:
    mask, ratio = noise
    views = _views(paths, torch.stack([_full()[0], mask, ~mask]))
    return (coupled_logps(table, views, paths.answers, ratio, **inputs).sum(dim=1),)


def _elbo(complement: bool) -> Surrogate:
    def surrogate(table: LogitTable, paths: Paths, noise: torch.Tensor, inputs: dict) -> tuple[torch.Tensor, ...]:
        ratio = (noise.sum() / (LENGTH + complement)).expand(len(paths.answers), 1)
        views = _views(paths, noise.unsqueeze(0))
        return (elbo(table, views, paths.answers, ratio, complement=complement, **inputs),)

    return surrogate


def _bounds(table: LogitTable, paths: Paths, noise: torch.Tensor, inputs: dict) -> tuple[torch.Tensor, ...]:
    mask = torch.ones_like(paths.answers)
    lower, upper = evidence_bounds(table, _views(paths, noise), paths.answers, mask, BETA, **inputs)
    return LENGTH * lower, LENGTH * upper


def _trajectory(shrink: int) -> Surrogate:
    def surrogate(table: LogitTable, paths: Paths, noise: Any, inputs: dict) -> tuple[torch.Tensor, ...]:
        step_of = paths.step_of // shrink
        number = int(step_of.max()) + 1
        steps = torch.arange(number) if noise is None else torch.tensor([noise])
        steps = steps.expand(len(step_of), -1)
        prompt = PROMPT.expand(len(step_of), -1)
        views, committed = trajectory_views(prompt, paths.answers, step_of, steps, MASK)
        logps = trajectory_logps(table, views, paths.answers, committed, **inputs)
        return (logps.sum(dim=1) * number / steps.shape[1],)

    return surrogate


def _left_to_right(table: LogitTable, paths: Paths, noise: Any, inputs: dict) -> tuple[torch.Tensor, ...]:
    prompt = PROMPT.expand(len(paths.answers), -1)
    return (left_to_right_logps(table, prompt, paths.answers, **inputs).sum(dim=1),)


def _blocks(table: LogitTable, paths: Paths, noise: torch.Tensor, inputs: dict) -> tuple[torch.Tensor, ...]:
    return (block_elbo(table, _views(paths, noise.unsqueeze(0)), paths.answers, BLOCK_LENGTH),)


ESTIMATORS = {
    "`trajectory`, all steps": Estimator(_trajectory(1), lambda steps: [(1.0, None)], lambda steps: steps, True),
    "`trajectory`, one step drawn": Estimator(
        _trajectory(1), lambda steps: [(1 / steps, step) for step in range(steps)], lambda steps: 1, True
    ),
    "`trajectory`, steps merged in pairs": Estimator(
        _trajectory(2), lambda steps: [(1.0, None)], lambda steps: -(-steps // 2), True
    ),
    "`left_to_right`": Estimator(_left_to_right, lambda steps: [(1.0, None)], lambda steps: LENGTH),
    "`elbo`, one draw": Estimator(_elbo(False), lambda steps: _exact_noise(1), lambda steps: 1),
    "`elbo`, draw and complement": Estimator(_elbo(True), lambda steps: _exact_noise(0), lambda steps: 2),
    "`bounds`, two draws": Estimator(_bounds, lambda steps: _pair_noise(), lambda steps: 2),
    "`coupled`": Estimator(_coupled, lambda steps: _coupled_noise(), lambda steps: 3),
    "`diffu_grpo`": Estimator(_diffu_grpo, lambda steps: _prompt_noise(0.0), lambda steps: 1),
    "`diffu_grpo`, prompt masked 0.15": Estimator(_diffu_grpo, lambda steps: _prompt_noise(0.15), lambda steps: 1),
    "`blocks`, one draw": Estimator(_blocks, lambda steps: _block_noise(), lambda steps: 2, needs_blocks=True),
}


@dataclass(frozen=True)
class Worth:
    """
    An estimator, for a sampler.

    Args:
        bias (`float`):
            Norm of the difference between the expected and the exact gradient, over that of the exact one.
        angle (`float`):
            Angle between the two, in degrees.
        noise, total (`float`):
            Variance of the estimate from one answer, over the squared norm of its expectation: what the noise adds,
            and with the choice of the answer.
        passes (`float`):
            Forward passes with a gradient for one answer.
    """

    bias: float
    angle: float
    noise: float
    total: float
    passes: float

    @property
    def price(self) -> float:
        """The variance, multiplied by the passes: at equal compute, that many passes are that many fewer answers."""
        return self.total * self.passes


def draw_rewards(paths: Paths, number: int = 8) -> torch.Tensor:
    """Rewards of 0 or 1, of shape `(number, paths)`: each has another quarter of all answers right."""
    codes = paths.answers @ WORDS ** torch.arange(LENGTH)
    order = torch.rand(number, WORDS**LENGTH, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return (order < WORDS**LENGTH // 4).double()[:, codes]


class PolicyBench:
    """
    Measures estimators on a model.

    Args:
        table ([`LogitTable`]):
            The model.
        sampler ([`Sampler`]):
            What answers come from.
    """

    def __init__(self, table: LogitTable, sampler: Sampler):
        self.table, self.sampler = table, sampler
        self.paths = PathEnumeration(self.table, PROMPT, LENGTH, sampler).paths()
        self.answers = self.paths.by_answer()
        rewards = draw_rewards(self.answers)
        self.expected = rewards @ self.answers.probabilities
        self.exact = rewards @ self.answers.slopes

    def measure(self, estimator: Estimator) -> Worth:
        """What an estimator is worth, the mean over rewards."""
        steps = int(self.paths.step_of.max()) + 1
        paths = self.paths if estimator.needs_path else self.answers
        means: list[Any] = [0.0, 0.0]
        squares: list[Any] = [0.0, 0.0]
        for chance, noise in estimator.noise(steps):
            values = estimator.surrogate(self.table, paths, noise, self.sampler.inputs)
            for number, value in enumerate(values):
                # another gradient of the same call
                slopes = self.table.gradients(value)
                means[number] += chance * slopes
                squares[number] += chance * slopes.square().sum(dim=1)
        if len(values) == 1:
            means[1], squares[1] = means[0], squares[0]

        found = []
        for reward, expected, exact in zip(draw_rewards(paths), self.expected, self.exact, strict=True):
            advantage = reward - expected
            good = (advantage > 0).double()
            mean = good.unsqueeze(1) * means[0] + (1 - good).unsqueeze(1) * means[1]
            square = good * squares[0] + (1 - good) * squares[1]
            gradient = (paths.probabilities * advantage) @ mean
            weight = paths.probabilities * advantage.square()
            noise = weight @ (square - mean.square().sum(dim=1))
            total = weight @ square - gradient.square().sum()
            cosine = (gradient @ exact) / gradient.norm() / exact.norm()
            found.append(
                torch.stack(
                    [
                        (gradient - exact).norm() / exact.norm(),
                        cosine.clamp(-1, 1).acos().rad2deg(),
                        noise / gradient.square().sum(),
                        total / gradient.square().sum(),
                    ]
                )
            )
        return Worth(*torch.stack(found).mean(dim=0).tolist(), passes=float(estimator.passes(steps)))


def draw_chains(number: int, generator: torch.Generator) -> torch.Tensor:
    """Texts of seven words, in which a word is the one before it more often than not."""
    texts = torch.randint(WORDS, (number, 7), generator=generator)
    repeats = torch.rand(number, 7, generator=generator) < 0.6
    for place in range(1, 7):
        texts[:, place] = torch.where(repeats[:, place], texts[:, place - 1], texts[:, place])
    return texts


def draw_mirrors(number: int, generator: torch.Generator) -> torch.Tensor:
    """Texts of seven words, the last two of which are mostly those before them, backwards."""
    texts = torch.randint(WORDS, (number, 7), generator=generator)
    copied = torch.rand(number, 2, generator=generator) < 0.8
    texts[:, 5:] = torch.where(copied, texts[:, 3:5].flip(1), texts[:, 5:])
    return texts


def policies(block_length: int = 0) -> list[Any]:
    """The models that are measured on, trained for seconds."""
    return [train_model(draw, hidden_size=8, block_length=block_length) for draw in (draw_chains, draw_mirrors)]


def measure_policies() -> list[dict[str, Any]]:
    """Every estimator for every sampler, the means over models and rewards."""
    tables: dict[int, list[LogitTable]] = {}
    rows = []
    for name, sampler in SAMPLERS.items():
        if sampler.block_length not in tables:
            tables[sampler.block_length] = [LogitTable(model) for model in policies(sampler.block_length)]
        benches = [PolicyBench(table, sampler) for table in tables[sampler.block_length]]
        for label, estimator in ESTIMATORS.items():
            if estimator.needs_blocks and not sampler.block_length:
                continue
            worths = [bench.measure(estimator) for bench in benches]
            found = [asdict(worth) | {"price": worth.price} for worth in worths]
            mean = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            rows.append({"sampler": name, "estimator": label, **mean})
            print(f"{name}: {label}, bias {mean['bias']:.3f}, {mean['angle']:.1f}°", flush=True)
    return rows


def overview(rows: list[dict[str, Any]]) -> list[str]:
    """Bias and angle of every estimator for every sampler, as Markdown."""
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    lines = [f"| estimator | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    found = {(row["estimator"], row["sampler"]): row for row in rows}
    for label in ESTIMATORS:
        cells = (found.get((label, name)) for name in names)
        shown = ("" if row is None else f"{row['bias']:.2f}, {row['angle']:.0f}°" for row in cells)
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return lines


def with_overview(text: str, rows: list[dict[str, Any]]) -> str:
    """A document with these figures between `<!-- estimators -->` and `<!-- end -->`."""
    before, rest = text.split("<!-- estimators -->\n")
    return (
        before
        + "<!-- estimators -->\n"
        + "\n".join(overview(rows))
        + "\n<!-- end -->"
        + rest.split("<!-- end -->", 1)[1]
    )


__all__ = [
    "DOCUMENT",
    "ESTIMATORS",
    "SAMPLERS",
    "Estimator",
    "PolicyBench",
    "Worth",
    "draw_rewards",
    "measure_policies",
    "overview",
    "with_overview",
]
