"""A token for every position that may change, and how good it is: constraints, argmax or Gumbel noise, score."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .canvas import Canvas
from .configuration_diffusion import DiffusionGenerationConfig
from .credit import Credit
from .positional import PositionalProcessors
from .regions import Block
from .scores import calibrated, confidence, entropy, likeliest, margin


@dataclass
class Proposal:
    """
    What the model would put at the positions it was asked about.

    Args:
        index (`torch.LongTensor` of shape `(positions,)`):
            Where they are, counted through the canvas row by row.
        shape (`torch.Size`):
            Shape of the canvas, `(batch, length)`.
        logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
            Their logits, with guidance and constraints.
        tokens (`torch.LongTensor` of shape `(positions,)`):
            The proposed tokens.
        confidence (`torch.FloatTensor` of shape `(positions,)`):
            The probabilities of these tokens.
        scores (`torch.FloatTensor` of shape `(positions,)`):
            How good each is. Of the positions that are eligible, the best is committed first.
        eligible (`torch.BoolTensor` of shape `(batch, length)`):
            The positions that may be committed: those of `index` that are masked, and whose logits and score are
            numbers.
    """

    index: torch.Tensor
    shape: torch.Size
    logits: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    scores: torch.Tensor
    eligible: torch.Tensor

    def eligible_scores(self) -> torch.Tensor:
        """The scores on the canvas, `(batch, length)`, minus infinity where nothing may be committed."""
        return self.spread(self.scores, -torch.inf).masked_fill(~self.eligible, -torch.inf)

    def spread(self, values: torch.Tensor, elsewhere: float | bool | torch.Tensor) -> torch.Tensor:
        """Values of shape `(positions,)` on the canvas, `elsewhere` where nothing was asked."""
        if isinstance(elsewhere, torch.Tensor):
            canvas = elsewhere.flatten()
        else:
            canvas = values.new_full((self.shape.numel(),), elsewhere)
        return canvas.index_copy(0, self.index, values).view(self.shape)


class Proposer:
    """
    Proposes tokens and scores them.

    The mask token is never proposed, nor is an end of text where text that was given follows. `suppress_eos="logits"`
    never proposes an end of text, `"confidence"` ranks it behind every other token.

    Args:
        config ([`DiffusionGenerationConfig`]):
            The settings.
        processors ([`PositionalProcessors`]):
            Logits processors.
        vocab_size (`int`):
            Number of logits per position.
        text_follows (`bool`, *optional*, defaults to `False`):
            Whether text that was given may follow a position.
        token_frequencies (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*):
            How frequent each token is in ordinary text, for `remasking="position_calibrated"`.
    """

    def __init__(
        self,
        config: DiffusionGenerationConfig,
        processors: PositionalProcessors,
        vocab_size: int,
        text_follows: bool = False,
        token_frequencies: torch.Tensor | None = None,
    ):
        self.text_follows = text_follows
        self.config = config
        self.processors = processors
        self.vocab_size = vocab_size
        self.score_dtype = getattr(torch, config.confidence_dtype or "float32")
        endings = {*config.eos_token_ids, config.pad_token_id} - {None}
        self.endings = sorted(endings)
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        self.token_frequencies = token_frequencies
        self.position_decay = config.rule_setting("position_decay")
        self.frequency_cap = config.rule_setting("frequency_cap")
        self.credit = None
        if config.credit_weight is not None:
            self.credit = Credit(
                config.credit_weight, config.rule_setting("credit_exponent"), config.rule_setting("credit_decay")
            )

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""
        self.block_start = block.start
        if self.credit is not None:
            self.credit.begin(canvas, block)

    def __call__(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor, eligible: torch.Tensor) -> Proposal:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
                Logits of some positions.
            canvas ([`Canvas`]):
                The canvas they were computed from.
            index (`torch.LongTensor` of shape `(positions,)`):
                Where they are, counted through the canvas row by row.
            eligible (`torch.BoolTensor` of shape `(batch, length)`):
                Those that may be committed.

        Returns:
            [`Proposal`].
        """
        logits = self.constrain(logits, canvas, index)
        if self.credit is not None:
            logits = self.credit(logits, canvas, index)
        with self.barred(logits, canvas, index):
            tokens = self.choose(logits, canvas, index)
            chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
        scores, probability = self.score(logits, tokens, canvas, index)
        # a choice among nothing but minus infinity is none, and what is not a number compares with nothing
        is_sound = chosen.isfinite() & probability.isfinite() & scores.isfinite()
        probability, scores = probability.masked_fill(~is_sound, 0.0), scores.masked_fill(~is_sound, -torch.inf)
        proposal = Proposal(index, canvas.tokens.shape, logits, tokens, probability, scores, eligible)
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
        return torch.rand((len(index), self.vocab_size), dtype=torch.float64, device=index.device)

    def score(
        self, logits: torch.Tensor, tokens: torch.Tensor, canvas: Canvas, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores of tokens and their probabilities."""
        probability = confidence(logits, tokens, self.score_dtype)
        scores = probability
        if self.config.remasking == "random":
            scores = torch.rand(tokens.shape, device=tokens.device)
        elif self.config.remasking == "margin":
            scores = margin(logits, self.score_dtype)
        elif self.config.remasking == "entropy":
            scores = -entropy(logits, self.score_dtype)
        elif self.config.remasking == "position_calibrated":
            offset = (index % canvas.tokens.shape[1] - self.block_start).clamp(min=0)
            assert self.token_frequencies is not None, "make_proposer asks for them"
            frequency = self.token_frequencies[tokens]
            scores = calibrated(probability, frequency, offset, self.position_decay, self.frequency_cap)
        if self.config.remasking_temperature:
            # the best of scores with such noise are a draw from their softmax without replacement
            noise = -(-torch.rand(tokens.shape, dtype=torch.float64, device=tokens.device).log()).log()
            scores = scores.double() / self.config.remasking_temperature + noise
        if self.config.suppress_eos == "confidence":
            is_end = torch.isin(tokens, self._index(self.config.eos_token_ids, tokens))
            # behind every other: no entropy exceeds the logarithm of the vocabulary size, no other score its cap
            highest = {"entropy": math.log(self.vocab_size), "position_calibrated": self.frequency_cap}
            behind = highest.get(str(self.config.remasking), 0.0) + 1.0
            scores = torch.where(is_end, scores - behind, scores)
        return scores, probability

    def skip(self, canvas: Canvas) -> None:
        """Called instead for a step that commits nothing and is not computed."""

    def _index(self, ids: list[int], like: torch.Tensor) -> torch.Tensor:
        """Ids as a tensor that is copied to the device once: every copy waits for it."""
        key = tuple(ids)
        if key not in self._indices:
            self._indices[key] = torch.tensor(ids, dtype=torch.long, device=like.device)
        return self._indices[key]


class ReferenceProposer(Proposer):
    """
    Proposes and scores as the authors' `generate.py` does, draw for draw.

    Noise has the shape of the whole canvas, the mask token may be proposed, and the end of text is treated as
    published (ML-GSAI/LLaDA issue 137): `suppress_eos="logits"` rules out the first of the `eos_token_id` only, and
    `"confidence"` removes them from the probabilities, so that they count nothing; when sampling, the first is not
    removed.
    """

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

    def score(
        self, logits: torch.Tensor, tokens: torch.Tensor, canvas: Canvas, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.config.suppress_eos == "confidence":
            removed = self.config.eos_token_ids[1 if self.config.do_sample else 0 :]
            logits = logits.index_fill(1, self._index(removed, logits), -torch.inf)
        probability = confidence(logits, tokens, self.score_dtype)
        if self.config.remasking == "random":
            return torch.rand(canvas.tokens.shape, device=tokens.device).flatten()[index], probability
        return probability, probability

    def skip(self, canvas: Canvas) -> None:
        if self.config.do_sample:
            self.uniform_noise(canvas, canvas.tokens.new_empty(0))
        if self.config.remasking == "random":
            torch.rand(canvas.tokens.shape, device=canvas.tokens.device)


__all__ = ["Proposal", "Proposer", "ReferenceProposer"]
