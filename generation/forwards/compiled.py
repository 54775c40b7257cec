"""Compiled forward passes: a few graphs, whatever happens during sampling."""

from collections.abc import Callable

import torch
from transformers.modeling_outputs import MaskedLMOutput

from .canvas_cache import CanvasCache


class CompiledModel:
    """
    A compiled model that is called with few different shapes. Logits are computed for a whole number of blocks, of
    which the caller gets those it asked for. The pass that fills an empty cache is not compiled, so that the buffers
    of the cache belong to nobody's graph.

    Nothing in the compiled part waits for the device, so a step can be captured in a CUDA graph, which
    `mode="reduce-overhead"` does.

    Args:
        model (`Callable`):
            The model.
        compiled (`Callable`):
            The same, compiled.
        block_length (`int`):
            Length of the blocks.
    """

    def __init__(self, model: Callable, compiled: Callable, block_length: int):
        self.model = model
        self.compiled = compiled
        self.block_length = block_length
        self._marked: CanvasCache | None = None

    def __call__(
        self,
        input_ids: torch.Tensor,
        num_logits_to_keep: list[int],
        past_key_values: CanvasCache | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Takes and returns what [`~llada.generation.forwards.FullForward`] says of a model."""
        rows, length = input_ids.shape
        rounded = min(-(-max(num_logits_to_keep) // self.block_length) * self.block_length, length)
        arguments = {"input_ids": input_ids, "num_logits_to_keep": [rounded] * rows, **kwargs}
        call = self.compiled
        if past_key_values is not None:
            arguments["past_key_values"] = past_key_values
            if not past_key_values.keys:
                call = self.model
            elif past_key_values is not self._marked:
                # without a promise that they stay where they are, a graph that writes to them is not captured
                for buffer in past_key_values.keys + past_key_values.values:
                    torch._dynamo.mark_static_address(buffer, guard=False)
                self._marked = past_key_values
        if call is self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        # the next replay of a graph writes over its result
        return MaskedLMOutput(logits=call(**arguments).logits[: sum(num_logits_to_keep)].clone())


__all__ = ["CompiledModel"]
