"""Running the Python blocks of a Markdown text."""

import contextlib
import io
import re
from typing import Any


__all__ = ["python_blocks", "run_blocks"]


def python_blocks(markdown: str) -> list[str]:
    """Returns the contents of the fenced blocks that are marked as Python."""
    return re.findall(r"^```python\n(.*?)^```$", markdown, re.DOTALL | re.MULTILINE)


def run_blocks(markdown: str, name: str) -> tuple[dict[str, Any], str]:
    """
    Run all Python blocks, one after the other in one namespace, as a reader would.

    Args:
        markdown (`str`):
            The text.
        name (`str`):
            What tracebacks call it; line numbers are those of the text.

    Returns:
        `tuple[dict[str, Any], str]`: the namespace afterwards, and what was printed.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in python_blocks(markdown):
            lines_before = markdown[: markdown.index(block)].count("\n")
            exec(compile("\n" * lines_before + block, name, "exec"), namespace)
    return namespace, printed.getvalue()
