"""The samplers of Dream (arXiv 2508.15487): a time grid, by share or by chance, and a temperature of the order."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import Score
from .quota import QuotaSelector, quotas


# where the time grid of Dream ends
LAST_TIME = 1e-3


def reveal_probabilities(steps: int) -> list[float]:
    """For each step, the probability that a mask is revealed on a linear grid from time 1 to nearly 0; 1 at last."""
    times = torch.linspace(1, LAST_TIME, steps + 1)
    return [*(1 - times[1:] / times[:-1]).tolist()[:-1], 1.0]


def dream_shares(total: int, parts: int) -> list[int]:
    """Splits `total` as Dream's samplers do (arXiv 2508.15487): what is left times that probability, rounded down."""
    shares: list[int] = []
    for probability in reveal_probabilities(parts):
        shares.append(int(torch.tensor(float(total - sum(shares))) * probability))
    return shares


class BernoulliSelector(QuotaSelector):
    """
    Reveals every mask by itself with the probability that the process reverses in a step, whatever the model says
    there (ancestral sampling; `origin` of Dream). A step that reveals nothing is not computed.

    Args:
        quotas (`list[list[list[int]]]`):
            A plan with as many steps per row and block.
    """

    def __init__(self, quotas: list[list[list[int]]]):
        super().__init__(quotas, keep_idle_steps=True)

    def begin(self, canvas: Canvas, block: Block) -> None:
        plans = [reveal_probabilities(max(len(rows[block.index]), 1)) for rows in self.quotas]
        longest = max(len(plan) for plan in plans)
        self.probabilities = torch.tensor([plan + [0.0] * (longest - len(plan)) for plan in plans])
        self.probabilities = self.probabilities.to(canvas.tokens.device)
        self.step = -1

    def eligible(self, canvas: Canvas, block: Block) -> torch.Tensor | None:
        self.step += 1
        if self.step >= self.probabilities.shape[1]:
            return None
        drawn = canvas.chance.everywhere(canvas.tokens)
        return canvas.masked & block.reached & (drawn < self.probabilities[:, self.step, None])

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        return proposal.eligible


class DrawnOrder(Score):
    """
    Scores from which the order is drawn.

    Args:
        score ([`~llada.generation.scores.Score`]):
            The scores.
        temperature (`float`):
            Temperature of the softmax that positions are drawn from.
    """

    def __init__(self, score: Score, temperature: float):
        self.score = score
        self.temperature = temperature

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.score.begin(canvas, block)

    def spread(self, vocab_size: int) -> float:
        return self.score.spread(vocab_size)

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        scores = self.score(proposal, canvas)
        # the best of scores with such noise are a draw from their softmax without replacement
        noise = -(-canvas.chance.at(proposal.index, torch.float64).log()).log()
        return scores.double() / self.temperature + noise


class DreamSchedule(Rule):
    """Shares of Dream's time grid."""

    switches = ("step_schedule",)
    value = "dream"
    traits = frozenset({"needs_a_plan"})
    table = Table(
        "order",
        "time grid",
        "Dream's counts, by row (its code takes the mean over the batch)",
        "nothing",
        "comparing with Dream",
    )

    class Settings(Fields):
        step_schedule: str | None = setting(
            str,
            'How a fixed number of steps shares out the masks. In equal parts by default; `"dream"`: by the time grid '
            'of Dream (arXiv 2508.15487); `"bernoulli"`: by chance, each mask for itself with the probability of that '
            "grid.",
        )

    @classmethod
    def shares(cls, setup: Setup):
        return dream_shares


class Bernoulli(Rule):
    """Masks revealed by chance."""

    switches = ("step_schedule",)
    value = "bernoulli"
    traits = frozenset({"fills_no_block", "needs_a_plan", "reveals_by_chance"})
    table = Table(
        "order",
        "reveals by chance",
        "Dream's `origin`, MDLM",
        "nothing",
        "samples of the process: tokens revealed in one step are drawn independently, a bias that falls as one over "
        "the number of steps",
    )

    class Settings(Fields):
        pass

    @classmethod
    def selector(cls, setup: Setup) -> BernoulliSelector:
        return BernoulliSelector(quotas(setup, keep_idle_steps=True))


class RemaskingTemperature(Rule):
    """A draw of the order."""

    switches = ("remasking_temperature",)
    traits = frozenset({"changes_order", "needs_a_plan", "scores_no_probability"})
    table = Table("order", "drawn order", "Dream, `alg_temp`", "nothing", "diversity in the order")

    class Settings(Fields):
        remasking_temperature: float | None = setting(
            float,
            "Draws the positions to keep from the softmax of their scores at this temperature (`alg_temp` of Dream).",
            least=0,
            divides=True,
        )

    @classmethod
    def wrap_score(cls, setup: Setup, score: Score) -> Score:
        temperature = setup.config.remasking_temperature
        return DrawnOrder(score, temperature) if temperature else score


__all__ = [
    "Bernoulli",
    "BernoulliSelector",
    "DreamSchedule",
    "RemaskingTemperature",
    "dream_shares",
    "reveal_probabilities",
]
