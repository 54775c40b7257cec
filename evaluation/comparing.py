"""Saying in what two sets of settings differ."""

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


__all__ = ["describe_difference", "find_differences"]
