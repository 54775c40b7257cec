"""The folder of a command that may be interrupted, and goes on when it is typed again."""

import json
from pathlib import Path
from typing import Any


def note_settings(folder: Path, settings: dict[str, Any]) -> None:
    """
    Writes down what the results in a folder depend on, or compares it with what the folder was begun with.

    Args:
        folder (`Path`): The folder.
        settings (`dict[str, Any]`): What they depend on, in types that JSON has.

    Raises:
        ValueError: If it holds results of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [
            f"`{name}` was {before.get(name)!r} and is {value!r}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{folder} holds results of other settings: {'; '.join(changed)}. Name another `--output-dir`, or "
                "delete this one."
            )
    file.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["note_settings"]
