"""A token for every position that may change, and how good it is: constraints, argmax or Gumbel noise, score."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .canvas import Canvas
from .positional import PositionalProcessors
from .proposal import Proposal
from .regions import Block
from .scores import Score, confidence, likeliest


class Proposer:
    """
    Proposes tokens and scores them.

    The mask token is never proposed, nor is an end of text where text that was given follows.

    Args:
        config ([`~llada.generation.configuration_diffusion.DiffusionGenerationConfig`]):
            The settings.
        processors ([`~llada.generation.positional.PositionalProcessors`]):
            Logits processors.
        vocab_size (`int`):
            Number of logits per position.
        score ([`~llada.generation.scores.Score`]):
            What proposals are ranked by.
        credit ([`~llada.generation.rules.credit.Credit`], *optional*):
            What changes logits before tokens are chosen.
        text_follows (`bool`, *optional*, defaults to `False`):
            Whether text that was given may follow a position.
    """

    def __init__(
        self,
        config: Any,
        processors: PositionalProcessors,
        vocab_size: int,
        score: Score,
        credit: Any = None,
        text_follows: bool = False,
    ):
        self.text_follows = text_follows
        self.config = config
        self.processors = processors
        self.vocab_size = vocab_size
        self.score = score
        self.credit = credit
        self.score_dtype = getattr(torch, config.confidence_dtype or "float32")
        endings = {*config.eos_token_ids, config.pad_token_id} - {None}
        self.endings = sorted(endings)
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""
        self.score.begin(canvas, block)
        if self.credit is not None:
            self.credit.begin(canvas, block)

    def __call__(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor, eligible: torch.Tensor) -> Proposal:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
                Logits of some positions.
            canvas ([`~llada.generation.canvas.Canvas`]):
                The canvas they were computed from.
            index (`torch.LongTensor` of shape `(positions,)`):
                Where they are, counted through the canvas row by row.
            eligible (`torch.BoolTensor` of shape `(batch, length)`):
                Those that may be committed.

        Returns:
            [`~llada.generation.proposal.Proposal`].
        """
        logits = self.constrain(logits, canvas, index)
        if self.credit is not None:
            logits = self.credit(logits, canvas, index)
        with self.barred(logits, canvas, index):
            tokens = self.choose(logits, canvas, index)
            chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
        probability = self.confidence(logits, tokens)
        proposal = Proposal(index, canvas.tokens.shape, logits, tokens, probability, probability, eligible)
        scores = self.score(proposal, canvas)
        # a choice among nothing but minus infinity is none, and what is not a number compares with nothing
        is_sound = chosen.isfinite() & probability.isfinite() & scores.isfinite()
        proposal.confidence, proposal.scores = (
            probability.masked_fill(~is_sound, 0.0),
            scores.masked_fill(~is_sound, -torch.inf),
        )
        proposal.eligible = eligible & proposal.spread(is_sound, False)
        return proposal

    def constrain(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """Rules out tokens, for good: the others share their probability."""
        if self.config.suppress_eos == "logits":
            logits = logits.index_fill(1, self._index(self.config.eos_token_ids, logits), -torch.inf)
        if self.text_follows:
            logits = logits.clone()
            before_text = canvas.has_suffix.flatten()[index].unsqueeze(1)
            endings = self._index(self.endings, logits)
            logits[:, endings] = logits[:, endings].masked_fill(before_text, -torch.inf)
        return self.processors.constrain(logits, canvas, index)

    @contextmanager
    def barred(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> Iterator[None]:
        """
        Rules out the mask token as a proposal, and the control tokens of an editing rule where there is nothing to
        edit. They keep their share of the probability, as in published samplers. The logits are changed in place, and
        back afterwards: a copy of all would take longer than the choice.
        """
        mask, *controls = [
            logits[:, token] for token in (canvas.mask_token_id, *(self.config.control_token_ids or ()))
        ]
        kept = [column.clone() for column in (mask, *controls)]
        mask.fill_(-torch.inf)
        if controls:
            undecided = canvas.masked.flatten()[index]
            for column in controls:
                column.masked_fill_(undecided, -torch.inf)
        yield
        for column, values in zip((mask, *controls), kept, strict=True):
            column.copy_(values)

    def choose(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens, or tokens drawn by the Gumbel-max trick."""
        if not self.config.do_sample:
            return likeliest(logits)
        # in lower precision the noise has too short a tail, which cools the draw (arXiv 2409.02908)
        warped = self.processors.warp(logits.double(), canvas)
        return (warped - (-self.uniform_noise(canvas, index).log()).log()).argmax(-1)

    def uniform_noise(self, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """Float64 noise in [0, 1), shape `(positions, vocab_size)`."""
        return canvas.chance.at(index, torch.float64, self.vocab_size)

    def confidence(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The probabilities of the tokens, shape `(positions,)`."""
        return confidence(logits, tokens, self.score_dtype)

    def skip(self, canvas: Canvas) -> None:
        """Called instead for a step that commits nothing and is not computed."""

    def _index(self, ids: list[int], like: torch.Tensor) -> torch.Tensor:
        """Ids as a tensor that is copied to the device once: every copy waits for it."""
        key = tuple(ids)
        if key not in self._indices:
            self._indices[key] = torch.tensor(ids, dtype=torch.long, device=like.device)
        return self._indices[key]


__all__ = ["Proposer"]
