"""Show what dtype, batch, attention and threads change in what a checkpoint writes.

  llada doctor FOLDER
  llada doctor FOLDER --prompt "What is the capital of France?" --chat --dtype float16 --length-factor 0

Everything is compared with the checkpoint as it is, one prompt at a time. The bound is that of texts longer than those
it was trained on, beside the same tokens in windows of that length.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .checkpoints import check_name, load_checkpoint
from .errors import check_text
from .sampling import check_chat_template, read_setting


if TYPE_CHECKING:
    from llada.evaluation.numerics import Surroundings

_PROMPTS = (
    "What is the capital of France?",
    "Write two lines about rain.",
    "Count from one to ten, and then back again to one.",
    "Why is the sky blue?",
)
_COLUMNS = ("largest_logit", "mean_logit", "predictions", "steps", "tokens", "answers")


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub id of a checkpoint")
    parser.add_argument("--prompt", action="append", help="a prompt, several times; four questions if not given")
    parser.add_argument("--chat", action="store_true", help="prompts are questions of a user")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="tokens of an answer (32)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any field of DiffusionGenerationConfig"
    )
    parser.add_argument("--dtype", action="append", help="dtypes to try; float32 and bfloat16 if not given")
    parser.add_argument("--attention", action="append", help="attention back-ends to try; eager if not given")
    parser.add_argument("--threads", type=int, help="threads to try on a CPU; 1, or 2 if that is how it runs")
    parser.add_argument("--length-factor", type=int, default=2, help="length of the texts in windows (2), 0 for none")
    parser.add_argument("--text", help="a long text (UTF-8); what `help()` shows about Python if not given")
    parser.add_argument("--num-texts", type=int, default=1, help="pieces of the text that are scored (1)")
    parser.add_argument("--num-draws", type=int, default=8, help="masks of each (8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--device-map", help="how to spread the model, e.g. auto (needs accelerate)")


def run(args: argparse.Namespace) -> None:
    if args.length_factor < 0 or args.length_factor == 1:
        raise ValueError(f"`--length-factor {args.length_factor}` is no longer text; write 2 or more, or 0 for none.")
    if args.num_texts < 1:
        raise ValueError(f"`--num-texts {args.num_texts}` is no text; write at least 1, or `--length-factor 0`.")
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"`--threads {args.threads}` computes nothing; write at least 1.")
    prompts = [check_text(prompt) for prompt in args.prompt or _PROMPTS]
    settings = {"max_new_tokens": args.max_new_tokens, **dict(map(read_setting, args.set))}
    check_name(args.model)

    import torch
    from tqdm import tqdm

    from llada.evaluation.numerics import find_differences
    from llada.evaluation.position_bound import bound_by_position

    model, tokenizer = load_checkpoint(args)
    variants = dict(_variants(args, model))
    # before the minutes of the rest
    texts = None
    if args.length_factor and not model.config.block_causal:
        texts = _long_texts(args, tokenizer, model.config.longest_text)
    if args.chat:
        check_chat_template(tokenizer)
        ids = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            for prompt in prompts
        ]
    else:
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    loaded = [model]
    del model

    def load(dtype: torch.dtype | None):
        return loaded.pop() if dtype is None else load_checkpoint(args, dtype)[0]

    if texts is not None:
        bounds = bound_by_position(loaded[0], texts, num_draws=args.num_draws, seed=args.seed)
    found = find_differences(load, ids, variants, seed=args.seed, **settings)
    differences = list(tqdm(found, total=len(variants), desc="comparing", disable=None, dynamic_ncols=True))
    if args.json:
        for entry in (*differences, *(bounds if texts is not None else ())):
            print(json.dumps(asdict(entry)))
        return
    compared = f"{differences[0].num_answers} answers, logits of {differences[0].num_positions} masked positions"
    print(
        f"{compared}.\nLargest and mean change of a logit; shares of predictions, positions and answers that differ:\n"
    )
    width = max(len(entry.name) for entry in differences)
    print(f"{'':{width}}  {'largest':>9} {'mean':>9} {'predicted':>9} {'step':>7} {'token':>7} {'answer':>7}")
    for entry in differences:
        logits = f"{entry.largest_logit:9.2g} {entry.mean_logit:9.2g}"
        shares = f"{entry.predictions:9.1%} {entry.steps:7.1%} {entry.tokens:7.1%} {entry.answers:7.1%}"
        print(f"{entry.name:{width}}  {logits} {shares}")
    if texts is None:
        if args.length_factor:
            print("\nThis model writes in blocks; how likely long texts are is not measured by position.")
        return
    print(f"\nBound in nats per token, {len(texts)} x {texts.shape[1]} tokens, {args.num_draws} masks each:\n")
    print(f"{'positions':>15} {'in text':>9} {'in window':>9} {'difference':>19}")
    for part in bounds:
        places = f"{part.start}-{part.end - 1}"
        change = f"{part.difference:+9.3f} ± {part.standard_error:7.3f}"
        print(f"{places:>15} {part.in_text:9.3f} {part.in_window:9.3f} {change:>19}")


def _variants(args: argparse.Namespace, model: Any) -> "Iterator[tuple[str, Surroundings]]":
    """What is changed, by its name."""
    import torch

    from llada.evaluation.numerics import Surroundings

    own = str(model.dtype).removeprefix("torch.")
    yield "again", Surroundings()
    yield "all in one batch", Surroundings(together=True)
    for attention in args.attention or ["eager"]:
        yield f"{attention} attention, not {model.config._attn_implementation}", Surroundings(attention=attention)
    if model.device.type == "cpu":
        threads = args.threads or (2 if torch.get_num_threads() == 1 else 1)
        yield f"{threads} thread(s), not {torch.get_num_threads()}", Surroundings(num_threads=threads)
    for name in args.dtype or [other for other in ("float32", "bfloat16") if other != own]:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"`--dtype {name}` is no dtype of weights; write e.g. float32, bfloat16 or float16.")
        yield f"{name}, not {own}", Surroundings(dtype=dtype)


def _long_texts(args: argparse.Namespace, tokenizer: Any, window: int) -> Any:
    """
    Pieces of a long text, `(texts, length)`.

    Raises:
        ValueError: If the text is too short.
    """
    import torch

    if args.text is None:
        from pydoc_data.topics import topics

        text = "\n".join(page for _, page in sorted(topics.items()))
    else:
        with open(args.text, encoding="utf-8") as file:
            text = file.read()
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    length = args.length_factor * window
    if len(ids) < args.num_texts * length:
        raise ValueError(
            f"{args.text or 'The documentation of Python'} has {len(ids)} tokens, too few for {args.num_texts} x "
            f"{length}; give a longer one with `--text`, a smaller `--length-factor`, or 0 for none."
        )
    print(f"Scoring {args.num_texts} x {length} tokens, for the bound by position.", file=sys.stderr)
    return torch.tensor(ids[: args.num_texts * length]).view(args.num_texts, length)


__all__ = ["add_parser", "run"]
