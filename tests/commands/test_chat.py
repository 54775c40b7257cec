"""The chat as somebody at a terminal meets it: an editor, commands, and answers that can be stopped."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from demo_checkpoint import DEMO_FOLDER, load_demo
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llada import Trace
from llada_cli import main


MODEL, TOKENIZER, FACTS = load_demo()
FACT, OTHER = FACTS.held_out[0], FACTS.held_out[2]
QUESTION, OTHER_QUESTION = FACT.reverse[0], OTHER.reverse[0]
PASTE = "\033[200~{}\033[201~"
CTRL_C, CTRL_D = "\x03", "\x04"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch):
    """Holds a conversation over a terminal; returns the exit status and what was written."""

    def talk(typed: str, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", Screen())
        monkeypatch.setattr(sys, "stdout", Screen())
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            keys.send_text(typed)
            status = main(["chat", str(DEMO_FOLDER), "--no-stream", *options])
        return status, sys.stdout.getvalue()

    return talk


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The conversations that the model is given."""
    seen: list[list[dict[str, str]]] = []
    apply = type(TOKENIZER).apply_chat_template

    def remember(self, messages, **kwargs):
        seen.append(messages)
        return apply(self, [message for message in messages if message["role"] != "system"], **kwargs)

    monkeypatch.setattr(type(TOKENIZER), "apply_chat_template", remember)
    return seen


def test_pasted_text_is_one_message(chat, asked) -> None:
    pasted = f"{QUESTION}\n\necho run by the shell\n"
    status, _ = chat(PASTE.format(pasted) + "\r" + CTRL_D)

    assert status == 0
    assert [[turn["content"] for turn in turns] for turns in asked] == [[pasted.strip()]]


def test_lines_are_edited_and_may_be_several(chat, asked) -> None:
    left = "\033[D"
    chat(f"Wo is{left * 4}h\rWho\033\ris\r{CTRL_D}")

    assert [turns[-1]["content"] for turns in asked] == ["Who is", "Who\nis"]


def test_blank_lines_and_interrupts_do_not_end_it(chat) -> None:
    status, written = chat(f"\r\r  \r{CTRL_C}half a quest{CTRL_C}{QUESTION}\r{CTRL_D}")

    assert status == 0
    assert written.splitlines()[-1] == FACT.name
    assert "Ctrl-D or /exit ends." in written


def test_an_answer_is_stopped_and_the_conversation_kept(chat, asked, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, calls = type(MODEL).generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(MODEL), "generate", interrupted)
    status, written = chat(f"{QUESTION}\r{OTHER_QUESTION}\r{QUESTION}\r{CTRL_D}")

    assert status == 0
    assert "Stopped; the conversation is as it was before the question." in written
    assert [turn["content"] for turn in asked[2]] == [QUESTION, FACT.name, QUESTION]


@pytest.mark.parametrize("end", [CTRL_D, "/exit\r"], ids=["ctrl-d", "exit"])
def test_what_stands_after_the_end_is_not_answered(chat, asked, end: str) -> None:
    assert chat(f"{QUESTION}\r{end}{OTHER_QUESTION}\r")[0] == 0
    assert len(asked) == 1


