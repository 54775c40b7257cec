"""The bound by position beyond the trained length."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import as_block_causal, tiny_llada

from llada.evaluation.position_bound import bound_by_position


IDS = torch.arange(32).view(2, 16) % 40


class LostBehindTheWindow:
    """Loses one nat at the positions that it knows, three behind them."""

    device = torch.device("cpu")
    config = SimpleNamespace(block_causal=False, longest_text=8, mask_token_id=40)

    def __call__(self, noisy, labels, logits_to_keep, token_losses):
        assert token_losses and torch.equal(noisy == 40, logits_to_keep)
        return SimpleNamespace(token_losses=logits_to_keep * torch.where(torch.arange(noisy.shape[1]) < 8, 1.0, 3.0))


def test_what_is_lost_behind_the_window():
    bounds = bound_by_position(LostBehindTheWindow(), IDS, num_draws=400, part_length=4)
    assert [(part.start, part.end) for part in bounds] == [(0, 4), (4, 8), (8, 12), (12, 16)]
    for number, part in enumerate(bounds):
        assert part.in_window == pytest.approx(1, abs=0.15)
        assert part.in_text == pytest.approx(3 if number > 1 else 1, abs=0.45)
        assert part.difference == pytest.approx(part.in_text - part.in_window)
        assert 0 < part.standard_error < 0.3


def test_a_model_that_knows_nothing():
    model = tiny_llada()
    torch.nn.init.zeros_(model.lm_head.weight)
    # of every draw, the tokens of a row sum to the same
    bounds = bound_by_position(model, IDS, window=8, num_draws=3)
    assert [part.end for part in bounds] == list(range(2, 18, 2))
    for layout in ("in_text", "in_window"):
        mean = sum(getattr(part, layout) for part in bounds) / len(bounds)
        assert mean == pytest.approx(math.log(48), rel=1e-5)
    again = bound_by_position(model, IDS, window=8, num_draws=3)
    assert again == bounds != bound_by_position(model, IDS, window=8, num_draws=3, seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 16}, "Texts of 16 tokens are no two or more windows of 16"),
        ({"window": 6}, "no two or more windows of 6"),
        ({}, "windows of 64"),
        ({"window": 8, "part_length": 3}, "`part_length=3` does not divide a window of 8"),
    ],
)
def test_lengths_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        bound_by_position(tiny_llada(), IDS, **settings)


def test_models_that_write_in_blocks():
    with pytest.raises(ValueError, match="writes in blocks"):
        bound_by_position(as_block_causal(tiny_llada()), IDS, window=8)
