"""How sure the model is of each token it proposes. Higher is committed earlier."""

import math

import torch

from .canvas import Canvas
from .proposal import Proposal
from .regions import Block


# columns of the vocabulary that are compared at once; divides the vocabularies of all published models
_PART = 64
# numbers that are exponentiated at once
_CELLS = 2**17


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """
    The likeliest token of each position, the first of equals: `argmax`, which on the CPU runs at a tenth of the speed
    of the memory over a long row, and is given short ones.

    Args:
        logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
            Logits of the positions that may change.

    Returns:
        `torch.LongTensor` of shape `(positions,)`.
    """
    if logits.device.type != "cpu" or logits.shape[1] % _PART:
        return logits.argmax(1)
    parts = logits.unflatten(1, (-1, _PART))
    best = parts.amax(2).argmax(1)  # [positions]
    inside = parts[torch.arange(len(parts)), best].argmax(1)
    return best * _PART + inside


def confidence(logits: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """
    The probability of each proposed token, without temperature (low-confidence remasking, arXiv 2502.09992, Algorithm
    5). On the CPU a part of the vocabulary at a time, so that what is exponentiated stays near the processor.

    Args:
        logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
            Logits of the positions that may change.
        tokens (`torch.LongTensor` of shape `(positions,)`):
            The proposed tokens.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the arithmetic and of the result.

    Returns:
        `torch.FloatTensor` of shape `(positions,)`.
    """
    width = logits.shape[1]
    if logits.device.type == "cpu":
        width = max(_CELLS // len(logits), _PART)
    # finite, so that the probability of a token that was ruled out is 0
    chosen = logits.gather(1, tokens.unsqueeze(1)).to(dtype).clamp_(min=torch.finfo(dtype).min)
    # what is clamped changes no sum, and below the normal numbers a processor is ten times slower
    parts = [part.to(dtype).sub(chosen).clamp_(min=-80.0).exp_().sum(1) for part in logits.split(width, dim=1)]
    return torch.stack(parts).sum(0).reciprocal()


def divergence(
    logits: torch.Tensor, before: torch.Tensor, cells: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """
    How far distributions have moved since the step before: the Kullback-Leibler divergence in nats, with 1e-12 added
    to each probability (KLASS, arXiv 2511.05664). On the CPU a few positions at a time.

    Args:
        logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
            Logits of some positions.
        before (`torch.FloatTensor` of shape `(cells, vocab_size)`):
            Logarithms of the distributions of the step before, replaced by the present ones at the positions.
        cells (`torch.LongTensor` of shape `(positions,)`):
            Which of them belong to the positions.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Precision of the arithmetic and of the result.

    Returns:
        `torch.FloatTensor` of shape `(positions,)`.
    """
    height = max(_CELLS // logits.shape[1], 1) if logits.device.type == "cpu" else max(len(logits), 1)
    distances = []
    for part, places in zip(logits.split(height), cells.split(height), strict=True):
        probability = part.to(dtype).softmax(1)
        now = (probability + 1e-12).log_()
        distances.append((now - before[places]).mul_(probability).sum(1))
        before.index_copy_(0, places, now)
    return torch.cat(distances)


def margin(logits: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The distance between the two largest probabilities of each position. Arguments as in [`confidence`]."""
    logits = logits.to(dtype)
    first, second = (logits.topk(2, dim=1).values - logits.logsumexp(1, keepdim=True)).exp().unbind(1)
    return first - second


def entropy(logits: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The entropy of each position in nats, `torch.FloatTensor` of shape `(positions,)`. Arguments as above."""
    return torch.special.entr(logits.to(dtype).softmax(1)).sum(1)


class Score:
    """
    Base of the scores that proposals are ranked by. Of the positions that may be committed, the highest come first.
    """

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block."""

    def spread(self, vocab_size: int) -> float:
        """How far scores can lie apart."""
        return 1.0

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        """
        Args:
            proposal ([`~llada.generation.proposal.Proposal`]):
                Tokens, logits and confidences. Its `scores` are not known yet.
            canvas ([`~llada.generation.canvas.Canvas`]):
                The canvas.

        Returns:
            `torch.FloatTensor` of shape `(positions,)`.
        """
        raise NotImplementedError


class LowConfidence(Score):
    """The probability of the token (low-confidence remasking, arXiv 2502.09992, Algorithm 5)."""

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        return proposal.confidence


class Margin(Score):
    """The distance to the second token (Dream, arXiv 2508.15487)."""

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        return margin(proposal.logits, proposal.confidence.dtype)


class Entropy(Score):
    """The entropy, low before high (Dream, arXiv 2508.15487)."""

    def spread(self, vocab_size: int) -> float:
        return math.log(vocab_size)

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        return -entropy(proposal.logits, proposal.confidence.dtype)


class Random(Score):
    """Chance (random remasking, arXiv 2502.09992, Algorithm 4)."""

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        return canvas.chance.at(proposal.index)


__all__ = [
    "Entropy",
    "LowConfidence",
    "Margin",
    "Random",
    "Score",
    "confidence",
    "divergence",
    "entropy",
    "likeliest",
    "margin",
]
