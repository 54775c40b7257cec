"""Ends of text that are held back at first: EOS early rejection (arXiv 2509.23924)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability
from .quota import QuotaSelector, quotas
from .selection import best


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


class EosRejection(Rule):
    """A weight of ends of text that rises with the steps."""

    switches = ("suppress_eos",)
    value = "rising"
    traits = frozenset({"changes_order", "compares_probabilities", "needs_a_plan"})
    table = Table(
        "order",
        "ends of text held back at first",
        "EOSER, [2509.23924](https://arxiv.org/abs/2509.23924)",
        "nothing",
        "one long block, where an early end of text cuts the answer",
    )

    class Settings(Fields):
        eos_weight: float | None = probability("That weight in the first step.", default=0.4)

    @classmethod
    def selector(cls, setup: Setup) -> RisingEndSelector:
        return RisingEndSelector(quotas(setup), setup.config.eos_token_ids, cls.get(setup.config, "eos_weight"))


__all__ = ["EosRejection", "RisingEndSelector"]
