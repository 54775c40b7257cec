"""The small checkpoints in `tests/fixtures`, with the answers of the published implementations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


__all__ = ["FIXTURES", "Golden", "load_golden", "rounding"]

FIXTURES = Path(__file__).resolve().parent / "fixtures"


@dataclass(frozen=True)
class Golden:
    """
    One checkpoint folder with its expected values. See `tests/fixtures/README.md` for what the values are.

    Args:
        folder (`Path`):
            A checkpoint in its published layout: `config.json` and `model.safetensors`.
        expected (`dict[str, Tensor]`):
            The published implementation's values, such as `logits.full`.
        cases (`dict[str, dict[str, Any]]`):
            The settings of each `generate.<case>.*` of `expected`, by case name.
    """

    folder: Path
    expected: dict[str, Tensor]
    cases: dict[str, dict[str, Any]]

    @property
    def logits(self) -> Tensor:
        """What the published implementation answers on `logits.input_ids` if everything is visible."""
        return self.expected["logits.full" if "logits.full" in self.expected else "logits.bidirectional"]


def load_golden(name: str) -> Golden:
    """
    Load one folder of `tests/fixtures`.

    Args:
        name (`str`):
            Name of the folder.

    Returns:
        [`Golden`]: its contents. The tensors are shared between tests: clone before writing to them.
    """
    folder = FIXTURES / name
    path = folder / "cases.json"
    cases = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return Golden(folder, load_file(folder / "expected.safetensors"), {case["name"]: case for case in cases})


def rounding(expected: Tensor) -> dict[str, float]:
    """
    How near float32 results come to each other that were not computed by the same instructions.

    Kernels add in an order that depends on the processor, on the number of threads, on the back-end, and on where in
    memory the weights lie: those of a loaded file lie elsewhere than those of the model that was saved.

    Args:
        expected (`Tensor`):
            One of the results.

    Returns:
        `dict[str, float]`: `rtol` and `atol` for `torch.testing.assert_close`.
    """
    return {"rtol": 0, "atol": 1e-5 * expected.abs().max().item()}
