"""Say how likely answers are, in nats.

  llada score FOLDER "The capital of France is" " Paris." " Rome."
  llada score FOLDER --file pairs.jsonl > scores.jsonl

The file holds one {"prompt": ..., "answer": ...} per line; what is printed of it has the same lines, with scores.
A space before a word belongs to the answer.
"""

import argparse
import contextlib
import json
import sys
from typing import Any

from .checkpoints import check_name, load_checkpoint
from .errors import check_text


# pairs that are scored before the next are read
_AT_ONCE = 64
_NAMES = ("prompt", "answer")


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("prompt", nargs="?", help="the text before the answers")
    parser.add_argument("answers", nargs="*", metavar="answer", help="what may follow")
    parser.add_argument("--file", help="pairs as JSON lines, instead of a prompt and answers; - for standard input")
    parser.add_argument("--chat", action="store_true", help="prompts are questions, answers those of the assistant")
    parser.add_argument(
        "--estimator",
        default="monte_carlo",
        help="monte_carlo (default), reference, exact, left_to_right, right_to_left, any_order, pseudo, confidence",
    )
    parser.add_argument("--num-draws", type=int, help="masks (128) or orders (8) that are drawn")
    parser.add_argument("--cfg-scale", type=float, default=0.0, help="strength of guidance")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn")
    parser.add_argument("--device-map", help="how to spread the model, e.g. auto (needs accelerate)")


def run(args: argparse.Namespace) -> None:
    if (args.file is None) == (not args.answers):
        raise ValueError("What is to be scored? Write a prompt and at least one answer, or `--file`.")
    if args.file is not None and args.prompt is not None:
        raise ValueError(f"`--file` brings its own prompts; leave out {args.prompt!r}.")
    if args.file is None:
        pairs = [{"prompt": check_text(args.prompt), "answer": check_text(answer)} for answer in args.answers]
    else:
        pairs = _read(args.file)
    check_name(args.model)

    from tqdm import tqdm

    from llada.evaluation.likelihood import log_likelihood

    model, tokenizer = load_checkpoint(args)
    settings = {name: getattr(args, name) for name in ("estimator", "num_draws", "cfg_scale", "batch_size", "seed")}
    for first in tqdm(range(0, len(pairs), _AT_ONCE), desc="scoring", disable=None, dynamic_ncols=True):
        batch = pairs[first : first + _AT_ONCE]
        prompts, answers = ([pair[name] for pair in batch] for name in _NAMES)
        scores = log_likelihood(model, tokenizer, prompts, answers, apply_chat_template=args.chat, **settings)
        found = [
            {
                "log_likelihood": float(scores.log_likelihood[row]),
                "standard_error": float(scores.standard_error[row]),
                "num_tokens": int(scores.num_tokens[row]),
            }
            for row in range(len(batch))
        ]
        if args.file is None:
            _show(answers, found)
        else:
            for pair, score in zip(batch, found, strict=True):
                print(json.dumps({**pair, **score}, ensure_ascii=False), flush=True)


def _show(answers: list[str], found: list[dict[str, Any]]) -> None:
    from llada.generation.printable import printable

    best = max(score["log_likelihood"] for score in found)
    for answer, score in zip(answers, found, strict=True):
        sign = "*" if score["log_likelihood"] == best else " "
        number = f"{score['log_likelihood']:10.3f} ± {score['standard_error']:.3f}"
        print(f"{sign}{number}  {score['num_tokens']:4d} tokens  {printable(answer)!r}")


def _read(name: str) -> list[dict[str, Any]]:
    """
    The pairs of a file.

    Raises:
        ValueError: If a line is no pair of texts.
    """
    with contextlib.ExitStack() as stack:
        lines = sys.stdin if name == "-" else stack.enter_context(open(name, encoding="utf-8"))
        pairs = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pair = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} of {name} is no JSON ({error}).") from error
            if not isinstance(pair, dict) or not all(isinstance(pair.get(part), str) for part in _NAMES):
                raise ValueError(f'Line {number} of {name} is no pair; write {{"prompt": "...", "answer": "..."}}.')
            pairs.append(pair)
    if not pairs:
        raise ValueError(f"{name} holds no pair.")
    return pairs


__all__ = ["add_parser", "run"]
