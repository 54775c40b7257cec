"""The reverse process: from masks to text, step by step (arXiv 2502.09992, §2.4)."""

from collections.abc import Iterator

import torch

from .canvas import Canvas, Delta
from .forwards import FullForward
from .proposals import Proposer
from .regions import Region
from .selection import QuotaSelector


def denoise(
    canvas: Canvas,
    region: Region,
    forward: FullForward,
    propose: Proposer,
    selector: QuotaSelector,
) -> Iterator[Delta]:
    """
    Fills the masks of a canvas and yields what every step changed, after it changed.

    1. For each block of the region, for each step that the selector has planned for it:
        a. Find the positions that may change: masked, reached, in a row that commits something in this step.
        b. Run the model, with the head at these positions only.
        c. Propose a token for each and score it.
        d. Select the positions to commit.
        e. Change the canvas, and tell the caller. The caller may finish rows before the next step.

    Args:
        canvas ([`Canvas`]):
            The canvas. Changed in place.
        region ([`Region`]):
            The blocks.
        forward ([`FullForward`]):
            Computes logits.
        propose ([`Proposer`]):
            Turns logits into tokens and scores.
        selector ([`QuotaSelector`]):
            Plans the steps and chooses the positions to commit.
    """
    step = 0
    # 1. blocks and steps
    for block in region:
        quotas = selector.steps(block)
        for number, quota in enumerate(quotas):
            quota = [count if row in canvas.active else 0 for row, count in enumerate(quota)]
            rows = [row for row, count in enumerate(quota) if count]
            if not rows:
                propose.skip(canvas)
                continue
            # 1.a. eligible positions
            eligible = canvas.masked & block.reached
            if len(rows) < len(quota):
                taking_part = torch.tensor([count > 0 for count in quota], device=eligible.device)
                eligible = eligible & taking_part.unsqueeze(1)
            # 1.b. and 1.c. logits, tokens, scores
            tokens, scores, confidence = propose(forward(canvas, eligible, rows), canvas, eligible)
            # 1.d. positions to commit
            committed = selector.select(_spread(scores, eligible, -torch.inf), quota)
            # 1.e. the change
            delta = Delta(
                step=step,
                block=block.index,
                positions=committed,
                tokens=canvas.tokens.masked_scatter(eligible, tokens),
                confidence=_spread(confidence, eligible, 0.0),
                closes_block=not any(map(any, quotas[number + 1 :])),
            )
            canvas.apply(delta)
            yield delta
            step += 1


def _spread(values: torch.Tensor, where: torch.Tensor, elsewhere: float) -> torch.Tensor:
    return torch.full_like(where, elsewhere, dtype=values.dtype).masked_scatter(where, values)


__all__ = ["denoise"]
