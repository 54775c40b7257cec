"""
Blocks that grow and shrink during a training, which makes a diffusion model of a causal one (LLaDA2.0, arXiv
2512.15745): with blocks of one token the model is what it was, blocks as long as the text are masked diffusion, and
at the end it is trained in the short ones that it is to write in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSchedule:
    """
    The length of the blocks in every step of a training: warm-up, stable, decay.

    Args:
        sequence_length (`int`):
            Tokens in a row. Blocks as long are none: the row is denoised as a whole, without a clean half beside it.
        block_length (`int`):
            Length of the blocks at the end, 0 for none.
        warmup_lengths (`Sequence[int]`):
            Lengths of the warm-up, each for as many steps. Those that the stable part does not exceed are left out.
        warmup_steps, decay_steps (`float`):
            How long the warm-up and the decay take: steps, or a share of all steps if less than 1. In the decay blocks
            are halved, down to `block_length`. Without it they have `block_length` after the warm-up.

    Raises:
        ValueError: If a setting is out of range, or there is nothing to grow or to shrink.
    """

    sequence_length: int
    block_length: int
    warmup_lengths: Sequence[int]
    warmup_steps: float
    decay_steps: float

    def __post_init__(self):
        for name in ("warmup_steps", "decay_steps"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value > 1 and value != int(value)):
                raise ValueError(
                    f"`block_{name}={value}` is no number of steps; write 0 or more, or a share of all steps, such as "
                    "0.2."
                )
        lengths = list(self.warmup_lengths)
        if not lengths or lengths[0] < 1 or lengths != sorted({*lengths}):
            raise ValueError(
                f"`block_warmup_lengths={lengths}` are no lengths that grow; write such as `[1, 4, 32, 64]`."
            )
        if self.warmup_steps and not self.growing:
            raise ValueError(
                f"`block_warmup_lengths={lengths}` begin with blocks as long as those of "
                f"{self.stable_length or self.sequence_length} tokens that they are to grow to; write `[1]` and "
                "longer ones, or leave `block_warmup_steps` out."
            )
        if self.decay_steps and not 0 < self.block_length < self.sequence_length:
            raise ValueError(
                f"`block_decay_steps={self.decay_steps}` shrinks blocks from the {self.sequence_length} tokens of a "
                f"row to `block_length={self.block_length}`; write a `block_length` between, such as 32."
            )

    @property
    def stable_length(self) -> int:
        """The length between warm-up and decay, 0 for the whole row."""
        return 0 if self.decay_steps or self.block_length >= self.sequence_length else self.block_length

    @property
    def growing(self) -> list[int]:
        """The lengths of the warm-up."""
        longest = self.stable_length or self.sequence_length
        return [length for length in self.warmup_lengths if length < longest]

    @property
    def shrinking(self) -> list[int]:
        """The lengths of the decay."""
        lengths = [self.block_length]
        while 2 * lengths[0] < self.sequence_length:
            lengths.insert(0, 2 * lengths[0])
        return lengths

    def __call__(self, step: int, total: int) -> int:
        """
        Args:
            step, total (`int`): The number of the step, from 0, and of all.

        Returns:
            `int`: The length of the blocks, 0 if there are none.

        Raises:
            ValueError: If warm-up and decay are longer than the training.
        """
        warmup, decay = (
            int(steps) if steps >= 1 else math.ceil(total * steps) for steps in (self.warmup_steps, self.decay_steps)
        )
        if warmup + decay > total:
            raise ValueError(
                f"`block_warmup_steps={self.warmup_steps}` and `block_decay_steps={self.decay_steps}` are {warmup} "
                f"and {decay} steps, and the training has {total}; write fewer, or shares, such as 0.2."
            )
        if step < warmup:
            return self.growing[step * len(self.growing) // warmup]
        if step >= total - decay:
            # the last step has the last length, however few there are
            return self.shrinking[-1 - (total - 1 - step) * len(self.shrinking) // decay]
        return self.stable_length

    def describe(self) -> str:
        """What a card says of it."""
        parts = [f"{', '.join(map(str, self.growing))} in the warm-up"] if self.warmup_steps else []
        parts += [f"then {self.stable_length or 'the whole row'}"]
        parts += [f"{', '.join(map(str, self.shrinking))} at the end"] if self.decay_steps else []
        return ", ".join(parts)


__all__ = ["BlockSchedule"]
