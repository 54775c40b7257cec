"""What twins are compared by beside their losses: exact likelihoods of short answers, and speed at equal quality."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .causal_twin import causal_answer_log_likelihood


# 63 masks to sum over
SHORT_ANSWER = 6
_MOST_SHORT_ANSWERS = 32


def score_short_answers(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], num_tokens: int = SHORT_ANSWER
) -> dict[str, tuple[float, float]]:
    """
    The likelihood of the last tokens of rows given the others, without an estimate.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked diffusion model, or a causal one, which is given its start token first.
        rows (sequence of `list[int]`):
            Rows of ids, of which 32 are scored at most.
        num_tokens (`int`, *optional*, defaults to 6):
            Tokens of an answer.

    Returns:
        `dict[str, tuple[float, float]]`: Mean and standard error over the rows, in nats per token: `exact` of a causal
        model; of the other `bound`, summed over all masks, and `left_to_right`, its chain rule in this order.
    """
    rows = [list(row) for row in rows[:_MOST_SHORT_ANSWERS]]
    prompts, answers = [row[:-num_tokens] for row in rows], [row[-num_tokens:] for row in rows]
    scorer = getattr(model, "log_likelihood", None)
    if scorer is None:
        start = model.config.bos_token_id
        scores = {"exact": causal_answer_log_likelihood(model, [[start, *prompt] for prompt in prompts], answers)}
    else:
        names = {"bound": "exact", "left_to_right": "left_to_right"}
        scores = {
            name: scorer(prompts, answers, estimator=estimator).log_likelihood for name, estimator in names.items()
        }
    return {name: _mean(-values.double() / num_tokens) for name, values in scores.items()}


@dataclass(frozen=True)
class SpeedRow:
    """
    How fast a model writes, and how good that is.

    Args:
        kind (`str`): `"causal"` or `"diffusion"`.
        batch_size (`int`): Rows that are written at once.
        steps (`int`): Forward passes for a row.
        tokens_per_second (`float`): Of all rows together.
        judged (`float`): Nats per token of what it wrote, to the judge: lower is better.
        judged_error (`float`): Its standard error over the rows.
        entropy (`float`): Of the tokens it wrote, in nats. A text that repeats itself is easy to predict: low values
            of both are no quality.
    """

    kind: str
    batch_size: int
    steps: int
    tokens_per_second: float
    judged: float
    judged_error: float
    entropy: float


def measure_speed(
    causal: PreTrainedModel,
    diffusion: PreTrainedModel,
    judge: PreTrainedModel,
    prompts: torch.Tensor,
    num_new_tokens: int,
    batch_sizes: Sequence[int] = (1, 8, 32),
    seed: int = 0,
) -> Iterator[SpeedRow]:
    """
    Lets twins continue prompts, by draws at a temperature of 1: the causal one with its cache, the other in one block,
    in random order, with fewer and fewer steps.

    Args:
        causal, diffusion ([`~transformers.PreTrainedModel`]):
            The twins.
        judge ([`~transformers.PreTrainedModel`]):
            A causal model that says how likely what they wrote is.
        prompts (`torch.LongTensor` of shape `(rows, length)`):
            What to continue. Every setting continues all of it, in batches of each size.
        num_new_tokens (`int`):
            How many tokens to write.
        batch_sizes (sequence of `int`, *optional*, defaults to `(1, 8, 32)`):
            Rows of a batch.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Yields:
        [`SpeedRow`]: One per batch size, model and number of steps.
    """
    start = causal.config.bos_token_id
    prompts = prompts.to(causal.device)
    begun = torch.cat([torch.full_like(prompts[:, :1], start), prompts], dim=1)
    # an end of text is a token like any other: all rows are as long
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "max_new_tokens": num_new_tokens}
    causal.generation_config.eos_token_id = None
    plans = [num_new_tokens >> shift for shift in range(4) if num_new_tokens >> shift]
    for batch_size in batch_sizes:
        yield _measure(
            "causal",
            num_new_tokens,
            lambda rows: causal.generate(rows, attention_mask=torch.ones_like(rows), top_k=0, **drawn),
            begun,
            batch_size,
            num_new_tokens,
            judge,
            seed,
        )
        for steps in plans:

            def write(rows: torch.Tensor, steps: int = steps) -> torch.Tensor:
                return diffusion.generate(
                    rows,
                    block_length=num_new_tokens,
                    max_denoising_steps=steps,
                    remasking="random",
                    eos_early_stop=False,
                    **drawn,
                )

            yield _measure("diffusion", steps, write, prompts, batch_size, num_new_tokens, judge, seed)


@torch.no_grad()
def _measure(
    kind: str,
    steps: int,
    write: Callable[[torch.Tensor], torch.Tensor],
    prompts: torch.Tensor,
    batch_size: int,
    num_new_tokens: int,
    judge: PreTrainedModel,
    seed: int,
) -> SpeedRow:
    batches = prompts.split(batch_size)
    # what is only done once
    write(batches[0])
    torch.manual_seed(seed)
    _wait(prompts.device)
    begin = time.perf_counter()
    written = torch.cat([write(rows)[:, -num_new_tokens:] for rows in batches])
    _wait(prompts.device)
    seconds = time.perf_counter() - begin
    given = torch.cat([torch.full_like(prompts[:, :1], judge.config.bos_token_id), prompts], dim=1)
    given = prompts if kind == "causal" else given
    judged = -causal_answer_log_likelihood(judge, given.tolist(), written.tolist()) / num_new_tokens
    shares = written.flatten().bincount().double() / written.numel()
    mean, error = _mean(judged.double())
    return SpeedRow(
        kind=kind,
        batch_size=batch_size,
        steps=steps,
        tokens_per_second=written.numel() / seconds,
        judged=mean,
        judged_error=error,
        entropy=float(torch.special.entr(shares).sum()),
    )


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _mean(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


__all__ = ["SHORT_ANSWER", "SpeedRow", "measure_speed", "score_short_answers"]
