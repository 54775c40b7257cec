"""Sampling that does not get on, and text that is not finished, are errors."""

import torch

from .canvas import Canvas
from .proposal import Proposal
from .regions import Block


class Watchdog:
    """
    Sees to it that every step decides something in each row in which it was to decide something: a row that is
    given not-a-number would be asked again for ever, or be left with masks. The host hears of it with the counts of
    the next step, and does not wait for it.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
    """

    def __init__(self, canvas: Canvas):
        self.stalled = torch.zeros_like(canvas.finished)
        self.step = self.block = -1
        self.proposal: Proposal | None = None

    def mark(self, numbers: torch.Tensor) -> torch.Tensor:
        """`numbers` of shape `(batch,)`, -1 in rows in which the last step decided nothing."""
        return numbers.masked_fill(self.stalled, -1)

    def check(self, counts: list[int]) -> None:
        """
        Looks at what [`~Watchdog.mark`] gave.

        Raises:
            ValueError: If the last step decided nothing in a row, saying what it was given.
        """
        rows = [row for row, count in enumerate(counts) if count < 0]
        if rows:
            raise ValueError(
                f"Step {self.step}, in block {self.block}, decided nothing in rows {rows}, although masks were left: "
                f"{self._seen(rows)}"
            )

    def note(
        self, step: int, block: Block, proposal: Proposal, eligible: torch.Tensor, committed: torch.Tensor
    ) -> None:
        """
        After every step: what was proposed, what was to be decided and what was, the last two of shape `(batch,
        length)`.
        """
        self.stalled = eligible.any(1) & ~committed.any(1)
        self.step, self.block, self.proposal = step, block.index, proposal

    def finish(self, canvas: Canvas) -> None:
        """
        After the last step. Waits for the device.

        Raises:
            ValueError: If the last step decided nothing in a row, or a mask is left.
        """
        left = self.mark(canvas.masked.sum(1)).tolist()
        self.check(left)
        rows = [row for row, count in enumerate(left) if count]
        if rows:
            raise ValueError(
                f"{sum(left)} masks are left in rows {rows} after step {self.step}, the last of the plan: "
                f"{self._seen(rows)}"
            )

    def _seen(self, rows: list[int]) -> str:
        """What the last step was given in some rows, and what to do."""
        assert self.proposal is not None, "a mask takes a step"
        row_of = self.proposal.index // self.proposal.shape[1]
        logits = self.proposal.logits[torch.isin(row_of, torch.tensor(rows, device=row_of.device))]
        kinds = {
            "NaN": logits.isnan().any(1),
            "infinity": (logits == torch.inf).any(1),
            "minus infinity for every token": (logits == -torch.inf).all(1),
        }
        found = {kind: number for kind, positions in kinds.items() if (number := int(positions.sum()))}
        if not found:
            return (
                "their logits are finite, but the mask token was drawn, or their scores are not numbers. Leave out "
                "`rng_compat`, and look at the settings of the rules."
            )
        seen = " and ".join(f"{kind} at {number}" for kind, number in found.items())
        seen = f"of {len(logits)} positions, the logits are {seen}. "
        if list(found) == ["minus infinity for every token"]:
            return (
                seen + "The constraints leave no token: loosen the logits processors, `suppress_tokens` or the like."
            )
        return seen + (
            "Look at the weights, at the dtype (float16 overflows where bfloat16 does not), at `cfg_scale` and "
            "`credit_weight`, and at the logits processors."
        )


__all__ = ["Watchdog"]
