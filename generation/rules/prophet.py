"""The rest of a block once its logits lie far apart: Prophet (arXiv 2508.19982)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from .early_commit import EarlyCommitSelector, mean_of_eligible
from .selection import Selector


class GapSelector(EarlyCommitSelector):
    """
    Commits the rest once the mean distance between the two largest logits exceeds a bound, which is lower the more of
    the block is filled (Prophet, arXiv 2508.19982).

    Args:
        selector ([`~llada.generation.rules.selection.Selector`]):
            As in [`EarlyCommitSelector`].
        gaps (`list[float]`):
            The bounds, for equal shares of the block, the first filled first.
    """

    def __init__(self, selector: Selector, gaps: list[float]):
        super().__init__(selector)
        self.gaps = gaps

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        # of every row: the masks at first, and the bounds; copied to the device once
        self.at_first = torch.tensor(block.num_masked, device=canvas.tokens.device).clamp(min=1)
        self.bounds = torch.tensor(self.gaps, device=canvas.tokens.device)

    def is_settled(self, proposal: Proposal) -> torch.Tensor:
        first, second = proposal.logits.float().topk(2, dim=1).values.unbind(1)
        left = proposal.eligible.sum(1)
        stage = ((self.at_first - left) * len(self.gaps) // self.at_first).clamp(0, len(self.gaps) - 1)
        return mean_of_eligible(first - second, proposal) > self.bounds[stage]


class Prophet(Rule):
    """Bounds on the distance between the two largest logits."""

    switches = ("commit_gaps",)
    decides = ("when the rest of a block is kept",)
    traits = frozenset({"ends_block_early", "remembers_positions", "settles_for_good"})
    table = Table(
        "any",
        "early commit",
        "Prophet, [2508.19982](https://arxiv.org/abs/2508.19982)",
        "nothing",
        "short answers that are clear early. The paper looks at the answer after a marker that depends on the task; "
        "here it is the mean over the masks of the block",
    )

    class Settings(Fields):
        commit_gaps: list[float] | None = setting(
            list[float],
            "Keeps all predictions of a block once the mean distance between their two largest logits exceeds the "
            "bound for the share of the block that is filled, e.g. `[7.5, 5.0, 2.5]` for thirds (Prophet, arXiv "
            "2508.19982).",
        )

    @classmethod
    def wrap_selector(cls, setup: Setup, selector: Selector) -> GapSelector:
        return GapSelector(selector, setup.config.commit_gaps)


__all__ = ["GapSelector", "Prophet"]
