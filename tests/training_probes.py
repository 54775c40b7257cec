"""What the tests of trainers look at."""

import torch

from llada.modeling_llada.masked_diffusion import MaskedBatch


__all__ = ["NoiseRecorder", "mask_every_other", "parameters_of"]

MASK = 300


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def mask_every_other(input_ids: torch.Tensor, maskable: torch.Tensor, *args, **kwargs) -> MaskedBatch:
    """A forward process without noise, so that runs that split a batch differently can be compared."""
    masked = maskable & (torch.arange(input_ids.shape[1]) % 2 == 0)
    weight = 1 + maskable.sum(1).float()
    return MaskedBatch(input_ids.masked_fill(masked, MASK), masked, weight, torch.full_like(weight, 0.5))


class NoiseRecorder:
    """
    Records what a trainer masks.

    Args:
        trainer:
            The trainer.

    Attributes:
        drawn (`list[tuple]`): Noisy ids and mask ratios of every micro-batch.
    """

    def __init__(self, trainer):
        self.drawn = []
        process = trainer.forward_process

        def record(*args, **kwargs):
            batch = process(*args, **kwargs)
            self.drawn.append((batch.input_ids.tolist(), batch.ratio.tolist()))
            return batch

        trainer.forward_process = record
