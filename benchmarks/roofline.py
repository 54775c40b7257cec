"""What a device allows: the time to read the weights, and the time to multiply by them, whichever is longer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from .counters import clock_of


@dataclass(frozen=True)
class Device:
    """
    What a device can do.

    Args:
        name (`str`):
            Its name.
        bandwidth (`float`):
            Bytes per second from memory.
        flops (`float`):
            Floating point operations per second in matrix products.
    """

    name: str
    bandwidth: float
    flops: float


# measured bf16 matrix products, and the memory of the data sheet
H200 = Device("NVIDIA H200", 4.8e12, 790e12)


@dataclass(frozen=True)
class Bound:
    """
    The least time of one forward pass.

    Args:
        bytes (`float`):
            Weights, and keys and values of what is attended to.
        flops (`float`):
            Operations of the backbone, of attention and of the head.
        seconds (`float`):
            The longer of the two times.
        by_memory (`bool`):
            Whether that is the one of the memory.
    """

    bytes: float
    flops: float
    seconds: float
    by_memory: bool


def backbone_weights(config: PreTrainedConfig) -> int:
    """Weights that every position is multiplied by, without the head. Of experts, those that see it."""
    keys = 2 * config.num_hidden_layers * config.hidden_size * config.head_dim * config.num_key_value_heads
    return keys + sum(_asking_weights(config, kind) for kind in config.mlp_layer_types)


def _asking_weights(config: PreTrainedConfig, kind: str) -> int:
    """Those of one layer without keys and values: in the last, only wanted positions are multiplied by them."""
    width = 2 * config.num_attention_heads * config.head_dim
    if kind == "dense":
        width += 3 * config.intermediate_size
    else:
        seen = config.num_experts_per_tok * config.moe_intermediate_size
        width += 3 * (seen + config.shared_expert_intermediate_size) + config.num_experts
    return config.hidden_size * width


def forward_bound(
    config: PreTrainedConfig, device: Device, batch: int, computed: int, seen: int, logit_rows: int, width: int = 2
) -> Bound:
    """
    The least time of a forward pass. Of a model with experts only those of one token are read: how many more there
    are depends on the tokens.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            A model of this package.
        device ([`Device`]):
            The device.
        batch, computed, seen, logit_rows (`int`):
            Rows, positions computed and attended to per row, and rows of logits in all.
        width (`int`, *optional*, defaults to 2):
            Bytes per number.
    """
    weights, head = backbone_weights(config), config.vocab_size * config.hidden_size
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * seen * batch
    attended = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * computed * seen * batch
    bytes_ = float(width * (weights + head + cached))
    flops = float(2 * weights * computed * batch + attended + 2 * head * logit_rows)
    unwanted = computed * batch - logit_rows
    in_last_layer = 2 * _asking_weights(config, config.mlp_layer_types[-1])
    in_last_layer += 4 * config.num_attention_heads * config.head_dim * seen
    flops -= unwanted * in_last_layer
    memory, compute = bytes_ / device.bandwidth, flops / device.flops
    return Bound(bytes_, flops, max(memory, compute), memory > compute)


def probe(device: torch.device, dtype: torch.dtype = torch.float32) -> Device:
    """Measures a device: the fastest of some copies and of some matrix products."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    big = torch.randn(2**24 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(big)

    clock = clock_of(device)

    def fastest(run: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(5):
            start = clock()
            run()
            times.append(clock() - start)
        return min(times)

    products = 2 * size**3 / fastest(lambda: left @ right)
    # read and written
    copies = 2 * big.nbytes / fastest(lambda: target.copy_(big))
    return Device(str(device), copies, products)


__all__ = ["H200", "Bound", "Device", "backbone_weights", "forward_bound", "probe"]
