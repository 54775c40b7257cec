"""
Four small tasks for lm-evaluation-harness that need no network: they ask a checkpoint of `llada demo` about the facts
in its folder that it was never asked about.

| task | what it asks | kind |
|---|---|---|
| `llada_facts_forward` | who a name is | `generate_until` |
| `llada_facts_reverse` | who fits a description, in the direction that was never stated | `generate_until` |
| `llada_facts_choice` | the same, among four names | `multiple_choice` |
| `llada_facts_text` | how likely the sentences are | `loglikelihood_rolling` |
"""

import random
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from .reversal_facts import ReversalFacts


# for `--include_path`
TASKS_FOLDER = Path(__file__).parent / "tasks"
_NUM_CHOICES = 4


def load_facts(pretrained: Any = None, **kwargs: Any) -> DatasetDict:
    """
    The facts of a demo checkpoint, as a data set of the harness.

    Args:
        pretrained (`str`):
            The folder of the checkpoint: the harness passes the model arguments on to data sets.
        kwargs (`dict[str, Any]`, *optional*):
            Other model arguments, which do not matter.

    Returns:
        [`~datasets.DatasetDict`]: A split `test` with `sentence`, `forward`, `reverse` (questions), `name`,
        `description`, `choices` and `answer` (the number of the right one).

    Raises:
        ValueError: If the folder is none of `llada demo`.
    """
    path = Path(str(pretrained)) / "facts.json"
    if not path.is_file():
        raise ValueError(
            f"There is no {path}: the tasks `llada_facts_*` ask about the facts that `llada demo` leaves in the "
            "folder of its checkpoint. Run it, and write `--model_args pretrained=` and that folder."
        )
    facts = ReversalFacts.load(path).held_out
    rows = []
    for number, fact in enumerate(facts):
        rng = random.Random(number)
        others = [other.name for other in facts if other is not fact]
        choices = [fact.name, *rng.sample(others, min(_NUM_CHOICES - 1, len(others)))]
        rng.shuffle(choices)
        rows.append(
            {
                "sentence": fact.sentence,
                "forward": f"{fact.forward[0]}\n",
                "reverse": f"{fact.reverse[0]}\n",
                "name": fact.name,
                "description": fact.description,
                "choices": choices,
                "answer": choices.index(fact.name),
            }
        )
    return DatasetDict({"test": Dataset.from_list(rows)})


__all__ = ["TASKS_FOLDER", "load_facts"]
