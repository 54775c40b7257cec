"""Rules that commit the best of a row, against plain loops, hand-worked and published values."""

import naive_rules
import pytest
import torch
from tiny_models import peaked_llada, tiny_llada

from llada.generation.canvas import Canvas
from llada.generation.proposal import Proposal
from llada.generation.regions import Region
from llada.generation.rules.entropy_bound import EntropyBoundSelector
from llada.generation.rules.factor import FactorSelector, ReferenceFactorSelector
from llada.generation.rules.frechet import FrechetSelector


def committed(selector, confidences: list[float], entropies: list[float] | None = None) -> int:
    """How many of the positions with these confidences a selector commits, one masked row."""
    length = len(confidences)
    canvas = Canvas(torch.full((1, length), 3), torch.zeros(1, length, dtype=torch.bool), mask_token_id=3)
    block = next(iter(Region(canvas)))
    scores = torch.tensor(confidences, dtype=torch.float64)
    logits = torch.zeros(length, 2, dtype=torch.float64)
    for row, value in zip(logits, entropies or [0.0] * length, strict=True):
        # the two-token distribution with this entropy, by bisection
        low, high = 0.5, 1.0
        for _ in range(60):
            p = (low + high) / 2
            low, high = (p, high) if naive_rules.entropy([p, 1 - p]) > value else (low, p)
        row[0], row[1] = torch.tensor([low, 1 - low]).double().log().clamp(min=-1e9)
    index = torch.arange(length)
    proposal = Proposal(index, canvas.tokens.shape, logits, index, scores, scores, canvas.masked)
    selector.begin(canvas, block)
    chosen = selector.select(proposal, canvas, block)[0]
    assert scores[chosen].sum() == scores.sort(descending=True).values[: int(chosen.sum())].sum()
    return int(chosen.sum())


@pytest.mark.parametrize(
    ("confidences", "reference", "theory", "frechet"),
    [
        ([0.9, 0.1], 2, 1, 1),
        ([0.3, 0.2], 2, 1, 1),
        ([0.99, 0.99, 0.1], 3, 2, 2),
        ([0.99, 0.6, 0.1], 1, 1, 2),
        ([0.99] * 3 + [0.1], 4, 3, 3),
        ([0.99] * 8, 8, 8, 8),
        ([0.95, 0.9, 0.5, 0.4], 2, 2, 2),
        ([0.2], 1, 1, 1),
    ],
    ids=str,
)
def test_published_counts(confidences, reference, theory, frechet):
    assert committed(ReferenceFactorSelector(1.0), confidences) == reference
    assert committed(FactorSelector(1.0), confidences) == theory
    assert committed(FrechetSelector(0.0), confidences) == frechet


def test_frechet_is_the_factor_rule_for_equal_confidences():
    for confidence in torch.linspace(0.5, 0.999, 40).tolist():
        confidences = [confidence] * 12
        assert committed(FrechetSelector(0.25), confidences) == committed(FactorSelector(0.75), confidences)


@pytest.mark.parametrize(
    ("bound", "count"), [(0.0, 1), (0.09, 1), (0.11, 2), (0.31, 3), (0.59, 3), (0.61, 4), (10.0, 4)]
)
def test_entropies_without_the_largest_are_bounded(bound, count):
    # 0.1, 0.2, 0.3 and 0.4 nats, ranked by confidence: 0.1; 0.1 + 0.2 - 0.2; + 0.3 - 0.3; + 0.4 - 0.4
    assert committed(EntropyBoundSelector(bound), [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]) == count


def test_the_largest_entropy_may_come_first():
    # ranked by another score: 0; 0.1; 0.1 + 0.2
    assert committed(EntropyBoundSelector(0.15), [0.9, 0.8, 0.7], [0.4, 0.1, 0.2]) == 2


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"threshold": 0.5}, naive_rules.threshold(0.5)),
        ({"factor": 1.0}, naive_rules.factor(1.0)),
        ({"factor": 1.6}, naive_rules.factor(1.6)),
        ({"factor": 1.3, "factor_compat": "fast_dllm"}, naive_rules.reference_factor(1.3)),
        ({"frechet_margin": 0.1}, naive_rules.frechet(0.1)),
        ({"entropy_bound": 0.8}, naive_rules.entropy_bound(0.8)),
        ({"entropy_bound": 0.8, "remasking": "entropy"}, naive_rules.entropy_bound(0.8)),
        ({"entropy_bound": 0.8, "remasking": "margin"}, naive_rules.entropy_bound(0.8)),
        ({"remasking": "margin", "max_denoising_steps": 4}, naive_rules.best(2)),
        ({"remasking": "entropy", "max_denoising_steps": 4}, naive_rules.best(2)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_whole_answers_of_plain_loops(settings, rule):
    counts = []
    for seed in range(3):
        model = peaked_llada(seed)
        prompt = torch.randint(0, 40, (1, 5))
        score = settings.get("remasking", "low_confidence").replace("low_", "")
        expected, forwards = naive_rules.naive_decode(model, prompt[0].tolist(), 16, 8, rule, score)
        output = model.generate(
            prompt,
            max_new_tokens=16,
            block_length=8,
            eos_early_stop=False,
            confidence_dtype="float64",
            return_dict_in_generate=True,
            **settings,
        )
        assert output.sequences[0].tolist() == expected
        assert output.num_forwards == forwards
        counts.append(forwards)
    # what the rules say matters
    assert 2 < min(counts) < 16


def test_positions_calibrated_by_frequencies():
    frequencies = torch.rand(48) ** 3
    frequencies[::5] = 0.0
    differs = False
    for seed in range(3):
        model = peaked_llada(seed)
        prompt = torch.randint(0, 40, (1, 5))
        expected, forwards = naive_rules.naive_decode(
            model, prompt[0].tolist(), 16, 8, naive_rules.best(2), "position_calibrated", frequencies.tolist()
        )
        settings = {"max_new_tokens": 16, "block_length": 8, "max_denoising_steps": 4, "eos_early_stop": False}
        settings |= {"confidence_dtype": "float64"}
        calibrated = {"remasking": "position_calibrated", "position_decay": 0.1, "frequency_cap": 2.0}
        answer = model.generate(prompt, token_frequencies=frequencies, **calibrated, **settings)[0].tolist()
        assert (answer, forwards) == (expected, 8)
        gap = torch.tensor([expected[:5] + [40] * 16])
        settings.pop("max_new_tokens")
        assert model.infill(gap, token_frequencies=frequencies, **calibrated, **settings)[0].tolist() == expected
        settings["max_new_tokens"] = 16
        differs |= model.generate(prompt, **settings)[0].tolist() != answer
    assert differs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"remasking": "position_calibrated"}, "need each other, but `remasking` is 'position_calibrated'"),
        ({"token_frequencies": torch.ones(48)}, "need each other, but `remasking` is 'low_confidence'"),
        *(
            ({"remasking": "position_calibrated", "token_frequencies": wrong}, "one frequency from 0 to 1 for each of")
            for wrong in (torch.ones(47), torch.full((48,), 2.0))
        ),
    ],
    ids=["none", "unused", "shape", "range"],
)
def test_frequencies_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_llada().generate(torch.tensor([[1, 2]]), max_new_tokens=4, **arguments)


def test_a_plan_is_a_least_number():
    assert committed(FactorSelector(1.0, floors=[[[3, 1]]]), [0.9, 0.1, 0.1, 0.1]) == 3
    assert committed(FactorSelector(1.0, floors=[[[1, 1]]]), [0.99, 0.99, 0.1, 0.1]) == 2
