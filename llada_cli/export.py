"""Check that a serving engine loads a checkpoint, and print how to launch it."""

import argparse


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", choices=["sglang"], help="the engine")
    parser.add_argument("folder", help="folder of a LLaDA2.0, 2.1 or 2.2 checkpoint, with its tokenizer")
    parser.add_argument("--preset", help="published settings, e.g. llada2.1-speed (default: generation_config.json)")
    parser.add_argument("--tp-size", type=int, default=1, help="number of GPUs that share the weights (default: 1)")


def run(args: argparse.Namespace) -> None:
    from llada.export.sglang import prepare_sglang

    print(prepare_sglang(args.folder, preset=args.preset, tp_size=args.tp_size).script())


__all__ = ["add_parser", "run"]
