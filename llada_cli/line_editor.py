"""What a user types into the chat, one message at a time."""

import contextlib
import sys
from collections.abc import Iterator


def typed_messages() -> Iterator[str]:
    """
    Messages from an editor, until Ctrl-D. Text that is pasted stays one message until Enter is pressed, blank lines
    included; Ctrl-C clears the line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        event.current_buffer.validate_and_handle()

    # a line feed, too: what was pasted before the editor listened comes with these
    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", multiline=True, prompt_continuation="  ", key_bindings=keys)
    try:
        while True:
            try:
                yield session.prompt()
            except KeyboardInterrupt:
                print("Ctrl-D or /exit ends.")
            except EOFError:
                return
    finally:
        _forget_what_is_waiting()


def piped_messages() -> Iterator[str]:
    """Messages from a file or another program, one per line."""
    for line in sys.stdin:
        yield line.rstrip("\n")


def _forget_what_is_waiting() -> None:
    """Drops what was typed or pasted and not read: the shell would run it."""
    if sys.platform != "win32":
        import termios

        # standard input may be closed by now
        with contextlib.suppress(termios.error, ValueError):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)


__all__ = ["piped_messages", "typed_messages"]
