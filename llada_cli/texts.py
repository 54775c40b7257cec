"""Plain text that commands train on."""

from collections.abc import Iterable
from pathlib import Path


# the pieces that a text is cut into, one of which in ten is held out
_PIECE = 4000


def read_pages(path: Path | None, option: str) -> list[str]:
    """
    The documents that an option names.

    Args:
        path (`Path`, *optional*): A text file, or a folder with .txt files. The pages that `help()` shows about the
            language if not given.
        option (`str`): The name of the option.

    Raises:
        ValueError: If there is no text.
    """
    if path is None:
        from .smollm2 import library_text

        return library_text()[0]
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"`{option} {path}` is neither a text file nor a folder with .txt files.")
    return [file.read_text(encoding="utf-8") for file in files]


def read_and_hold_out(path: Path | None, option: str) -> tuple[list[str], list[str]]:
    """
    The same in two parts, one to train on and a tenth to test with.

    Args:
        path (`Path`, *optional*): As in [`read_pages`].
        option (`str`): The name of the option.

    Raises:
        ValueError: If there is too little text to hold some out.
    """
    if path is None:
        from .smollm2 import library_text

        return library_text()
    pieces = list(_cut(read_pages(path, option)))
    if len(pieces) < 2:
        raise ValueError(f"`{option} {path}` has less than {_PIECE} characters and a line more; name a longer text.")
    held_out = pieces[1::10]
    return [piece for number, piece in enumerate(pieces) if number % 10 != 1], held_out


def _cut(pages: Iterable[str]) -> Iterable[str]:
    """Cuts long texts at ends of lines."""
    for page in pages:
        piece = ""
        for line in page.splitlines(keepends=True):
            piece += line
            if len(piece) >= _PIECE:
                yield piece
                piece = ""
        if piece.strip():
            yield piece


__all__ = ["read_and_hold_out", "read_pages"]
