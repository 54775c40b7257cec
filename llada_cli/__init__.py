"""
The command line: a thin layer over the library. Each command is a module with `add_parser` and `run`.

It lies beside `llada`, because that costs seconds to import: help, and mistakes in what was typed, do not wait for it.
What a command needs of `llada`, torch and transformers is imported when it runs.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .errors import explain, read_utf8


COMMANDS = (
    "chat",
    "convert",
    "demo",
    "distill",
    "doctor",
    "dpo",
    "eval",
    "export",
    "generate",
    "grpo",
    "infill",
    "lm-eval",
    "merge",
    "pretrain",
    "reversal",
    "score",
    "sft",
    "twin",
)
# their options are those of dataclasses or of another program, and the command reads them itself
_WITH_PARSER = ("distill", "dpo", "grpo", "lm-eval", "pretrain", "sft")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments. Those of the process if not given.

    Returns:
        `int`: The exit status: 0, 1 if what the user asked for cannot be done, 130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(prog="llada", description="Masked diffusion language models of the LLaDA family.")
    parser.add_argument("--version", action="store_true", help="print the versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    modules = {name: import_module(f".{name.replace('-', '_')}", __name__) for name in COMMANDS}
    for name, module in modules.items():
        summary, _, details = str(module.__doc__).partition("\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=name not in _WITH_PARSER,
            allow_abbrev=name not in _WITH_PARSER,
        )
        module.add_parser(command)
        command.add_argument("--traceback", action="store_true", help="show where in the code an error came up")
    args, args.rest = parser.parse_known_args(argv)
    if args.version:
        print(_versions())
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    if args.rest and args.command not in _WITH_PARSER:
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    try:
        read_utf8(sys.stdin)
        modules[args.command].run(args)
        # a full disk shows here
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        # training says how to go on
        if interruption.args:
            print(f"llada {args.command}: {interruption}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read has had enough, as `head` has
        _drop_output()
        return 141
    except Exception as error:
        if args.traceback:
            raise
        print(f"llada {args.command}: {explain(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 1
    return 0


def _drop_output() -> None:
    """Keeps Python from writing once more, at exit, what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _versions() -> str:
    """Of the package, read in its source, and of what it stands on, without importing either."""
    spec = find_spec("llada")
    assert spec is not None and spec.origin is not None, "it is installed with this package"
    found = re.search(r'^__version__ = "(.+)"$', Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, "`llada/__init__.py` names its version"
    others = []
    for name in ("transformers", "torch"):
        try:
            others.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            others.append(f"no {name}")
    return f"llada {found[1]} ({', '.join(others)}, Python {sys.version.split()[0]})"


__all__ = ["COMMANDS", "main"]
