"""Talk to a model, turn by turn. `/help` lists what else may be typed, Ctrl-D ends."""

import argparse
import sys

from .errors import explain
from .sampling import add_sampling_arguments, check_chat_template, load


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from .conversation import Conversation
    from .line_editor import piped_messages, typed_messages

    model, tokenizer, settings = load(args)
    check_chat_template(tokenizer)
    conversation = Conversation(model, tokenizer, settings, args)
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        args.stats = True
        print("Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, /help lists the rest, Ctrl-D ends.")
    for line in typed_messages() if typed else piped_messages():
        if not line.strip():
            continue
        try:
            if not line.startswith("/"):
                conversation.ask(line.strip())
            elif not conversation.obey(line.rstrip()):
                return
        except KeyboardInterrupt:
            if not typed:
                raise
            print("Stopped; the conversation is as it was before the question.")
        except Exception as error:
            if args.traceback:
                raise
            # most likely the conversation got too long
            hint = "" if line.startswith("/") else " `/new` starts over."
            print(f"llada chat: {explain(error)}{hint}", file=sys.stderr)


__all__ = ["add_parser", "run"]
