"""What reaches a terminal."""

import sys
import unicodedata

import pytest

from llada.generation.printable import escaped, printable


def test_text_of_any_language_stays() -> None:
    text = "Größe\t大きい\nمرحبا שלום 👩\u200d💻 \u200e🇪🇺 e\u0301"
    assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "\033[2J",
        "\033]0;title\007",
        "\033]52;c;aGk=\033\\",
        "\x9b31m",
        "\x9d0;title\x9c",
        "a\rb",
        "\b\b",
        "\x7f",
        "\x85",
    ],
    ids=ascii,
)
def test_escape_sequences_lose_their_beginning(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(char) == "Cc" for char in shown)


@pytest.mark.parametrize("char", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ud800", ids=ascii)
def test_what_reorders_or_breaks_lines_becomes_a_space(char: str) -> None:
    assert printable(f"a{char}b") == "a b"


def test_only_line_feeds_and_tabs_of_all_control_characters_pass() -> None:
    controls = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"]
    assert len(controls) == 65
    assert [char for char in controls if printable(char) == char] == ["\t", "\n"]


def test_names_are_escaped_into_one_line() -> None:
    name = "lm_head\n$(rm -rf ~)\033[2J\u202e\x9b\U000e0001 Größe"
    assert escaped(name) == r"lm_head\n$(rm -rf ~)\x1b[2J\u202e\x9b\U000e0001 Größe"
    assert eval(f'"{escaped(name)}"') == name