def test_commands_steer_the_conversation(chat, asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    generate = type(MODEL).generate

    def remember(self, *args, **kwargs):
        given.append({name: value for name, value in kwargs.items() if name in ("steps", "temperature", "seed")})
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(MODEL), "generate", remember)
    file = tmp_path / "saved conversations.jsonl"
    lines = ["/system Be brief.", QUESTION, "/steps 2", "/set temperature=0.001", f"/save {file}", OTHER_QUESTION]
    lines += ["/new", f"/save {file}", "/system", OTHER_QUESTION, f"/save {file}", "/set"]
    status, written = chat("".join(f"{line}\r" for line in lines) + CTRL_D)

    assert status == 0
    system = {"role": "system", "content": "Be brief."}
    assert [len(turns) for turns in asked] == [2, 4, 1]
    assert asked[0][0] == asked[1][0] == system
    assert given == [{}, {"steps": 2, "temperature": 0.001}, {"steps": 2, "temperature": 0.001}]
    rows = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == [system, *[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": FACT.name}]]
    assert rows[1][0] == {"role": "user", "content": OTHER_QUESTION} and len(rows) == 2
    assert "steps=2 temperature=0.001\n" in written


def test_settings_are_listed_beside_the_preset(chat) -> None:
    _, written = chat(f"/set\r/steps 4\r/set\r{CTRL_D}", "--preset", "llada")
    assert written.splitlines()[-2:] == ['preset="llada"', 'preset="llada" steps=4']


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "/etc/passwd says what?",
            "There is no command /etc/passwd; /help lists them. To send",
        ),
        ("/set blocklength=4", "Unknown generation setting: `blocklength` (write `block_length`)."),
        ("/set block_length=0", "`block_length` must be a positive"),
        ("/set steps", "write `--set NAME=VALUE`"),
        ("/steps many", "`steps` must be a positive"),
        ("/save", "Write /save FILE."),
        ("/save nowhere.jsonl", "There is nothing to save yet."),
        ("/trace", "Write /trace FILE, with a name that ends in .html"),
        ("/trace answer.html", "There is no answer yet."),
        ("/load", "Write /load FILE."),
        ("/load nowhere.jsonl", "No such file or directory"),
        ("/infill no gap", "'no gap' has no gap; write ___"),
    ],
    ids=lambda value: value.split()[0] if value.startswith("/") else "",
)
def test_a_wrong_command_is_told_and_not_sent(chat, asked, capsys, line: str, message: str) -> None:
    status, _ = chat(f"{line}\r {line}\r{CTRL_D}" if line.startswith("/etc") else f"{line}\r{CTRL_D}")

    assert status == 0
    assert message in capsys.readouterr().err
    # a space before it makes it a message
    assert [turns[-1]["content"] for turns in asked] == ([line] if line.startswith("/etc") else [])


def test_a_file_that_cannot_be_written_ends_nothing(chat, asked, capsys, tmp_path: Path) -> None:
    status, written = chat(f"{QUESTION}\r/save {tmp_path}/no/folder.jsonl\r{QUESTION}\r{CTRL_D}")

    assert (status, len(asked)) == (0, 2)
    assert "No such file or directory" in capsys.readouterr().err


def test_a_conversation_goes_on_where_it_was_saved(chat, asked, capsys, tmp_path: Path) -> None:
    file = tmp_path / "saved.jsonl"
    chat(f"/system Be brief.\r{QUESTION}\r/save {file}\r{CTRL_D}")
    _, written = chat(f"/load {file}\r{OTHER_QUESTION}\r{CTRL_D}")
    assert "2 turns." in written
    assert [turn["content"] for turn in asked[-1]] == ["Be brief.", QUESTION, FACT.name, OTHER_QUESTION]

    file.write_text('{"text": "no conversation"}\n', encoding="utf-8")
    chat(f"/load {file}\r{CTRL_D}")
    assert "holds no conversation in its last line; /save FILE writes such a file" in capsys.readouterr().err


def test_an_answer_is_drawn_and_a_gap_filled(chat, capsys, tmp_path: Path) -> None:
    page, trace = tmp_path / "answer.html", tmp_path / "gap.json"
    lines = [QUESTION, f"/trace {page}", f"/infill ___2 is {FACT.description}", f"/trace {trace}", "/trace a.gif"]
    status, written = chat("".join(f"{line}\r" for line in lines) + CTRL_D)

    assert status == 0
    assert FACT.name in page.read_text(encoding="utf-8")
    assert FACT.sentence in written
    assert TOKENIZER.decode(Trace.load(trace).final, skip_special_tokens=True) == FACT.sentence
    printed = capsys.readouterr().err
    assert "'a.gif' is none of them; write a.html" in printed
    # how long each took
    assert len(re.findall(r"^\d+ forward passes in \d+\.\d\d s, \d\.\d tokens each$", printed, re.MULTILINE)) == 2


def test_help_names_every_command(chat) -> None:
    _, written = chat(f"/help\r{CTRL_D}")
    for command in ("/help", "/new", "/system", "/set", "/steps", "/infill", "/trace", "/save", "/load", "/exit"):
        assert f"\n{command} " in written


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
def test_what_was_not_read_is_not_left_to_the_shell() -> None:
    import pty
    import termios
    import tty

    from llada_cli.line_editor import _forget_what_is_waiting

    controller, terminal = pty.openpty()
    tty.setraw(terminal, termios.TCSANOW)
    os.write(controller, b"echo run by the shell\n")
    with os.fdopen(terminal, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        _forget_what_is_waiting()
        os.set_blocking(stdin.fileno(), False)
        with pytest.raises(BlockingIOError):
            os.read(stdin.fileno(), 100)
    os.close(controller)
