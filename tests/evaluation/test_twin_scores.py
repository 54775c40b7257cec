"""Exact likelihoods of short answers, and speed at equal quality."""

import math

import pytest
import torch
from tiny_models import tiny_llada

from llada.evaluation import build_causal_twin, causal_answer_log_likelihood
from llada.evaluation.twin_scores import measure_speed, score_short_answers


@pytest.fixture(scope="module")
def twins():
    torch.manual_seed(0)
    diffusion = tiny_llada()
    return build_causal_twin(diffusion.config).eval(), diffusion


ROWS = torch.arange(24).view(3, 8).tolist()


def test_answers_are_scored_by_the_chain_rule(twins) -> None:
    causal, _ = twins
    prompts, answers = [[41, 1, 2], [41]], [[3, 4], [5, 6, 7, 8]]
    scores = causal_answer_log_likelihood(causal, prompts, answers)

    for prompt, answer, score in zip(prompts, answers, scores, strict=True):
        expected = 0.0
        for number, token in enumerate(answer):
            with torch.no_grad():
                logits = causal(torch.tensor([prompt + answer[:number]])).logits[0, -1]
            expected += logits.log_softmax(dim=0)[token].item()
        assert score.item() == pytest.approx(expected, abs=1e-4)


def test_short_answers_are_not_estimated(twins) -> None:
    causal, diffusion = twins
    of_causal = score_short_answers(causal, ROWS, 3)
    of_diffusion = score_short_answers(diffusion, ROWS, 3)

    start = causal.config.bos_token_id
    exact = -causal_answer_log_likelihood(causal, [[start, *row[:5]] for row in ROWS], [row[5:] for row in ROWS]) / 3
    assert of_causal == {"exact": pytest.approx((exact.mean().item(), exact.std().item() / math.sqrt(3)), abs=1e-5)}
    # by all orders: what the bound is the mean of
    orders = diffusion.log_likelihood(
        [row[:5] for row in ROWS], [row[5:] for row in ROWS], estimator="any_order", num_draws=60
    )
    assert of_diffusion["bound"][0] == pytest.approx(-orders.log_likelihood.mean().item() / 3, abs=0.06)
    forward = diffusion.log_likelihood([row[:5] for row in ROWS], [row[5:] for row in ROWS], estimator="left_to_right")
    assert of_diffusion["left_to_right"][0] == pytest.approx(-forward.log_likelihood.mean().item() / 3, abs=1e-6)


def test_every_setting_is_measured_and_judged(twins) -> None:
    causal, diffusion = twins
    prompts = torch.tensor(ROWS)[:, :4]
    rows = list(measure_speed(causal, diffusion, causal, prompts, 4, batch_sizes=(1, 2)))

    assert [(row.batch_size, row.kind, row.steps) for row in rows] == [
        (size, kind, steps)
        for size in (1, 2)
        for kind, steps in (("causal", 4), ("diffusion", 4), ("diffusion", 2), ("diffusion", 1))
    ]
    assert all(row.tokens_per_second > 0 and row.judged > 0 and row.judged_error > 0 for row in rows)
    assert all(0 < row.entropy <= math.log(12) + 1e-9 for row in rows)
