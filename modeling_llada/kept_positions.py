"""
What of the last layer and of the head is computed: the positions whose logits are wanted, of which a step of sampling
needs few. The layers before need all positions, for their keys and values.
"""

import torch
from torch import nn


# Intel's BLAS multiplies fewer rows three by three, and reads the matrix anew for every three
_FEWEST_ROWS = 16


def take_positions(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """
    Args:
        states (`torch.Tensor` of shape `(batch or 1, length, width)`):
            One vector per position.
        positions (`torch.LongTensor` of shape `(batch, kept)`):
            The positions to take from each row.

    Returns:
        `torch.Tensor` of shape `(batch, kept, width)`.
    """
    # layers may be on several devices
    positions = positions.to(states.device)
    rows = torch.arange(len(positions), device=states.device).unsqueeze(1)
    return states.expand(len(positions), -1, -1)[rows, positions]


def take_queries(visible: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """
    Args:
        visible (`torch.Tensor` of shape `(batch or 1, heads or 1, length or 1, keys)`):
            An attention mask.
        positions (`torch.LongTensor` of shape `(batch, kept)`):
            The query positions to take from each row.

    Returns:
        `torch.Tensor` of shape `(batch or 1, heads or 1, kept or 1, keys)`.
    """
    if visible.shape[2] == 1:
        return visible
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
    return visible.expand(len(positions), -1, -1, -1).transpose(1, 2)[rows, positions].transpose(1, 2)


def apply_head(head: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    The logits of some positions. On a CPU a few rows are filled up to sixteen, which takes half the time of fifteen.

    Args:
        head (`nn.Module`):
            The head.
        hidden_states (`torch.Tensor` of shape `(positions, hidden_size)`):
            Their last hidden states.

    Returns:
        `torch.Tensor` of shape `(positions, vocab_size)`.
    """
    number = len(hidden_states)
    if hidden_states.device.type != "cpu" or number <= 6 or number >= _FEWEST_ROWS:
        return head(hidden_states)
    return head(nn.functional.pad(hidden_states, (0, 0, 0, _FEWEST_ROWS - number)))[:number]


__all__ = ["apply_head", "take_positions", "take_queries"]
