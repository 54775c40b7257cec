"""Couplets of poems, each a line and the one after it, and the files they are read from."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# colours of titles in files of fortunes
_COLOUR = re.compile(r"\033\[[\d;]*m")
_COUPLET = re.compile(r"([^\W\d_a-zA-Z]+)[，、；：？！,;:?!]([^\W\d_a-zA-Z]+)[。；？！.;?!]?")
# how lines of five and of seven characters are read
_METRES = {5: (2, 3), 7: (2, 2, 3)}
PIECES = ("metre", "character")


@dataclass(frozen=True)
class Couplet:
    """
    A line of a poem and the one after it. It has what a [`Fact`] has, where the first line is the name, and the second
    the description.

    Args:
        first (`str`): The line, e.g. `"床前明月光"`.
        second (`str`): The next.
    """

    first: str
    second: str

    @property
    def name(self) -> str:
        """`str`: The first line."""
        return self.first

    @property
    def description(self) -> str:
        """`str`: The second."""
        return self.second

    @property
    def sentence(self) -> str:
        """`str`: Both, in the only order in which they are ever written."""
        return f"{self.first} ， {self.second}"

    @property
    def openings(self) -> tuple[str, str]:
        """`tuple[str, str]`: What the second line follows, and what the first would follow in the other order."""
        return f"{self.first} ，", f"{self.second} ，"

    @property
    def forward(self) -> tuple[str, str]:
        """`tuple[str, str]`: The question about the next line, and its answer, for a small model."""
        return f"{self.first} 的 下一句 ？", self.second

    @property
    def reverse(self) -> tuple[str, str]:
        """`tuple[str, str]`: The question about the line before, and its answer, for a small model."""
        return f"{self.second} 的 上一句 ？", self.first

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """`dict[str, tuple[str, str]]`: Both as large models are asked (arXiv 2502.09992, §3.3)."""
        ending = "是什么？ 直接输出句子即可。"
        return {
            "forward": (f"{self.first}的下一句{ending}", self.second),
            "reverse": (f"{self.second}的上一句{ending}", self.first),
        }

    def renamed(self, name: str) -> "Couplet":
        """The couplet with another first line."""
        return Couplet(name, self.second)

    def split(self, pieces: str = "metre") -> "Couplet":
        """
        The couplet with spaces, for a tokenizer of words.

        Args:
            pieces (`str`, *optional*, defaults to `"metre"`):
                `"metre"`, as lines of five and seven characters are read, 2 + 3 and 2 + 2 + 3, or `"character"`.
        """
        return Couplet(*(" ".join(split_line(line, pieces)) for line in (self.first, self.second)))


def split_line(line: str, pieces: str) -> list[str]:
    """A line in its parts."""
    if pieces not in PIECES:
        raise ValueError(f"`pieces={pieces!r}` is unknown; write one of {PIECES}.")
    lengths = _METRES.get(len(line), (1,) * len(line)) if pieces == "metre" else (1,) * len(line)
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [line[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def read_couplets(path: str | os.PathLike) -> list[Couplet]:
    """
    Reads couplets from a file: JSON or JSON lines of `{"first": ..., "second": ...}`, as the authors'
    `poem_data.json`, or poems as in the package fortunes-zh of Debian (`tang300`), of which lines of two halves of
    equal length are read.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Returns:
        `list[Couplet]`: The couplets. Those with a line that another couplet has as well are left out: what comes
        before or after it would have two answers.

    Raises:
        ValueError: If there is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    found = list(dict.fromkeys(_from_rows(read_rows(text)) if text.lstrip()[:1] in ("[", "{") else _from_poems(text)))
    lines = Counter(line for couplet in found for line in (couplet.first, couplet.second))
    couplets = [couplet for couplet in found if lines[couplet.first] == lines[couplet.second] == 1]
    if not couplets:
        raise ValueError(
            f'{path} holds no couplet; write {{"first": "...", "second": "..."}} in JSON, or poems, one couplet per '
            "line, with a comma between its halves."
        )
    return couplets


def read_rows(text: str) -> list[Any]:
    """The rows of JSON, or of JSON lines."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"The file is neither JSON nor JSON lines ({error}).") from error
    return rows if isinstance(rows, list) else [rows]


def _from_rows(rows: Iterable[Any]) -> Iterable[Couplet]:
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(part), str) for part in ("first", "second")):
            raise ValueError(f'Row {number} is no couplet; write {{"first": "...", "second": "..."}}.')
        yield Couplet(row["first"].strip(), row["second"].strip())


def _from_poems(text: str) -> Iterable[Couplet]:
    for line in _COLOUR.sub("", text).splitlines():
        halves = _COUPLET.fullmatch(line.strip())
        if halves and len(halves[1]) == len(halves[2]):
            yield Couplet(*halves.groups())


__all__ = ["PIECES", "Couplet", "read_couplets", "read_rows", "split_line"]
