"""The authors' sampler, draw for draw: `generate.py` of LLaDA (arXiv 2502.09992)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..canvas import Canvas
from ..positional import PositionalProcessors
from ..proposal import Proposal
from ..proposer import Proposer
from ..rule import Fields, Rule, Setup, setting
from ..scores import LowConfidence, Random


class ReferenceOrder(Random):
    """Chance for every position of the canvas, also where it is not needed."""

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        return torch.rand(canvas.tokens.shape, device=canvas.tokens.device).flatten()[proposal.index]


class ReferenceProposer(Proposer):
    """
    Proposes and scores as the authors' `generate.py` does, draw for draw.

    Noise has the shape of the whole canvas, the mask token may be proposed, and the end of text is treated as
    published (ML-GSAI/LLaDA issue 137): `suppress_eos="logits"` rules out the first of the `eos_token_id` only, and
    `"confidence"` removes them from the probabilities, so that they count nothing; when sampling, the first is not
    removed.
    """

    def __init__(self, config: Any, processors: PositionalProcessors, vocab_size: int, *args, **kwargs):
        super().__init__(config, processors, vocab_size, *args, **kwargs)
        self.score = ReferenceOrder() if config.remasking == "random" else LowConfidence()

    def constrain(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        if self.config.suppress_eos == "logits":
            logits = logits.index_fill(1, self._index(self.config.eos_token_ids[:1], logits), -torch.inf)
        return self.processors.constrain(logits, canvas, index)

    @contextmanager
    def barred(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> Iterator[None]:
        yield

    def uniform_noise(self, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        shape = (*canvas.tokens.shape, self.vocab_size)
        return torch.rand(shape, dtype=torch.float64, device=index.device).flatten(0, 1)[index]

    def confidence(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if self.config.suppress_eos == "confidence":
            removed = self.config.eos_token_ids[1 if self.config.do_sample else 0 :]
            logits = logits.index_fill(1, self._index(removed, logits), -torch.inf)
        return super().confidence(logits, tokens)

    def skip(self, canvas: Canvas) -> None:
        if self.config.do_sample:
            self.uniform_noise(canvas, canvas.tokens.new_empty(0))
        if self.config.remasking == "random":
            torch.rand(canvas.tokens.shape, device=canvas.tokens.device)


class Reference(Rule):
    """Draws in the order of the authors' code."""

    switches = ("rng_compat",)
    value = "llada"
    in_reference = True

    class Settings(Fields):
        rng_compat: str | None = setting(
            str,
            '`"llada"` reproduces the authors\' sampler draw for draw: noise is drawn for the whole canvas, also '
            "where it is not needed, a draw of the mask token itself leaves a position masked, which is an error at "
            "the end, and `suppress_eos` acts as in the published code (see "
            "[`~llada.generation.rules.reference.ReferenceProposer`]). Needs `eos_early_stop=False`.",
        )

    @classmethod
    def proposer(cls, setup: Setup) -> type[ReferenceProposer]:
        return ReferenceProposer


__all__ = ["Reference", "ReferenceOrder", "ReferenceProposer"]
