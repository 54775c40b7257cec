"""Train a small LLaDA and a causal model of its size on the same facts, then ask both: who is who?"""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llada.evaluation.reversal_facts import ReversalFacts

READING = """\
Both models read every fact in one direction, and saw questions in both about
other facts.
- "Who is B?" is the reversal curse: the name has to be written after words
  that it was always read before.
- "Which name is B?" lets the causal model choose among all names. If it
  chooses well, it knows the facts and cannot write them down backwards.
- "... is B" is what LLaDA is trained on: useful, out of reach for a causal
  model, and no evidence about the curse.
- "B is ..." was never shown. Reading in any order does not teach it by itself
  (arXiv 2602.02133).
- LLaDA learns from masked words only: it took {steps} steps, the causal model
  {causal_steps}.
"""
NEXT = """\
The model is in {folder}, what it learned in {folder}/facts.json. To try next:

  {llada} generate {path} --chat --delay 0.5 "{question}"
  {llada} infill {path} --delay 0.5 "___2 is {description}"
  {llada} chat {path}

or in Python, {python}:

  import llada
  from transformers import pipeline

  pipe = pipeline("text-generation", model={folder!r})
  print(pipe([{{"role": "user", "content": "{question}"}}])[0]["generated_text"][-1]["content"])
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=["facts", "digits"],
        default="facts",
        help="facts: the reversal curse; digits: a model for `llada grpo` and `llada dpo` (default: facts)",
    )
    parser.add_argument("--output-dir", help="where to save LLaDA (default: llada-demo, or llada-digits)")
    parser.add_argument("--num-facts", type=int, default=120, help="number of facts (default: 120)")
    parser.add_argument("--steps", type=int, help="training steps of LLaDA (default: 1000, or 600)")
    parser.add_argument("--causal-steps", type=int, default=250, help="of the causal model (default: 250)")
    parser.add_argument("--seed", type=int, default=0, help="seed of facts, weights and masks (default: 0)")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds that every step is shown (default: 0.5)")


def run(args: argparse.Namespace) -> None:
    if args.task == "digits":
        from .digits_demo import run_digits

        args.output_dir, args.steps = args.output_dir or "llada-digits", args.steps or 600
        run_digits(args, how_to_call()[0])
        return
    args.output_dir, args.steps = args.output_dir or "llada-demo", args.steps or 1000
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    from llada.evaluation.reversal_facts import draw_facts
    from llada.evaluation.reversal_scores import evaluate_reversal, format_table

    from .demo_training import train_causal_twin, train_llada

    logging.disable_progress_bar()
    # a network of this size is fastest on one thread
    torch.set_num_threads(1)
    facts = draw_facts(args.num_facts, seed=args.seed)
    asked = facts.demonstrated[0]
    print(
        f"{args.num_facts} invented facts, written in one direction:\n\n"
        f"  {asked.sentence}\n\n"
        f"Questions in both directions about {len(facts.demonstrated)} of them:\n\n"
        f"  {' '.join(asked.forward)}\n"
        f"  {' '.join(asked.reverse)}\n\n"
        "The same rows for two models of the same size:\n"
    )
    train_llada(facts, args.output_dir, args.steps, args.seed)
    twin = train_causal_twin(facts, args.causal_steps, args.seed)

    model = AutoModelForMaskedLM.from_pretrained(args.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(args.output_dir)
    show_answers(model, twin, tokenizer, facts, args.delay)

    print(f'\nRight answers about the {len(facts.held_out)} facts "A is B" without questions:\n')
    results = {
        "LLaDA": evaluate_reversal(model, tokenizer, facts),
        "causal": evaluate_reversal(twin, tokenizer, facts),
    }
    print(format_table(results))
    print(f"\n{READING.format(steps=args.steps, causal_steps=args.causal_steps)}")
    example = facts.held_out[0]
    llada, python = how_to_call()
    print(
        NEXT.format(
            llada=llada,
            python=python,
            folder=args.output_dir,
            path=shlex.quote(args.output_dir),
            question=example.reverse[0],
            description=example.description,
        )
    )


def how_to_call() -> tuple[str, str]:
    """What to type for this program and for its Python: the shell may not find either by name."""
    python = _as_typed(sys.executable)
    program = Path(sys.argv[0])
    if program.stem == "llada" and program.is_file():
        return _as_typed(str(program)), python
    return f"{python} -m llada", python


def _as_typed(program: str) -> str:
    path = Path(os.path.abspath(program))
    found = shutil.which(path.name)
    if found is not None and os.path.abspath(found) == str(path):
        return path.name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def show_answers(
    model: "PreTrainedModel",
    twin: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    facts: "ReversalFacts",
    delay: float,
) -> None:
    """Asks reversed questions about facts that no question was seen about, and shows LLaDA's answers grow."""
    from transformers import pipeline

    from llada.evaluation.reversal_scores import answer
    from llada.generation.listeners.terminal import TerminalStreamer

    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    print("\nReloaded with AutoModelForMaskedLM.from_pretrained, asked through pipeline():")
    for fact in facts.held_out[:3]:
        question, name = fact.reverse
        print(f"\n{question}")
        pipe([{"role": "user", "content": question}], streamer=TerminalStreamer(tokenizer, delay=delay))
        (causal,) = answer(twin, tokenizer, [f"{question}\n"])
        print(f"  the causal model says {causal}; it is {name}")
    print("\nFilling gaps, whatever stands on either side:\n")
    gaps = tokenizer.mask_token * len(name.split())
    _, rest = fact.description.split(" ", 1)
    inputs = tokenizer(f"{gaps} is {tokenizer.mask_token} {rest}{tokenizer.eos_token}", return_tensors="pt")
    model.infill(**inputs, streamer=TerminalStreamer(tokenizer, skip_prompt=False, delay=delay))


__all__ = ["add_parser", "run"]
