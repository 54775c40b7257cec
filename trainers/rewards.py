"""Rewards for [`~llada.LLaDAGRPOTrainer`], beside any function of TRL's kind."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset


def text_of(completion: str | list[dict[str, str]]) -> str:
    """What an answer says, be it text or messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match(completions: list[Any], answer: list[Any], **kwargs) -> list[float]:
    """
    1 for an answer that is the right one, spaces around it aside, and 0 for others.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            The answers.
        answer (`list`):
            The right ones, from the column `answer` of the dataset.
        kwargs (*optional*):
            What else the trainer gives, not used.

    Returns:
        `list[float]`: A reward for each.
    """
    pairs = zip(completions, answer, strict=True)
    return [float(text_of(completion).strip() == str(wanted).strip()) for completion, wanted in pairs]


def reasoning_gym_task(
    name: str, size: int = 500, seed: int = 0, as_messages: bool = True, **settings
) -> tuple[Dataset, Callable[..., list[float]]]:
    """
    A task of reasoning-gym: prompts, and the function that scores answers to them. Needs the extra `rl`.

    Args:
        name (`str`):
            Name of the task, e.g. `"countdown"`.
        size (`int`, *optional*, defaults to 500):
            Number of prompts.
        seed (`int`, *optional*, defaults to 0):
            Seed of the prompts.
        as_messages (`bool`, *optional*, defaults to `True`):
            Whether a prompt is a conversation with one turn, or a text that ends with a line break.
        settings (*optional*):
            Settings of the task.

    Returns:
        `tuple`: a [`~datasets.Dataset`] with the columns `prompt`, `answer` and `entry`, and a reward function, whose
        values are reasoning-gym's, between 0 and 1.

    Raises:
        ImportError: If reasoning-gym is not installed.
        ValueError: If there is no such task or setting.

    Example:

    ```python
    >>> from llada import LLaDAGRPOConfig, LLaDAGRPOTrainer
    >>> from llada.trainers import reasoning_gym_task

    >>> dataset, reward = reasoning_gym_task("countdown", size=1000)
    >>> trainer = LLaDAGRPOTrainer(model, reward, LLaDAGRPOConfig("countdown"), train_dataset=dataset)
    ```
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("`reasoning_gym_task` needs reasoning-gym: pip install 'llada-hf[rl]'") from error
    try:
        task = reasoning_gym.create_dataset(name, size=size, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym has no task {name!r} with the settings {settings}: {error}") from error
    entries = [task[index] for index in range(size)]
    prompts = [[{"role": "user", "content": entry["question"]}] for entry in entries]
    dataset = Dataset.from_dict(
        {
            "prompt": prompts if as_messages else [f"{entry['question']}\n" for entry in entries],
            "answer": [str(entry["answer"]) for entry in entries],
            "entry": list(range(size)),
        }
    )

    def reward(completions: list[Any], entry: list[int], **kwargs) -> list[float]:
        pairs = zip(completions, entry, strict=True)
        return [float(task.score_answer(text_of(completion).strip(), entries[index])) for completion, index in pairs]

    reward.__name__ = name
    return dataset, reward


__all__ = ["exact_match", "reasoning_gym_task", "text_of"]
