"""What is logged of masked tokens against numbers counted by hand."""

import pytest
import torch

from llada.trainers.token_metrics import TrainingSums, bound_metrics, score_rows


@pytest.fixture
def rows():
    """Two rows of four tokens, the last of each an end of text: three are masked in the first, two in the second."""
    losses = torch.tensor([[1.0, 2.0, 0.0, 4.0], [0.0, 5.0, 6.0, 0.0]])
    correct = torch.tensor([[True, False, False, True], [False, False, True, False]])
    masked = losses > 0
    eos = torch.tensor([[False, False, False, True]] * 2)
    return score_rows(losses, correct, masked, eos)


def test_rows_are_counted_by_kind(rows):
    assert rows.tolist() == [[[3, 1, 2], [4, 1, 1]], [[11, 1, 2], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("ratios", "quartiles"),
    [
        ((0.0, 0.2499), {1: 18 / 5}),
        ((0.25, 0.4999), {2: 18 / 5}),
        ((0.5, 0.7499), {3: 18 / 5}),
        ((0.75, 1.0), {4: 18 / 5}),
        ((0.2499, 0.25), {1: 7 / 3, 2: 11 / 2}),
        ((0.7499, 0.75), {3: 7 / 3, 4: 11 / 2}),
    ],
)
def test_quartiles_begin_at_their_lower_edge(rows, ratios, quartiles):
    trainable = torch.ones(2, 4, dtype=torch.bool)
    logs = TrainingSums.of_batch(rows, torch.tensor(ratios), trainable, trainable).logs()
    assert {name: value for name, value in logs.items() if name.startswith("ce_q")} == pytest.approx(
        {f"ce_q{number}": value for number, value in quartiles.items()}
    )


def test_sums_of_batches_and_processes(rows):
    trainable, visible = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4)
    one = TrainingSums.of_batch(rows, torch.tensor([0.5, 0.5]), trainable, visible, torch.tensor(0.3))
    other = TrainingSums.of_batch(rows[:1], torch.tensor([0.1]), trainable[:1], visible[:1], torch.tensor(0.1))
    both = (one + other).gather(lambda sums: 2 * sums)
    assert both.kinds.tolist() == [[34, 6, 12], [16, 4, 4]] and both.visible == 24
    assert both.logs() == pytest.approx(
        {
            "content_ce": 34 / 12,
            "content_accuracy": 6 / 12,
            "eos_ce": 16 / 4,
            "eos_accuracy": 1.0,
            "ce_q1": 7 / 3,
            "ce_q3": 18 / 5,
            "aux_loss": 0.2,
            "mask_ratio": 16 / 18,
        }
    )


def test_metrics_of_an_evaluation():
    rows = torch.tensor([[[6.0, 2, 1, 2], [1, 1, 1, 1]], [[2, 2, 3, 4], [0, 0, 0, 0]]])
    metrics = bound_metrics(rows, "sequence")
    assert metrics["loss"] == pytest.approx((7 / 3 + 2 / 2) / 2)
    assert metrics["nll_bound"] == pytest.approx(9 / 5) and metrics["ppl_bound"] == pytest.approx(6.0496, rel=1e-4)
    assert metrics["content_nll_bound"] == 2 and metrics["eos_nll_bound"] == 1
    assert metrics["content_accuracy"] == pytest.approx(4 / 6) and metrics["eos_accuracy"] == 1
