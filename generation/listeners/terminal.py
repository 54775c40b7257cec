"""Watching a text being denoised in a terminal."""

import os
import shutil
import sys
import time
import unicodedata
from itertools import groupby
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..printable import printable


# how a piece of text looks: not yet decided, decided in this step, decided but not yet settled, settled. The green and
# the blue of the 256 colours are as far from white as from black
MASKED, NEW, DRAFT, SETTLED = "\033[2m", "\033[1;38;5;28m", "\033[38;5;31m", ""
PLAIN = "\033[0m"

# number of settled tokens that the next ones are decoded with, so that the space between comes out right
_CONTEXT = 8
_LONGEST_WORD = 24


class TerminalStreamer(BaseStreamer):
    """
    Shows a text while it is denoised, in place: masks as blocks, the tokens of the last step in bold green, earlier
    ones in cyan until nothing before them can change. Where the output is no terminal, it writes one line per step.

    It follows the protocol of [`~transformers.TextDiffusionStreamer`], so it serves every model that calls
    `put_draft`. Unlike that class it moves the cursor by lines, which works in tmux, too, and shows what changed.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.
        skip_prompt (`bool`, *optional*, defaults to `True`):
            Whether to leave out the prompt.
        delay (`float`, *optional*, defaults to 0.0):
            Seconds to wait after every step.
        file (`TextIO`, *optional*):
            Where to write. Standard output if not given.
        mask_token_id (`int`, *optional*):
            Id of the mask token, that of the tokenizer if not given.

    Raises:
        ValueError: If neither says what the mask token is, or more than one sequence is streamed.

    Example:

    ```python
    >>> from llada.generation.terminal import TerminalStreamer

    >>> model.generate(**inputs, streamer=TerminalStreamer(tokenizer))
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        skip_prompt: bool = True,
        delay: float = 0.0,
        file: TextIO | None = None,
        mask_token_id: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.delay = delay
        self.file = sys.stdout if file is None else file
        self.mask_token_id = tokenizer.mask_token_id if mask_token_id is None else mask_token_id
        if self.mask_token_id is None:
            raise ValueError(
                "The tokenizer has no mask token; write `TerminalStreamer(tokenizer, "
                "mask_token_id=model.config.mask_token_id)`."
            )
        self.special_ids = set(tokenizer.all_special_ids) - {self.mask_token_id}
        self.in_place = self.file.isatty() and os.environ.get("TERM") != "dumb"
        self.in_colour = self.in_place and not os.environ.get("NO_COLOR")
        try:
            "░·".encode(getattr(self.file, "encoding", None) or "utf-8")
            mask, end_of_text = "░", "·"
        except UnicodeEncodeError:
            mask, end_of_text = "_", "."
        self.symbols = dict.fromkeys(tokenizer.convert_ids_to_tokens(list(self.special_ids)), end_of_text)
        self.symbols[tokenizer.convert_ids_to_tokens(self.mask_token_id)] = mask
        self._start()

    def _start(self) -> None:
        self.is_prompt = True
        # settled text on the line that is still growing; what stands above is not touched again
        self.open = ""
        self.context: list[int] = []
        # settled tokens that end within a character
        self.pending: list[int] = []
        self.draft: list[int] = []
        self.rows = self.step = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes tokens that will not change any more, of shape `(tokens,)` or `(1, tokens)`."""
        tokens = self._tokens(value)
        is_prompt, self.is_prompt = self.is_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.draft = self.draft[len(tokens) :]
        self.pending += [token for token in tokens if token not in self.special_ids]
        text = self._with_symbols(self._decode(self.pending))
        if not text.endswith("\ufffd"):
            self._settle(text)
        if self.in_place:
            self._redraw([(text, SETTLED)] if self.pending else [])

    def put_draft(self, value: torch.Tensor, **kwargs) -> None:
        """Takes what follows the settled tokens, masks included, after a step. Shape as in `put`."""
        draft = self._tokens(value)
        before = (self.draft + [self.mask_token_id] * len(draft))[: len(draft)]
        styles = [self._style(*pair) for pair in zip(draft, before, strict=True)]
        self.draft = draft
        self.step += 1
        pieces = self._pieces(self.pending + draft, [SETTLED] * len(self.pending) + styles)
        if self.in_place:
            self._redraw(pieces)
        else:
            self._write_line(self.open + "".join(text for text, _ in pieces))
        time.sleep(self.delay)

    def end(self) -> None:
        """Leaves the finished text."""
        self._settle(self._with_symbols(self._decode(self.pending)))
        if self.in_place:
            self._redraw([])
            self.file.write("\n")
        else:
            self.step += 1
            self._write_line(self.open)
        self.file.flush()
        self._start()

    def _tokens(self, value: torch.Tensor) -> list[int]:
        if value.ndim > 1 and len(value) > 1:
            raise ValueError(f"TerminalStreamer shows one sequence, but the batch has {len(value)}.")
        return value.flatten().tolist()

    def _style(self, token: int, before: int) -> str:
        if token == self.mask_token_id:
            return MASKED
        return NEW if token != before else DRAFT

    def _settle(self, text: str) -> None:
        self.open += text
        self.context = (self.context + self.pending)[-_CONTEXT:]
        self.pending = []

    def _decode(self, tokens: list[int]) -> str:
        """The text that tokens add to those before them, special ones as they are called."""
        text = self.tokenizer.decode(self.context + tokens)[len(self.tokenizer.decode(self.context)) :]
        # a tab has no width that lines could be broken by
        return printable(text).replace("\t", " ")

    def _with_symbols(self, text: str) -> str:
        for name, symbol in self.symbols.items():
            text = text.replace(name, symbol)
        return text

    def _pieces(self, tokens: list[int], styles: list[str]) -> list[tuple[str, str]]:
        """The text of tokens in pieces of one style each."""
        pieces = []
        start = 0
        text = self._decode(tokens)
        for style, run in groupby(range(len(tokens)), key=styles.__getitem__):
            *_, last = run
            end = len(text) if last + 1 == len(tokens) else len(self._decode(tokens[: last + 1]))
            pieces.append((self._with_symbols(text[start:end]), style))
            start = max(start, end)
        return pieces

    def _write_line(self, text: str) -> None:
        self.file.write(f"{self.step:4d}  {' '.join(text.split())}\n")
        self.file.flush()

    def _redraw(self, pieces: list[tuple[str, str]]) -> None:
        """Draws the growing line and the draft after it over what was drawn last."""
        columns, screen = shutil.get_terminal_size()
        *finished, growing = _wrap([(self.open, SETTLED)], columns - 1)
        self.open = "".join(char for char, _ in growing)
        # what would not fit on the screen could not be drawn over
        lines = _wrap([(self.open, SETTLED), *pieces], columns - 1)[: screen - 1]
        # line by line: erasing all that is below would push it into the history of some terminals
        up = f"\033[{self.rows - 1}A" if self.rows > 1 else ""
        drawn = [f"{self._paint(line)}\033[K" for line in [*finished, *lines]]
        stale = self.rows - len(drawn)
        down = "\n\033[K" * stale + f"\033[{stale}A" if stale > 0 else ""
        self.file.write(("\r" if self.rows else "") + up + "\n".join(drawn) + down)
        self.file.flush()
        self.rows = len(lines)

    def _paint(self, line: list[tuple[str, str]]) -> str:
        painted = []
        for style, run in groupby(line, key=lambda cell: cell[1]):
            text = "".join(char for char, _ in run)
            painted.append(f"{style}{text}{PLAIN}" if style and self.in_colour else text)
        return "".join(painted)


def _wrap(pieces: list[tuple[str, str]], width: int) -> list[list[tuple[str, str]]]:
    """Lines of characters with their style, none wider than `width`, broken at spaces where there are any."""
    lines: list[list[tuple[str, str]]] = [[]]
    for text, style in pieces:
        for char in text:
            line = lines[-1]
            if char == "\n":
                lines.append([])
            elif _width([*line, (char, style)]) <= width:
                line.append((char, style))
            elif char == " ":
                lines.append([])
            else:
                spaces = [place for place, (other, _) in enumerate(line) if other == " "]
                # a script without spaces is broken anywhere
                start = spaces[-1] + 1 if spaces and len(line) - spaces[-1] <= _LONGEST_WORD else len(line)
                lines.append([*line[start:], (char, style)])
                del line[start:]
    return lines


def _width(line: list[tuple[str, str]]) -> int:
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "FW") for char, _ in line
    )


__all__ = ["TerminalStreamer"]
