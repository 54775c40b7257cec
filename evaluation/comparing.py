"""What two sets of settings differ in, and results that may be compared."""

import json
import math
from pathlib import Path
from typing import Any


_MISSING = "nothing"


def find_differences(one: Any, other: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """
    The settings in which two nested dictionaries differ.

    Args:
        one, other (`Any`):
            What is compared.
        name (`str`, *optional*):
            What stands before the names of both.

    Returns:
        `dict[str, tuple]`: Name, with dots between levels -> the two values.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*one, *other]):
            inner = f"{name}.{key}" if name else str(key)
            found |= find_differences(one.get(key, _MISSING), other.get(key, _MISSING), inner)
        return found
    return {} if one == other else {name: (one, other)}


def describe_difference(one: Any, other: Any) -> str:
    """The same as a text: `sampling.steps is 64 there and 128 here`."""
    return "; ".join(
        f"{name} is {first} there and {second} here" for name, (first, second) in find_differences(one, other).items()
    )


def load_result(path: str) -> dict[str, Any]:
    """
    Reads a result that [`~llada.evaluation.measuring.run_recipe`] saved.

    Raises:
        ValueError: If the file is none.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read the result {path}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no result of `llada eval`: {error}.") from error
    if not isinstance(result, dict) or not {"measured", "standard_error", "settings", "checkpoint"} <= result.keys():
        raise ValueError(f"{path} is no result of `llada eval`; name a result.json that it saved.")
    return result


def compare_results(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float | None]:
    """
    Compares two results that were measured with the same settings.

    Args:
        one, other (`dict[str, Any]`):
            The results.

    Returns:
        `tuple[float, float]`: By how many points the second is higher, and the standard error of that, `None` if a
        result has none.

    Raises:
        ValueError: If settings differ, with the difference: the figures say nothing about the checkpoints then.
    """
    differences = find_differences(_comparable(one["settings"]), _comparable(other["settings"]))
    if differences:
        listed = "; ".join(f"{name} is {first!r} and {second!r}" for name, (first, second) in differences.items())
        raise ValueError(f"The two were measured with unequal settings: {listed}. Measure one of them again.")
    errors = [result["standard_error"] for result in (one, other)]
    error = None if None in errors else math.hypot(*errors)
    return other["measured"] - one["measured"], error


def _comparable(settings: Any) -> Any:
    """Settings without the ids of special tokens, which are the checkpoint's."""
    if isinstance(settings, dict):
        return {name: _comparable(value) for name, value in settings.items() if not name.endswith("_token_id")}
    return settings


__all__ = ["compare_results", "describe_difference", "find_differences", "load_result"]
