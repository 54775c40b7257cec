"""What a terminal shows while a text is denoised, and what it is left with."""

import io
import re
import time

import pytest
import torch
from demo_checkpoint import load_demo
from transformers import GPT2Config, GPT2LMHeadModel

from llada.generation.listeners.terminal import DRAFT, MASKED, NEW, PLAIN, TerminalStreamer


class Terminal(io.StringIO):
    """A screen that understands what the streamer writes: line feeds, going up, clearing, colours."""

    def __init__(self, columns: int = 80, lines: int = 24):
        super().__init__()
        self.columns, self.lines = columns, lines
        self.screen, self.row, self.column = [""], 0, 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for match in re.finditer(r"\033\[(\d*)[;\d]*([AKm])|(.)", text, re.DOTALL):
            count, escape, char = match.groups(default="")
            if escape == "A":
                self.row -= int(count)
                # a real screen cannot go above its top
                assert self.row >= max(0, len(self.screen) - self.lines)
            elif escape == "K":
                self.screen[self.row] = self.screen[self.row][: self.column]
            elif char == "\r":
                self.column = 0
            elif char == "\n":
                self.row, self.column = self.row + 1, 0
                self.screen += [""] * (self.row + 1 - len(self.screen))
            elif char:
                assert char.isprintable()
                line = self.screen[self.row]
                self.screen[self.row] = line[: self.column] + char + line[self.column + 1 :]
                self.column += 1
                # the streamer breaks lines itself
                assert self.column < self.columns
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "tmux-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return Terminal()


@pytest.fixture(scope="module")
def demo():
    return load_demo()


def row(tokens) -> torch.Tensor:
    return torch.tensor([tokens])


