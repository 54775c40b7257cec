"""What a user reads when something went wrong: one line that says what, and what to do."""

import errno
import io
import logging
import re
from typing import TextIO


_DISK_FULL = "No space left on device"
# the colours that transformers puts into its reports
_COLOUR = re.compile(r"(\033\[[\d;]*m)")


class PrintableFormatter(logging.Formatter):
    """Formats as before, and lets nothing but colours through that a terminal would obey: logs name tensors."""

    def __init__(self, before: logging.Formatter | None):
        super().__init__()
        self.before = before or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        from llada.generation.printable import printable

        # every second part is a colour
        parts = enumerate(_COLOUR.split(self.before.format(record)))
        return "".join(part if index % 2 else printable(part) for index, part in parts)


def guard_logs() -> None:
    """Makes what transformers and this package log safe to show."""
    for handler in (*logging.getLogger("transformers").handlers, logging.lastResort):
        if handler is not None and not isinstance(handler.formatter, PrintableFormatter):
            handler.setFormatter(PrintableFormatter(handler.formatter))


def explain(error: Exception) -> str:
    """
    What an error means to somebody at a terminal.

    Args:
        error (`Exception`): The error.

    Returns:
        `str`: One line, without anything that a terminal would obey.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        # the package may be what cannot be imported
        return text

    from llada.generation.printable import printable

    if isinstance(error, UnicodeDecodeError):
        text = f"{text}: it is no UTF-8; convert it, e.g. with `iconv -f latin1 -t utf-8`."
    elif (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _DISK_FULL in text:
        text = f"{text}: free some space, or write to another disk."
    elif "out of memory" in text or isinstance(error, MemoryError):
        text = f"Out of memory ({text}): ask for fewer tokens at a time, or spread the model with --device-map auto."
    elif not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__}: {text} (--traceback shows where it came up)"
    return printable(text)


def read_utf8(stream: TextIO) -> None:
    """Makes a stream refuse bytes that are no UTF-8: what it would put in their place reaches no tokenizer."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="strict")


def check_text(text: str) -> str:
    """
    Returns an argument if it is text.

    Raises:
        ValueError: If it holds bytes that are no UTF-8, which Python smuggles through as halves of surrogate pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{ascii(text)} is no UTF-8; write it in that encoding.") from error
    return text


__all__ = ["PrintableFormatter", "check_text", "explain", "guard_logs", "read_utf8"]
