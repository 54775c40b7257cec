"""What the tests of trainers look at."""

import torch

from llada.modeling_llada.likelihood_bound import content_keys
from llada.modeling_llada.masked_diffusion import ForwardProcess, MaskedBatch, noise_generator


__all__ = ["NoiseRecorder", "mask_by_content", "mask_every_other", "parameters_of", "record_inputs"]

MASK = 300


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def record_inputs(model: torch.nn.Module) -> list[dict]:
    """What the model is given from now on."""
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    return seen


def mask_every_other(input_ids: torch.Tensor, maskable: torch.Tensor, *args, **kwargs) -> MaskedBatch:
    """A forward process without noise, so that runs that split a batch differently can be compared."""
    masked = maskable & (torch.arange(input_ids.shape[1]) % 2 == 0)
    weight = 1 + maskable.sum(1).float()
    return MaskedBatch(input_ids.masked_fill(masked, MASK), masked, weight, torch.full_like(weight, 0.5))


def mask_by_content(process: ForwardProcess):
    """A forward process whose noise depends on the answer alone, so that runs that split a batch differently agree."""

    def mask(input_ids, maskable, *args, **kwargs) -> MaskedBatch:
        parts = []
        for ids, allowed, key in zip(input_ids, maskable, content_keys(input_ids, maskable), strict=True):
            answer = ids[None, allowed]
            part = process(answer, torch.ones_like(answer, dtype=torch.bool), noise_generator(key))
            for name in ("input_ids", "masked", "scored"):
                values = getattr(part, name)
                row = ids if name == "input_ids" else torch.zeros_like(allowed)
                setattr(part, name, row.repeat(len(values), 1).masked_scatter(allowed, values))
            parts.append(vars(part))
        # all rows, then all complements
        return MaskedBatch(**{name: torch.stack([part[name] for part in parts], 1).flatten(0, 1) for name in parts[0]})

    return mask


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
