"""Continue a text, or answer a question, or a file of them.

  llada generate MODEL "The capital of France is"
  llada generate MODEL --input questions.jsonl --output answers.jsonl --batch-size 16

The file has one JSON object in a line, with a `prompt`, with `messages`, or with a `text` whose gaps (___) are to be
filled. What is written has the same rows, with an `answer` or an `error`. An interrupted command goes on where it was;
`accelerate launch -m llada generate ...` shares the rows among devices.
"""

import argparse
from pathlib import Path

from .sampling import add_sampling_arguments, chat_inputs, load, read_text, sample, show


def add_parser(parser: argparse.ArgumentParser) -> None:
    add_sampling_arguments(parser)
    prompt = parser.add_argument("prompt", help="the text, - for standard input")
    parser.add_argument(
        "--input",
        action=_Prompts,
        instead_of=prompt,
        type=Path,
        metavar="FILE",
        help="rows to answer, as JSON lines, instead of a text",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the answers go")
    parser.add_argument("--batch-size", type=int, default=8, help="rows that are answered together (default: 8)")
    parser.add_argument("--chat", action="store_true", help="put the text into the chat template, as a question")


class _Prompts(argparse.Action):
    """A file of prompts. The argument that it stands for is then not asked for."""

    def __init__(self, *args, instead_of: argparse.Action, **kwargs):
        super().__init__(*args, **kwargs)
        self.instead_of = instead_of

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        self.instead_of.required = False


def run(args: argparse.Namespace) -> None:
    if args.input is not None:
        _check_files(args)

        from .answer_file import write_answers

        write_answers(args)
        return
    prompt = read_text(args.prompt)
    model, tokenizer, settings = load(args)
    if args.chat:
        inputs = chat_inputs(tokenizer, [{"role": "user", "content": prompt}])
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    output = sample(model.generate, inputs, tokenizer, settings, args)
    show(output.sequences[:, inputs["input_ids"].shape[1] :], tokenizer, settings)


def _check_files(args: argparse.Namespace) -> None:
    """
    Refuses what does not go with a file of prompts.

    Raises:
        ValueError: If there is such an option.
    """
    if args.prompt is not None:
        raise ValueError(f"`--input` brings its own prompts; leave out {args.prompt!r}.")
    if args.output is None:
        raise ValueError("Where do the answers go? Write `--output FILE`.")
    if args.output.absolute() == args.input.absolute():
        raise ValueError("`--output` would overwrite `--input`; name another file.")
    if args.batch_size < 1:
        raise ValueError(f"`--batch-size {args.batch_size}` is no number of rows; write 1 or more.")
    if args.trace is not None:
        raise ValueError("`--trace` shows how one text came about; leave it out, or give one prompt.")
    if args.num_return_sequences not in (None, 1):
        raise ValueError("A row gets one answer; leave out `--num-return-sequences`, and repeat rows.")


__all__ = ["add_parser", "run"]
