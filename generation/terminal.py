"""Watching a text being denoised in a terminal."""

import shutil
import sys
import time
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


MASK = "░"
NEW, SETTLED, PALE, PLAIN = "\033[1;32m", "", "\033[2m", "\033[0m"


class TerminalStreamer(BaseStreamer):
    """
    Shows the canvas after every step, in place, with masks as blocks and what is new in green. Where the output is no
    terminal, it writes one line per step.

    It follows the protocol of [`~transformers.TextDiffusionStreamer`], so it serves every model that calls
    `put_draft`. Unlike that class it redraws by moving the cursor, which works in tmux, too, and shows what changed.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.
        skip_prompt (`bool`, *optional*, defaults to `True`):
            Whether to leave out the prompt.
        delay (`float`, *optional*, defaults to 0.0):
            Seconds to wait after every step.
        file (`TextIO`, *optional*):
            Where to write. Standard output if not given.

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
    ):
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.delay = delay
        self.file = file or sys.stdout
        self.in_place = self.file.isatty()
        self.settled: list[int] = []
        self.draft: list[int] = []
        self.shown: list[int] | None = None
        self.rows = self.step = 0
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Takes tokens that will not change any more, shape `(tokens,)` or `(1, tokens)`."""
        tokens = self._tokens(value)
        if self.is_prompt:
            self.is_prompt = False
            self.settled = [] if self.skip_prompt else tokens
            return
        self.settled += tokens
        self.draft = self.draft[len(tokens) :]

    def put_draft(self, value: torch.Tensor, **kwargs) -> None:
        """Takes what follows the settled tokens, masks included, after a step."""
        self.draft = self._tokens(value)
        self._show()

    def end(self) -> None:
        """Shows the finished text."""
        self.draft = []
        if self.shown != self.settled:
            self._show()
        self.file.write("\n" if self.in_place else "")
        self.file.flush()
        self.settled, self.shown, self.rows, self.step, self.is_prompt = [], None, 0, 0, True

    def _tokens(self, value: torch.Tensor) -> list[int]:
        if value.ndim > 1 and len(value) > 1:
            raise ValueError(f"TerminalStreamer shows one sequence, but the batch has {len(value)}.")
        return value.flatten().tolist()

    def _show(self) -> None:
        self.step += 1
        tokens = self.settled + self.draft
        before = self.shown or []
        is_new = [place >= len(before) or before[place] != token for place, token in enumerate(tokens)]
        pieces = self._pieces(tokens)
        text = "".join(pieces)
        if not self.in_place:
            self.file.write(f"{self.step:4d}  {text}\n")
        else:
            mask = self.tokenizer.mask_token_id
            styled = []
            for token, piece, new in zip(tokens, pieces, is_new, strict=True):
                style = PALE if token == mask else NEW if new and before else SETTLED
                styled.append(f"{style}{piece}{PLAIN}" if style else piece)
            if self.shown is not None:
                self.file.write("\r" + (f"\033[{self.rows - 1}A" if self.rows > 1 else "") + "\033[J")
            self.file.write("".join(styled))
            width = shutil.get_terminal_size().columns
            self.rows = sum(max(1, -(-len(line) // width)) for line in text.split("\n"))
        self.file.flush()
        self.shown = tokens
        time.sleep(self.delay)

    def _pieces(self, tokens: list[int]) -> list[str]:
        """The text of each token: what it adds to the text before it. Special tokens but the mask are not shown."""
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.mask_token_id}
        pieces: list[str] = []
        read: list[int] = []
        text = ""
        for token in tokens:
            if token in special:
                pieces.append("")
                continue
            read.append(token)
            longer = self.tokenizer.decode(read).replace(self.tokenizer.mask_token, MASK)
            # half a character is shown when the other half is there
            whole = longer.rstrip("\ufffd")
            pieces.append(whole[len(text) :] if whole.startswith(text) else "")
            text = whole if whole.startswith(text) else text
        return pieces


__all__ = ["TerminalStreamer"]
