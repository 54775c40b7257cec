"""Fixed plans other than equal shares of the best: the time grid of Dream, random reveals, endings held back."""

import torch

from .canvas import Canvas
from .proposals import Proposal
from .regions import Block
from .selection import QuotaSelector, best


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
        drawn = torch.rand(canvas.tokens.shape, device=canvas.tokens.device)
        return canvas.masked & block.reached & (drawn < self.probabilities[:, self.step, None])

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        return proposal.eligible


class RisingEndSelector(QuotaSelector):
    """
    Multiplies the scores of proposed ends of text by a weight that rises to 1 with the steps, so that short answers
    are not preferred (EOS early rejection, arXiv 2509.23924).

    Args:
        quotas (`list[list[list[int]]]`):
            How many positions to commit, by row, block and step.
        eos_token_ids (`list[int]`):
            Ids that end the text.
        eos_weight (`float`):
            The weight in the first step.
    """

    def __init__(self, quotas: list[list[list[int]]], eos_token_ids: list[int], eos_weight: float):
        super().__init__(quotas)
        self.eos_token_ids = eos_token_ids
        self.eos_weight = eos_weight

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        device = canvas.tokens.device
        # which step of all each row begins this block with, and the last of all; copied to the device once
        steps = [[len(schedule) for schedule in rows] for rows in self.quotas]
        self.first_step = torch.tensor([sum(row[: block.index]) for row in steps], device=device)
        self.last_step = torch.tensor([max(sum(row) - 1, 1) for row in steps], device=device)
        self.eos = torch.tensor(self.eos_token_ids, device=device)

    def select(self, proposal: Proposal, canvas: Canvas, block: Block) -> torch.Tensor:
        scores = proposal.eligible_scores()
        progress = (self.first_step + self.step).to(scores.dtype) / self.last_step
        weight = self.eos_weight + (1 - self.eos_weight) * progress
        is_end = proposal.spread(torch.isin(proposal.tokens, self.eos).long(), 0).bool()
        rising = torch.where(is_end, scores * weight.unsqueeze(1), scores)
        return best(rising, *self.plan.at(self.step))


__all__ = ["BernoulliSelector", "RisingEndSelector", "dream_shares", "reveal_probabilities"]
