"""How sure the model is of each token it proposes. Higher is committed earlier."""

import torch


def confidence(logits: torch.Tensor, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """
    The probability of each proposed token, without temperature (low-confidence remasking, arXiv 2502.09992, Algorithm
    5), from a log-sum-exp: no table of probabilities is built.

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
    logits = logits.to(dtype)
    return (logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)).exp()


def margin(logits: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The distance between the two largest probabilities of each position. Arguments as in [`confidence`]."""
    logits = logits.to(dtype)
    first, second = (logits.topk(2, dim=1).values - logits.logsumexp(1, keepdim=True)).exp().unbind(1)
    return first - second


def entropy(logits: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The entropy of each position in nats, `torch.FloatTensor` of shape `(positions,)`. Arguments as above."""
    return torch.special.entr(logits.to(dtype).softmax(1)).sum(1)


__all__ = ["confidence", "entropy", "margin"]
