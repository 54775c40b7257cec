"""How many tokens a step writes before and after distillation, and whether the answers are as good."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llada import LLaDADistillConfig, LLaDADistillTrainer, LLaDAModelLM
from llada.evaluation.reversal_facts import ReversalFacts
from llada.generation import preset
from llada.trainers.trajectories import collect_trajectories

from .report import distillation_table
from .synthetic_text import FIRST_WORD, NUM_FORMS, PERIOD, draw_texts, word_tokenizer
from .trained_model import TRAINED_VOCAB


DEMO = Path(__file__).parent.parent / "tests" / "fixtures" / "llada-demo"
STUDENTS = ("random", "trajectory")


@dataclass
class Task:
    """
    What is generated, and when it is right.

    Args:
        name (`str`):
            Its name.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        prompts (`list[list[int]]`):
            Prompts that the teacher answers for its students.
        measured (`dict[str, list[list[int]]]`):
            Prompts that are measured, by name. Those of one name have the same length, or are padded on the left.
        score (`Callable`):
            Gives the share of an answer that is right, from the tokens of prompt and answer.
        max_new_tokens, block_length (`int`):
            How it is generated.
        settings (`dict[str, Any]`):
            Arguments of [`LLaDADistillConfig`].
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    measured: dict[str, list[list[int]]]
    score: Callable[[list[int], list[int]], float]
    max_new_tokens: int
    block_length: int
    settings: dict[str, Any]


@dataclass
class DistilledRow:
    """
    One model on some prompts.

    Args:
        model (`str`):
            `"teacher"`, or what was masked when the student was trained.
        prompts (`str`):
            Which prompts.
        accuracy, slow_accuracy (`float`):
            Share that is right, with `preset("fast-dllm")` and with one token in a step.
        agreement (`float`):
            Share of the tokens that the teacher writes one in a step.
        tokens_per_forward (`float`):
            With `preset("fast-dllm")`, the end of the text included.
        training_seconds (`float`):
            Of the student, the answers of the teacher not included.
    """

    model: str
    prompts: str
    accuracy: float
    slow_accuracy: float
    agreement: float
    tokens_per_forward: float
    training_seconds: float | None


def demo_task(tiny: bool = False) -> Task:
    """Questions of `llada demo`. Half of those that its checkpoint was never asked are asked in distillation."""
    tokenizer, facts = AutoTokenizer.from_pretrained(DEMO), ReversalFacts.load(DEMO / "facts.json")
    right = {}

    def ask(some: list) -> list[list[int]]:
        pairs = [pair for fact in some for pair in (fact.forward, fact.reverse)]
        prompts = [tokenizer(f"{question}\n")["input_ids"] for question, _ in pairs]
        right.update({tuple(prompt): answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)})
        return prompts

    def score(prompt: list[int], answer: list[int]) -> float:
        return float(tokenizer.decode(answer, skip_special_tokens=True).strip() == right[tuple(prompt)])

    asked, others = ask(facts.held_out[::2]), ask(facts.held_out[1::2])
    # so that the facts are not forgotten
    stated = [tokenizer(f"{name} is")["input_ids"] for name in facts.names]
    return Task(
        name="demo checkpoint",
        tokenizer=tokenizer,
        prompts=asked + ask(facts.demonstrated) + stated,
        measured={"distilled on": asked, "others": others},
        score=score,
        max_new_tokens=4,
        block_length=4,
        settings={
            "block_lengths": [4],
            "per_device_train_batch_size": 64,
            "max_steps": 2 if tiny else 100,
            "learning_rate": 5e-4,
        },
    )


def text_task(tiny: bool = False) -> Task:
    """Texts of the trained model of the other benchmarks, which go on as they began. No prompt is measured that was
    distilled on."""
    length, new = 2 * PERIOD, PERIOD if tiny else 2 * PERIOD

    def score(prompt: list[int], answer: list[int]) -> float:
        # it should not have ended
        answer = answer + [-1] * (new - len(answer))
        expected = [prompt[PERIOD + at % PERIOD] - FIRST_WORD for at in range(len(answer))]
        # a word may have the other of its two forms
        allowed = [{word, word ^ 1} if word < NUM_FORMS else {word} for word in expected]
        return sum(token - FIRST_WORD in words for token, words in zip(answer, allowed, strict=True)) / len(answer)

    return Task(
        name=f"trained model, prompt {length}, new {new}",
        tokenizer=word_tokenizer(TRAINED_VOCAB),
        prompts=draw_texts(2 if tiny else 64, length, seed=2).tolist(),
        measured={"others": draw_texts(2 if tiny else 16, length, seed=1).tolist()},
        score=score,
        max_new_tokens=new,
        block_length=32,
        settings={
            "per_device_train_batch_size": 2 if tiny else 8,
            "max_steps": 2 if tiny else 100,
            "learning_rate": 2e-4,
        },
    )


