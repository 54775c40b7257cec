"""The shipped tasks on several processes, started by `evaluation/test_harness.py`: writes the answers."""

import json
import sys
from pathlib import Path

import lm_eval.evaluator
import torch
from demo_checkpoint import DEMO_FOLDER
from lm_eval.tasks import TaskManager

from llada.evaluation.harness_model import LLaDALM
from llada.evaluation.harness_tasks import TASKS_FOLDER


__all__ = ["answer_tasks"]

TASKS = ["llada_facts_reverse", "llada_facts_choice", "llada_facts_text"]


def answer_tasks(batch_size: int) -> dict[str, list] | None:
    """
    Answers the tasks, a part of them in each process.

    Returns:
        `dict[str, list]`: The answers to each document by its task and number, in the first process.
    """
    # asks many programs about this machine, which takes seconds
    lm_eval.evaluator.add_env_info = lambda results: None
    model = LLaDALM(str(DEMO_FOLDER), num_draws=8, temperature=1.0, batch_size=batch_size)
    manager = TaskManager(
        include_path=str(TASKS_FOLDER), include_defaults=False, metadata={"pretrained": str(DEMO_FOLDER)}
    )
    results = lm_eval.simple_evaluate(model, tasks=TASKS, task_manager=manager, limit=7, bootstrap_iters=0)
    if results is None:
        return None
    return {
        f"{task} {sample['doc_id']}": [one[0] if isinstance(one, tuple) else one for (one,) in sample["resps"]]
        for task, samples in results["samples"].items()
        for sample in samples
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = answer_tasks(batch_size=1)
    if answers is not None:
        Path(sys.argv[1]).write_text(json.dumps(answers), encoding="utf-8")
