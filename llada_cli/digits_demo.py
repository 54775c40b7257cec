"""A small model that answers in three ways, and what teaches it by rewards or preferences which one is wanted."""

import argparse
import json
import random
from pathlib import Path


RECIPES = Path(__file__).parent / "recipes"
NEXT = """\
It has seen four digits answered in three ways, as often each. Of those it draws
at temperature 1, {shares}. Reversed ones are wanted, which nothing has told
it yet. {folder}/prompts.jsonl has questions with the wanted answer, for rewards,
{folder}/pairs.jsonl has a wanted and an unwanted one, for preferences:

  {llada} grpo --config {recipes}/digits-grpo-elbo.yaml \\
      --model_name_or_path {folder} --dataset_name {folder}/prompts.jsonl
  {llada} dpo --config {recipes}/digits-dpo.yaml \\
      --model_name_or_path {folder} --dataset_name {folder}/pairs.jsonl

`digits-grpo-trajectory.yaml` and `digits-grpo-diffu.yaml` look at answers in other ways.
"""


def run_digits(args: argparse.Namespace, program: str) -> None:
    """
    Trains the model that `llada demo --task digits` writes, and its data.

    Args:
        args (`argparse.Namespace`): What was typed.
        program (`str`): What to type for this program.
    """
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForMaskedLM, set_seed
    from transformers.utils import logging

    from llada import LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer
    from llada.evaluation.digit_orders import NUM_DIGITS, ORDERS, build_digit_tokenizer, draw_digits

    from .demo_training import TRAINING, build_config
    from .progress import LossBar

    logging.disable_progress_bar()
    disable_progress_bars()
    # a network of this size is fastest on one thread
    torch.set_num_threads(1)
    folder, chance = Path(args.output_dir), random.Random(args.seed)
    tokenizer = build_digit_tokenizer()
    set_seed(args.seed)
    model = LLaDAModelLM(build_config(tokenizer))
    rows = [
        {"prompt": row["prompt"], "completion": f" {row[chance.choice([*ORDERS])]}"}
        for row in draw_digits(20_000, args.seed)
    ]
    config = LLaDASFTConfig(
        output_dir=args.output_dir,
        max_steps=args.steps,
        seed=args.seed,
        mask_sampling="exact",
        ratio_sampling="stratified",
        loss_normalization="batch",
        # all answers have one length
        eos_fill="none",
        min_eos=0,
        **TRAINING | {"per_device_train_batch_size": 64},
    )
    trainer = LLaDASFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    for callback in LossBar.replaces:
        trainer.remove_callback(callback)
    trainer.add_callback(LossBar("LLaDA"))
    trainer.train()
    # what `generate` uses where it is told nothing
    model.generation_config.update(max_new_tokens=NUM_DIGITS, block_length=NUM_DIGITS, max_denoising_steps=NUM_DIGITS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    questions = draw_digits(512, args.seed + 1)
    unwanted = [name for name in ORDERS if name != "reversed"]
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"], "answer": row["reversed"]} for row in questions])
    write_rows(
        folder / "pairs.jsonl",
        [
            {"prompt": row["prompt"], "chosen": f" {row['reversed']}", "rejected": f" {row[chance.choice(unwanted)]}"}
            for row in questions
        ],
    )
    found = answer_shares(AutoModelForMaskedLM.from_pretrained(folder), tokenizer)
    print(
        NEXT.format(
            shares=", ".join(f"{share:.0%} are {name}" for name, share in found.items()),
            folder=args.output_dir,
            llada=program,
            recipes=RECIPES,
        )
    )


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows to a .jsonl file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def answer_shares(model, tokenizer, number: int = 400, temperature: float = 1.0, seed: int = 2) -> dict[str, float]:
    """
    How often a model answers new questions in which way.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        number (`int`): Number of questions.
        temperature (`float`): At which temperature it answers.
        seed (`int`): Seed of questions and answers.

    Returns:
        `dict[str, float]`: The share of every order.
    """
    import torch

    from llada.evaluation.digit_orders import NUM_DIGITS, ORDERS, draw_digits

    questions = draw_digits(number, seed)
    inputs = tokenizer([row["prompt"] for row in questions], return_tensors="pt")
    rows = model.eval().generate(
        **inputs,
        max_new_tokens=NUM_DIGITS,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
    )
    said = tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    counts = {
        name: sum(text.strip() == row[name] for text, row in zip(said, questions, strict=True)) for name in ORDERS
    }
    return {name: count / number for name, count in counts.items()}


__all__ = ["RECIPES", "answer_shares", "run_digits", "write_rows"]