def generate(
    model: PreTrainedModel, task: Task, prompts: list[list[int]], **arguments
) -> tuple[list[list[int]], float]:
    """Answers of the full length, and tokens per forward of the traces."""
    inputs = task.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    output = model.generate(**inputs.to(model.device), **arguments, return_dict_in_generate=True, output_trace=True)
    answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    tokens = sum(len(trace.final) - trace.step_of.count(-1) for trace in output.trace)
    return answers, tokens / sum(len(trace.events) for trace in output.trace)


def compare(teacher: LLaDAModelLM, task: Task, copy: Callable[[], LLaDAModelLM]) -> list[DistilledRow]:
    """
    Distils a model with each kind of masks, and measures it and its students.

    Args:
        teacher ([`LLaDAModelLM`]):
            The model.
        task ([`Task`]):
            What is generated.
        copy (`Callable`):
            Gives a model with the weights of the teacher.

    Returns:
        `list[DistilledRow]`: The teacher first.
    """
    disable_progress_bars()
    shape = {"max_new_tokens": task.max_new_tokens, "block_length": task.block_length}
    slow = {**shape, "max_denoising_steps": task.block_length}
    fast = {"generation_config": preset("fast-dllm", **shape)}
    references = {name: generate(teacher, task, prompts, **slow)[0] for name, prompts in task.measured.items()}

    def measure(name: str, model: PreTrainedModel, seconds: float | None) -> list[DistilledRow]:
        rows = []
        for which, prompts in task.measured.items():
            answers, tokens_per_forward = generate(model, task, prompts, **fast)
            slow_answers = references[which] if model is teacher else generate(model, task, prompts, **slow)[0]
            same = [
                one == other
                for answer, reference in zip(answers, references[which], strict=True)
                for one, other in zip(answer, reference, strict=False)
            ]
            rows.append(
                DistilledRow(
                    name,
                    which,
                    _mean(map(task.score, prompts, answers)),
                    _mean(map(task.score, prompts, slow_answers)),
                    _mean(same),
                    tokens_per_forward,
                    seconds,
                )
            )
        return rows

    rows = measure("teacher", teacher, None)
    prompts = Dataset.from_dict({"input_ids": task.prompts})
    traces = collect_trajectories(teacher, task.tokenizer, prompts, batch_size=32, **slow)
    for block_masks in STUDENTS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            args = LLaDADistillConfig(
                folder,
                block_masks=block_masks,
                warmup_steps=0.1,
                bf16=False,
                use_cpu=teacher.device.type == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=500,
                dataloader_pin_memory=False,
                activation_checkpointing=False,
                **task.settings,
            )
            trainer = LLaDADistillTrainer(copy(), args, train_dataset=traces, processing_class=task.tokenizer)
            trainer.train()
        rows += measure(block_masks, trainer.model.eval(), time.perf_counter() - start)
    return rows


def measure_distillation(load_teacher: Callable[[], LLaDAModelLM], tiny: bool = False) -> list[dict[str, Any]]:
    """
    Both tasks.

    Args:
        load_teacher (`Callable`):
            Loads the trained model of the other benchmarks.
        tiny (`bool`, *optional*, defaults to `False`):
            Two steps on two rows: figures mean nothing.

    Returns:
        `list[dict]`: `task` and its `rows`.
    """
    parts = []
    for task, load in (
        (demo_task(tiny), lambda: LLaDAModelLM.from_pretrained(DEMO).eval()),
        (text_task(tiny), load_teacher),
    ):
        rows = [asdict(row) for row in compare(load(), task, load)]
        print(f"\n{task.name}\n\n{distillation_table(rows)}", flush=True)
        parts.append({"task": task.name, "rows": rows})
    return parts


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


__all__ = [
    "DEMO",
    "DistilledRow",
    "Task",
    "compare",
    "demo_task",
    "measure_distillation",
    "text_task",
]