def test_answer_grows_in_place(demo, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, facts = demo
    seen = []
    monkeypatch.setattr(time, "sleep", lambda seconds: seen.append((seconds, "|".join(terminal.screen))))
    inputs = tokenizer(f"{facts.held_out[0].reverse[0]}\n", return_tensors="pt")

    model.generate(**inputs, streamer=TerminalStreamer(tokenizer, delay=0.5, file=terminal))

    assert seen == [(0.5, "░ ░ ░ ·"), (0.5, "░ ░ · ·"), (0.5, "Gustav ░ · ·")]
    assert terminal.screen == ["Gustav Gray", ""]


def test_prompt_and_gaps_are_shown_on_request(demo, terminal: Terminal) -> None:
    model, tokenizer, facts = demo
    streamer = TerminalStreamer(tokenizer, skip_prompt=False, file=terminal)
    mask, fact = tokenizer.mask_token, facts.held_out[0]
    gaps = f"{mask}{mask} is {fact.description}{tokenizer.eos_token}"

    model.infill(**tokenizer(gaps, return_tensors="pt"), streamer=streamer)
    model.generate(**tokenizer(f"{fact.reverse[0]}\n", return_tensors="pt"), streamer=streamer)

    # the streamer starts over after a text
    assert terminal.screen == [fact.sentence, fact.reverse[0], fact.reverse[1], ""]


def test_colours_say_what_is_new(demo, terminal: Terminal) -> None:
    _, tokenizer, _ = demo
    mask = tokenizer.mask_token_id
    ada, moss, is_ = tokenizer.convert_tokens_to_ids(["Ada", "Moss", "is"])
    streamer = TerminalStreamer(tokenizer, file=terminal)
    streamer.put(row([tokenizer.bos_token_id]))
    streamer.put_draft(row([mask, moss, mask]))
    first = terminal.getvalue()
    streamer.put(row([ada]))
    streamer.put_draft(row([moss, is_]))
    second = terminal.getvalue()[len(first) :]

    assert f"{MASKED}░{PLAIN}{NEW} Moss{PLAIN}{MASKED} ░{PLAIN}" in first
    assert f"Ada{DRAFT} Moss{PLAIN}{NEW} is{PLAIN}" in second


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_environment_is_honoured(
    demo, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    _, tokenizer, _ = demo
    monkeypatch.setenv(name, value)
    streamer = TerminalStreamer(tokenizer, file=terminal)
    streamer.put(row([0]))
    streamer.put_draft(row([31, tokenizer.mask_token_id]))
    streamer.put(row([31, 32]))
    streamer.end()

    written = terminal.getvalue()
    assert "\033[1" not in written and "\033[3" not in written
    # a dumb terminal cannot go back
    assert ("\r" in written) == (name == "NO_COLOR")


def test_one_line_per_step_where_there_is_no_terminal(demo) -> None:
    model, tokenizer, facts = demo
    file = io.StringIO()
    model.generate(
        **tokenizer(f"{facts.held_out[0].reverse[0]}\n", return_tensors="pt"),
        streamer=TerminalStreamer(tokenizer, skip_prompt=False, file=file),
    )

    question = facts.held_out[0].reverse[0]
    assert file.getvalue().splitlines() == [
        f"   1  {question} ░ ░ ░ ·",
        f"   2  {question} ░ ░ · ·",
        f"   3  {question} Gustav ░ · ·",
        f"   4  {question} Gustav Gray",
    ]


def test_symbols_fit_the_encoding(demo) -> None:
    _, tokenizer, _ = demo
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding="ascii")
    streamer = TerminalStreamer(tokenizer, file=file)
    streamer.put(row([0]))
    streamer.put_draft(row([tokenizer.mask_token_id, tokenizer.eos_token_id]))

    assert buffer.getvalue() == b"   1  _ .\n"


def test_long_texts_scroll(demo, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, _ = demo
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "6")
    terminal = Terminal(columns=30, lines=6)
    words = ["Ada", "Moss", "goldsmith", "carpenter", "?", "\n", "Who", "is"] * 12
    ids = tokenizer.convert_tokens_to_ids(words)
    streamer = TerminalStreamer(tokenizer, file=terminal)
    streamer.put(row([0]))
    for place, token in enumerate(ids):
        streamer.put(row([token]))
        if place + 1 < len(ids):
            # more masks than the screen has room for
            streamer.put_draft(row([tokenizer.mask_token_id] * (len(ids) - place - 1)))
    streamer.end()

    text = "\n".join(terminal.screen)
    assert text.split() == tokenizer.decode(ids).split()
    assert max(map(len, terminal.screen)) < 30
    # lines are broken between words
    assert {line.split()[-1] for line in terminal.screen if line} <= {"Moss", "goldsmith", "carpenter?", "is"}


def test_lines_that_are_no_longer_needed_are_blank(demo, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, _ = demo
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal(columns=30)
    streamer = TerminalStreamer(tokenizer, file=terminal)
    streamer.put(row([0]))
    long, short = (tokenizer.convert_tokens_to_ids([word] * 9) for word in ("goldsmith", "is"))
    streamer.put_draft(row(long))
    lines = len(terminal.screen)
    assert lines >= 3 and " ".join(terminal.screen).split() == ["goldsmith"] * 9
    # a revision took all of it back
    streamer.put_draft(row(short))
    assert [line.split() for line in terminal.screen] == [["is"] * 9, *[[]] * (lines - 1)]
    streamer.put(row(short))
    streamer.end()
    assert terminal.row == 1


def test_characters_are_shown_when_they_are_whole(tiny_tokenizer, terminal: Terminal) -> None:
    # one token per byte
    ids = tiny_tokenizer("Größe 大きい\t\033[2J\u202eno", add_special_tokens=False)["input_ids"]
    streamer = TerminalStreamer(tiny_tokenizer, skip_prompt=False, file=terminal)
    for place, token in enumerate(ids[:-1]):
        streamer.put(row([token]))
        streamer.put_draft(row(ids[place + 1 : -1] + [300]))
    streamer.put(row(ids[-1:]))
    streamer.end()

    # what a terminal obeys becomes a space: a model neither moves the cursor nor turns the text around
    assert terminal.screen == ["Größe 大きい  [2J no", ""]


def test_wide_characters_count_twice(tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "11")
    terminal = Terminal(columns=11)
    streamer = TerminalStreamer(tiny_tokenizer, skip_prompt=False, file=terminal)
    streamer.put(row(tiny_tokenizer("大きい大きい大きい", add_special_tokens=False)["input_ids"]))
    streamer.end()

    assert terminal.screen == ["大きい大き", "い大きい", ""]


def test_models_without_drafts_are_streamed_too(demo, terminal: Terminal) -> None:
    _, tokenizer, _ = demo
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=None, **sizes))
    inputs = tokenizer("Who is", return_tensors="pt")
    streamer = TerminalStreamer(tokenizer, file=terminal)
    ids = causal.generate(**inputs, streamer=streamer, max_new_tokens=5, do_sample=False, pad_token_id=1)

    new = [token for token in ids[0, 3:].tolist() if token > 2]
    assert " ".join(terminal.screen).split() == tokenizer.decode(new).split()


def test_mask_token_may_come_from_the_model(demo) -> None:
    _, tokenizer, _ = load_demo()
    mask_token_id, tokenizer.mask_token = tokenizer.mask_token_id, None
    with pytest.raises(ValueError, match="mask_token_id=model.config.mask_token_id"):
        TerminalStreamer(tokenizer)

    file = io.StringIO()
    streamer = TerminalStreamer(tokenizer, file=file, mask_token_id=mask_token_id)
    streamer.put(row([0]))
    streamer.put_draft(row([mask_token_id, 31]))
    assert file.getvalue() == f"   1  ░ {tokenizer.decode([31])}\n"


def test_one_sequence_only(demo) -> None:
    model, tokenizer, _ = demo
    inputs = tokenizer(["Who is", "Who is"], return_tensors="pt")

    with pytest.raises(ValueError, match="one sequence, but the batch has 2"):
        model.generate(**inputs, streamer=TerminalStreamer(tokenizer, file=io.StringIO()))
