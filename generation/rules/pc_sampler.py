"""Positions near the start and rare tokens first: PC-Sampler (arXiv 2508.13021)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Setup, Table, setting
from ..scores import Score
from .order import Order


class PositionCalibrated(Score):
    """
    The probability of a token times its surprise in ordinary text, so that frequent tokens are not preferred for being
    easy, falling with the distance from the start of the block (PC-Sampler, arXiv 2508.13021, Eq. 5-7).

    Args:
        token_frequencies (`torch.FloatTensor` of shape `(vocab_size,)`):
            How frequent each token is in ordinary text, from 0 to 1.
        decay (`float`):
            How fast scores fall with that distance.
        cap (`float`):
            Largest score before they fall.
    """

    def __init__(self, token_frequencies: torch.Tensor, decay: float, cap: float):
        self.token_frequencies = token_frequencies
        self.decay = decay
        self.cap = cap

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.start = block.start

    def spread(self, vocab_size: int) -> float:
        return self.cap

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        offset = (proposal.index % canvas.tokens.shape[1] - self.start).clamp(min=0)
        surprise = -self.token_frequencies[proposal.tokens].double().log() * proposal.confidence.double()
        surprise = surprise.nan_to_num(nan=0.0, posinf=self.cap).clamp(max=self.cap)
        return surprise * (-self.decay * offset.double()).exp()


class ByPosition(Order):
    value = "position_calibrated"
    traits = frozenset({"scores_no_probability"})
    table = Table(
        "order",
        "position and surprise",
        "PC-Sampler, [2508.13021](https://arxiv.org/abs/2508.13021)",
        "`token_frequencies`, a tensor you count on ordinary text in the tokens of the model, passed to `generate`",
        "planning and mathematics, one token per step: holds back tokens that are easy because they are frequent",
    )

    class Settings(Order.Settings):
        position_decay: float | None = setting(
            float,
            'How fast scores of `remasking="position_calibrated"` fall with the distance from the start of the block.',
            default=0.25,
            least=0,
        )
        frequency_cap: float | None = setting(
            float, "The largest of these scores at the start.", default=10.0, least=0
        )

    @classmethod
    def score(cls, setup: Setup) -> Score:
        frequencies = setup.extra["token_frequencies"]
        return PositionCalibrated(
            frequencies, cls.get(setup.config, "position_decay"), cls.get(setup.config, "frequency_cap")
        )


__all__ = ["ByPosition", "PositionCalibrated"]
