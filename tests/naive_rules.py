"""Published decoding rules once more, one row at a time in plain loops, to compare the package's against."""

import math
from collections.abc import Callable

import torch


__all__ = [
    "best",
    "entropy_bound",
    "factor",
    "frechet",
    "naive_decode",
    "reference_factor",
    "running_confidence",
    "threshold",
]

# of a step: confidence of each masked position of the block, and the distribution at every position
Rule = Callable[[dict[int, float], torch.Tensor], list[int]]


@torch.no_grad()
def naive_decode(
    model,
    prompt: list[int],
    length: int,
    block_length: int,
    rule: Rule,
    score: str = "confidence",
    frequencies: list[float] | None = None,
) -> tuple[list[int], int]:
    """
    Decodes one prompt block by block with a rule, the whole canvas in every step.

    Returns:
        `tuple`: The canvas and the number of forward passes.
    """
    mask = model.config.mask_token_id
    canvas, forwards = [*prompt, *[mask] * length], 0
    for start in range(len(prompt), len(canvas), block_length):
        block = range(start, min(start + block_length, len(canvas)))
        while any(canvas[position] == mask for position in block):
            logits = model(torch.tensor([canvas])).logits[0].double()
            forwards += 1
            distributions = logits.softmax(-1)
            logits[:, mask] = -torch.inf
            tokens = logits.argmax(-1).tolist()
            masked = [position for position in block if canvas[position] == mask]
            scores = {}
            for position in masked:
                ordered = sorted(distributions[position].tolist(), reverse=True)
                probability = distributions[position, tokens[position]].item()
                scores[position] = {
                    "confidence": probability,
                    "margin": ordered[0] - ordered[1],
                    "entropy": -entropy(ordered),
                }.get(score)
                if score == "position_calibrated":
                    f = frequencies[tokens[position]]
                    surprise = min(-probability * math.log(f), 2.0) if f else 2.0
                    scores[position] = math.exp(-0.1 * (position - start)) * surprise
            for position in rule(scores, distributions):
                canvas[position] = tokens[position]
    return canvas, forwards


@torch.no_grad()
def running_confidence(
    model, canvas: list[int], block_length: int, steps: int, score: str = "confidence"
) -> tuple[list[int], list[list[int]]]:
    """
    Fills the masks of a canvas, one text after the other in blocks of a fixed plan, by running-confidence remasking as
    published: fill all that is masked, note how sure, mask the least sure again.

    Returns:
        `tuple`: The canvas, and how it was after every step.
    """
    mask, canvas, states = model.config.mask_token_id, list(canvas), []
    first = canvas.index(mask)
    for start in range(first, len(canvas), block_length):
        block = [place for place in range(start, min(start + block_length, len(canvas))) if canvas[place] == mask]
        plan = [n for n in (len(block) // steps + (step < len(block) % steps) for step in range(steps)) if n]
        noted = dict.fromkeys(block, 1.0)
        for step in range(len(plan)):
            logits = model(torch.tensor([canvas])).logits[0].double()
            distributions = logits.softmax(-1)
            logits[:, mask] = -torch.inf
            for place in block:
                if canvas[place] == mask:
                    canvas[place] = int(logits[place].argmax())
                    first_two = distributions[place].topk(2).values
                    noted[place] = {
                        "confidence": distributions[place, canvas[place]].item(),
                        "margin": (first_two[0] - first_two[1]).item(),
                        "entropy": -entropy(distributions[place].tolist()),
                    }[score]
            again = sum(plan[step + 1 :])
            for place in sorted(block, key=lambda place: (noted[place], -place))[:again]:
                canvas[place] = mask
            states.append(list(canvas))
    return canvas, states


def entropy(distribution: list[float]) -> float:
    return -sum(p * math.log(p) for p in distribution if p > 0)


def ranking(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda position: (-scores[position], position))


def best(count: int) -> Rule:
    return lambda scores, _: ranking(scores)[:count]


def threshold(tau: float) -> Rule:
    return lambda scores, _: [p for p in scores if scores[p] >= tau] or ranking(scores)[:1]


def factor(f: float) -> Rule:
    def rule(scores, _):
        order, accepted = ranking(scores), 1
        for n in range(1, len(order) + 1):
            if (n + 1) * (1 - scores[order[n - 1]]) < f:
                accepted = n
        return order[:accepted]

    return rule


def reference_factor(f: float) -> Rule:
    def rule(scores, _):
        order = ranking(scores)
        bounds = [-1.0, *[1 - f / (n + 1) for n in range(2, len(order) + 1)]]
        stopped = 0
        for stopped, position in enumerate(order):  # noqa: B007
            if scores[position] < bounds[stopped]:
                break
        return order[: stopped + 1 if stopped in (0, len(order) - 1) else stopped]

    return rule


def frechet(delta: float) -> Rule:
    def rule(scores, _):
        order, accepted = ranking(scores), 0
        for n in range(1, len(order) + 1):
            lower = sum(scores[position] for position in order[:n]) - (n - 1)
            accepted += lower - (1 - scores[order[n - 1]]) > delta
        return order[: max(accepted, 1)]

    return rule


def entropy_bound(gamma: float) -> Rule:
    def rule(scores, distributions):
        order, accepted = ranking(scores), 1
        for n in range(1, len(order) + 1):
            entropies = [entropy(distributions[position].tolist()) for position in order[:n]]
            if sum(entropies) - max(entropies) <= gamma:
                accepted = n
        return order[:accepted]

    return rule
