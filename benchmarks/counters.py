"""What a run did: forward passes, positions, rows of logits, waits for the device, memory."""

import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llada.generation.forwards.canvas_cache import CanvasCache


# operations whose result, or whose shape, the host has to wait for
_WAITING_OPS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"}
# methods that hand values to the host; on the CPU no operation shows them
_WAITING_METHODS = {"numpy", "tolist"}
# host data that becomes a tensor: a copy to the device, for which the host waits too
_UPLOADS = {"lift_fresh"}


class _Methods(TorchFunctionMode):
    def __init__(self, owner: "DispatchCounter"):
        self.owner = owner

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in _WAITING_METHODS:
            self.owner.waits[name] += 1
        return func(*args, **(kwargs or {}))


class DispatchCounter(TorchDispatchMode):
    """
    Counts operations while it is entered. Slow: not for timing.

    Attributes:
        waits (`Counter[str]`):
            Times the host would wait for an accelerator, by the operation that waits.
        operations (`Counter[str]`):
            All operations that are not views.
        largest (`int`):
            Elements of the largest tensor that was made.
        peak_bytes (`int`):
            Most bytes that tensors made in here held at one time.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.largest = 0
        self.peak_bytes = 0
        self._bytes = 0
        self._alive: dict[int, int] = {}
        self._methods = _Methods(self)

    def __enter__(self):
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        return self._methods.__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if not func.is_view:
            self.operations[name] += 1
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _WAITING_OPS or name in _UPLOADS or by_mask:
            self.waits[f"{name} by a mask" if by_mask else name] += 1
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # not what a view or an operation in place gives back
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._track(tensor)
        return result

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or not storage.nbytes():
            return
        self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        self._alive[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._bytes -= self._alive.pop(key, 0)


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time, which other processes do not disturb, or the time of an accelerator that has come to rest."""
    if device.type == "cpu":
        return time.process_time

    def wait() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return wait


class ForwardMeter:
    """
    Watches the forward passes of a model.

    Args:
        model (`nn.Module`):
            A model with `model`, the backbone, and `lm_head`.
        clock (`Callable[[], float]`):
            Reads the time. On an accelerator it has to wait for it.
        record (`bool`, *optional*, defaults to `False`):
            Whether to keep the arguments of every pass, for [`replay`].

    Attributes:
        forwards, positions, logit_rows (`int`):
            Passes, positions the backbone computed, and rows of logits.
        seconds, backbone_seconds (`float`):
            Time inside the passes, and inside the backbone.
        calls (`list[dict]`):
            What was recorded.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.perf_counter, record: bool = False):
        self.model, self.clock, self.record = model, clock, record
        self.forwards = self.positions = self.logit_rows = 0
        self.seconds = self.backbone_seconds = 0.0
        self.calls: list[dict[str, Any]] = []

    def __enter__(self) -> "ForwardMeter":
        self._hooks = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
            self.model.model.register_forward_pre_hook(self._begin_backbone, with_kwargs=True),
            self.model.model.register_forward_hook(self._end_backbone),
            self.model.lm_head.register_forward_hook(self._head),
        ]
        return self

    def __exit__(self, *exception) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module, args, kwargs) -> None:
        self.forwards += 1
        if self.record:
            self.calls.append(dict(kwargs))
            if (cache := kwargs.get("past_key_values")) is not None:
                self.calls[-1]["past_key_values"] = (cache.position_ids, cache.visible)
        self._start = self.clock()

    def _end(self, *_) -> None:
        self.seconds += self.clock() - self._start

    def _begin_backbone(self, module, args, kwargs) -> None:
        self.positions += kwargs["input_ids"].numel()
        self._backbone_start = self.clock()

    def _end_backbone(self, *_) -> None:
        self.backbone_seconds += self.clock() - self._backbone_start

    def _head(self, module, args, output) -> None:
        self.logit_rows += output.shape[:-1].numel()


@torch.no_grad()
def replay(model: nn.Module, calls: list[dict[str, Any]]) -> None:
    """Calls a model as it was called before, on the same shapes, and does nothing else."""
    caches: dict[int, CanvasCache] = {}
    for call in calls:
        if "past_key_values" in call:
            position_ids, visible = call["past_key_values"]
            # rows that left the batch left the cache with them
            cache = caches.setdefault(id(position_ids), CanvasCache(position_ids))
            cache.visible = visible
            call = {**call, "past_key_values": cache}
        model(**call)


__all__ = ["DispatchCounter", "ForwardMeter", "clock_of", "replay"]
