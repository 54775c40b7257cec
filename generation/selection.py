"""Which predictions of a step are kept. So far one rule: as many as the schedule says, the surest first."""

import torch

from .regions import Block, Region


def share_out(total: int, parts: int) -> list[int]:
    """Splits `total` into `parts` integers that differ by at most one, the larger ones first."""
    quotient, remainder = divmod(total, parts)
    return [quotient + 1] * remainder + [quotient] * (parts - remainder)


class QuotaSelector:
    """
    Commits a fixed number of positions per step (arXiv 2502.09992, §2.4): the masks of a block, shared out evenly over
    its steps, per row. So every row has its own schedule, and what is committed does not depend on the other rows.

    Args:
        region ([`Region`]):
            The blocks, with the masks in each.
        steps (`int`, *optional*):
            Number of steps over all blocks, shared out over the blocks of a row that hold masks.
        max_denoising_steps (`int`, *optional*):
            Number of steps per block. One token per step if neither is given.
        keep_idle_steps (`bool`, *optional*, defaults to `False`):
            Whether to keep the steps that commit nothing, because a block has more steps than masks.

    Raises:
        ValueError: If there are fewer steps than blocks.
    """

    def __init__(
        self,
        region: Region,
        steps: int | None = None,
        max_denoising_steps: int | None = None,
        keep_idle_steps: bool = False,
    ):
        # [row][block][step]
        self.quotas: list[list[list[int]]] = []
        for counts in region.num_masked:
            num_blocks = sum(count > 0 for count in counts)
            if steps is not None and steps < num_blocks:
                raise ValueError(
                    f"`steps={steps}` is fewer than the {num_blocks} blocks to fill; give at least one step per "
                    "block, or a larger `block_length`."
                )
            left = iter(share_out(steps, num_blocks) if steps is not None and num_blocks else ())
            schedule = []
            for count in counts:
                num_steps = (next(left) if steps is not None else max_denoising_steps or count) if count else 0
                quotas = share_out(count, num_steps) if num_steps else []
                schedule.append(quotas if keep_idle_steps else [quota for quota in quotas if quota])
            self.quotas.append(schedule)

    def steps(self, block: Block) -> list[list[int]]:
        """For every step of a block, how many positions each row commits."""
        schedules = [rows[block.index] for rows in self.quotas]
        longest = max(len(schedule) for schedule in schedules)
        padded = [schedule + [0] * (longest - len(schedule)) for schedule in schedules]
        return [list(step) for step in zip(*padded, strict=True)]

    @staticmethod
    def select(scores: torch.Tensor, quota: list[int]) -> torch.Tensor:
        """
        The positions to commit.

        Args:
            scores (`torch.FloatTensor` of shape `(batch, length)`):
                How good each position is, minus infinity where it may not be chosen.
            quota (`list[int]`):
                How many to choose per row.

        Returns:
            `torch.BoolTensor` of shape `(batch, length)`.
        """
        most = min(max(quota), scores.shape[1])
        best, order = scores.topk(most, dim=1)
        wanted = torch.arange(most, device=scores.device) < torch.tensor(quota, device=scores.device).unsqueeze(1)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, wanted & (best > -torch.inf))


__all__ = ["QuotaSelector", "share_out"]
