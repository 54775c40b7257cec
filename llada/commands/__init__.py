"""The command line: a thin layer over the library. Each command is a module with `add_parser` and `run`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module


COMMANDS = ("chat", "demo", "export", "generate", "infill", "sft")
# their options are those of dataclasses, which the command reads itself
_WITH_PARSER = ("sft",)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments. Those of the process if not given.

    Returns:
        `int`: The exit status: 0, or 2 if what the user asked for cannot be done.
    """
    parser = argparse.ArgumentParser(prog="llada", description="Masked diffusion language models of the LLaDA family.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {name: import_module(f".{name}", __name__) for name in COMMANDS}
    for name, module in modules.items():
        summary, _, details = str(module.__doc__).partition("\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=name not in _WITH_PARSER,
        )
        module.add_parser(command)
    args, args.rest = parser.parse_known_args(argv)
    if args.rest and args.command not in _WITH_PARSER:
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    try:
        modules[args.command].run(args)
    except (ImportError, OSError, ValueError) as error:
        print(f"llada {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


__all__ = ["main"]
