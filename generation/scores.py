"""How sure the model is of each token it proposes. Higher is committed earlier."""

import torch


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


def calibrated(
    probability: torch.Tensor, frequency: torch.Tensor, offset: torch.Tensor, decay: float, cap: float
) -> torch.Tensor:
    """
    The probability of a token times its surprise in ordinary text, so that frequent tokens are not preferred for being
    easy, falling with the distance from the start of the block (PC-Sampler, arXiv 2508.13021, Eq. 5-7).

    Args:
        probability (`torch.FloatTensor` of shape `(positions,)`):
            The probabilities of the proposed tokens.
        frequency (`torch.FloatTensor` of shape `(positions,)`):
            How frequent these tokens are in ordinary text, from 0 to 1.
        offset (`torch.LongTensor` of shape `(positions,)`):
            Distance of the positions from the start of the block.
        decay (`float`):
            How fast scores fall with that distance.
        cap (`float`):
            Largest score before they fall.

    Returns:
        `torch.DoubleTensor` of shape `(positions,)`.
    """
    surprise = -frequency.double().log() * probability.double()
    return surprise.nan_to_num(nan=0.0, posinf=cap).clamp(max=cap) * (-decay * offset.double()).exp()


__all__ = ["calibrated", "confidence", "divergence", "entropy", "likeliest", "margin"]
