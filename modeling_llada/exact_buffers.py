"""Buffers that stay in float32, whatever the dtype of the model."""

import torch
from torch import nn


class ExactBuffersMixin(nn.Module):
    """
    Keeps the buffers of a module in float32 when `model.to(torch.bfloat16)` rounds everything else. They follow the
    model from device to device.
    """

    def recomputed_buffer(self) -> torch.Tensor | None:
        """What a buffer is that leaves the meta device: `None` if only a checkpoint can fill it."""
        return None

    def _apply(self, fn, recurse=True):
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            source = self.recomputed_buffer() if buffer.is_meta else buffer
            # `to_empty` keeps the dtype and loses the values
            setattr(self, name, (moved if source is None else source).to(moved.device, torch.float32))
        return self


__all__ = ["ExactBuffersMixin"]
