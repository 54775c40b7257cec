"""What may be written to a terminal: text, and nothing that the terminal would obey."""

import unicodedata


# overrides, embeddings and isolates let a line read otherwise than it is stored (CVE-2021-42574)
_REORDERING = frozenset({"FSI", "LRE", "LRI", "LRO", "PDF", "PDI", "RLE", "RLI", "RLO"})
# control characters of C0 and C1, and so every escape sequence; halves of surrogate pairs; separators of lines
_OBEYED = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """
    A text for a screen, as long as it was: characters that would move the cursor, set the title or the clipboard,
    change colours or reorder what stands beside them become spaces. Line feeds and tabs stay.

    Args:
        text (`str`): A text of whatever origin: a model, a file, the name of a tensor.

    Returns:
        `str`: The text.
    """
    return "".join(" " if _is_obeyed(char) and char not in "\n\t" else char for char in text)


def escaped(text: str) -> str:
    r"""
    A name for a message, a script or a source file: what cannot be printed becomes an escape of Python, `\n` for a
    line feed. The result is one line.

    Args:
        text (`str`): The name.

    Returns:
        `str`: The name as it may stand in a string of Python, quotes and backslashes aside.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _is_obeyed(char: str) -> bool:
    return unicodedata.category(char) in _OBEYED or unicodedata.bidirectional(char) in _REORDERING


__all__ = ["escaped", "printable"]
