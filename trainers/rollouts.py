"""Answers that a policy drew: how they came about, and what an estimate is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..generation.canvas import Canvas, Delta
from ..generation.denoising import Listener
from ..modeling_llada.likelihood_bound import content_keys
from ..modeling_llada.masked_diffusion import noise_generator


class RolloutRecorder(Listener):
    """
    Listens to the sampling of a batch of answers, and keeps what each step drew, without a wait for the device.

    Attributes:
        canvas ([`~llada.generation.canvas.Canvas`]):
            The canvas.
        drawn (`torch.LongTensor` of shape `(batch, length)`):
            What was drawn at each position of the canvas, also behind an end of text that a later step drew.
        step_of (`torch.LongTensor` of shape `(batch, length)`):
            The step that drew it, -1 where none did.
    """

    canvas: Canvas
    drawn: torch.Tensor
    step_of: torch.Tensor

    def on_step(self, canvas: Canvas, delta: Delta) -> None:
        if delta.step == 0:
            self.canvas = canvas
            self.drawn, self.step_of = canvas.tokens, torch.full_like(canvas.tokens, -1)
        if delta.positions.shape == self.drawn.shape:
            self.drawn = torch.where(delta.positions, delta.tokens, self.drawn)
            self.step_of = torch.where(delta.positions, delta.step, self.step_of)


@dataclass
class Rollouts:
    """
    Answers on the canvas that the sampler had.

    Args:
        prompt_ids, prompt_mask (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts, padded on the left, and 0 where there is padding.
        completion_ids (`torch.LongTensor` of shape `(batch, length)`):
            The answers, and the end-of-text tokens that fill the canvas.
        completion_mask (`torch.LongTensor` of shape `(batch, length)`):
            1 where an answer counts: up to its end of text.
        canvas_mask (`torch.LongTensor` of shape `(batch, length)`):
            0 where the canvas of a row had ended.
        drawn, step_of (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            See [`RolloutRecorder`].
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    canvas_mask: torch.Tensor
    drawn: torch.Tensor | None = None
    step_of: torch.Tensor | None = None

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> "Rollouts":
        """From what a trainer keeps of its rollouts."""
        return cls(**{item.name: inputs[item.name] for item in fields(cls) if item.name in inputs})

    def __getitem__(self, rows: slice) -> "Rollouts":
        return Rollouts(**{name: value[rows] for name, value in vars(self).items() if value is not None})

    @property
    def attention_mask(self) -> torch.Tensor:
        """`torch.LongTensor` of shape `(batch, prompt_length + length)`: 0 for padding."""
        return torch.cat([self.prompt_mask, self.canvas_mask], dim=1)

    def keys(self, *key: int | str) -> list[bytes]:
        """A key for the noise of each row: a function of its tokens and of `key`, and of nothing else."""
        counted = torch.cat([self.prompt_mask, self.completion_mask], dim=1)
        rows = content_keys(torch.cat([self.prompt_ids, self.completion_ids], dim=1), counted)
        return [row + repr(key).encode() for row in rows]


def row_generators(
    prompt_ids: Sequence[Sequence[int]], first_row: int, device: torch.device, *key: int | str
) -> list[torch.Generator]:
    """
    What rows draw from: a function of the prompt, of the number of the row in the batch of all processes, and of
    `key`, so that answers do not depend on which process writes them beside which others.

    Args:
        prompt_ids (`Sequence`):
            Tokens of the prompts.
        first_row (`int`):
            Number of the first row.
        device (`torch.device`):
            Where the model is.
        key (`int` or `str`):
            What else the draws depend on.
    """
    return [
        torch.Generator(device).manual_seed(noise_generator(*key, row, repr(list(prompt))).initial_seed())
        for row, prompt in enumerate(prompt_ids, start=first_row)
    ]


__all__ = ["RolloutRecorder", "Rollouts", "row_generators"]
