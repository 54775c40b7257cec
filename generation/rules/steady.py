"""The rest of a block once nothing changes: the stopping rule of DiffusionGemma, for masks."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import entropy, likeliest
from .early_commit import EarlyCommitSelector, mean_of_eligible
from .selection import Selector


class SteadySelector(EarlyCommitSelector):
    """
    Commits the rest once the likeliest tokens have not changed for some steps and their mean entropy is low (stopping
    rule of DiffusionGemma, for masks).

    Args:
        selector ([`~llada.generation.rules.selection.Selector`]):
            As in [`EarlyCommitSelector`].
        steps (`int`):
            In how many steps nothing may have changed since the step before.
        entropy_bound (`float`):
            The entropy not to reach, in nats.
    """

    def __init__(self, selector: Selector, steps: int, entropy_bound: float):
        super().__init__(selector)
        self.steps = steps
        self.entropy_bound = entropy_bound

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.likeliest = torch.full_like(canvas.tokens, -1)
        self.steady = torch.zeros_like(canvas.ends)

    def is_settled(self, proposal: Proposal) -> torch.Tensor:
        now = proposal.spread(likeliest(proposal.logits), self.likeliest)
        unchanged = ((now == self.likeliest) | ~proposal.eligible).all(1)
        self.likeliest = now
        self.steady = torch.where(unchanged, self.steady + 1, 0)
        uncertainty = mean_of_eligible(entropy(proposal.logits, proposal.scores.dtype), proposal)
        return (self.steady >= self.steps) & (uncertainty < self.entropy_bound)


class Steady(Rule):
    """Likeliest tokens that stay, with a low entropy."""

    switches = ("stable_steps",)
    decides = ("when the rest of a block is kept",)
    traits = frozenset({"ends_block_early", "remembers_positions", "settles_for_good"})
    table = Table(
        "any",
        "early stop",
        "DiffusionGemma, in transformers",
        "the distribution at every masked position",
        "the end of a block that is clear: all is kept once no likeliest token changes and the mean entropy is low, "
        "where a threshold waits for every single one",
    )

    class Settings(Fields):
        stable_steps: int | None = setting(
            int,
            "Keeps all predictions of a block once the likeliest tokens at its masks have not changed for so many "
            "steps and their mean entropy is below `stable_entropy` (DiffusionGemma, 1).",
            least=1,
        )
        stable_entropy: float | None = setting(float, "That bound, in nats.", default=0.005, least=0)

    @classmethod
    def wrap_selector(cls, setup: Setup, selector: Selector) -> SteadySelector:
        return SteadySelector(selector, setup.config.stable_steps, cls.get(setup.config, "stable_entropy"))


__all__ = ["Steady", "SteadySelector"]
