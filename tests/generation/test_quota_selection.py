"""Fixed plans other than equal shares of the best."""

import pytest
import torch
from scripted_model import EOS, ScriptedModel
from tiny_models import peaked_llada

from llada.generation.rules.dream import dream_shares, reveal_probabilities


@pytest.mark.parametrize(
    ("total", "steps", "shares"), [(10, 4, [2, 2, 2, 4]), (5, 1, [5]), (3, 6, [0, 0, 0, 0, 1, 2]), (0, 2, [0, 0])]
)
def test_shares_of_dream(total, steps, shares):
    left, expected = total, []
    for step in range(steps):
        t, s = (1 + (1e-3 - 1) * i / steps for i in (step, step + 1))
        expected.append(int(left * (1 - s / t)) if step < steps - 1 else left)
        left -= expected[-1]
    assert dream_shares(total, steps) == expected
    if total != 3:
        assert expected == shares


def test_a_plan_of_dream():
    model = peaked_llada(0)
    output = model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=10,
        block_length=10,
        steps=4,
        step_schedule="dream",
        output_trace=True,
        eos_early_stop=False,
    )
    assert [len(event.positions) for event in output.trace[0].events] == [2, 2, 2, 4]


def test_each_mask_is_revealed_by_itself():
    model = ScriptedModel.writing(list(range(1, 21)))
    counts = torch.zeros(4)
    for _ in range(40):
        output = model.generate(
            torch.tensor([[1, 2]]),
            max_new_tokens=20,
            block_length=20,
            steps=4,
            step_schedule="bernoulli",
            output_trace=True,
            eos_early_stop=False,
        )
        assert output.sequences[0, 2:].tolist() == list(range(1, 21))
        assert output.num_forwards <= 4
        for step, event in enumerate(output.trace[0].events):
            counts[step] += len(event.positions)
    # linear in time: a quarter of all in each step
    assert counts.sum() == 800
    assert (counts - 200).abs().max() < 60
    assert reveal_probabilities(2) == [pytest.approx(0.4995), 1.0]


def test_nothing_is_computed_where_nothing_is_revealed():
    model = ScriptedModel.writing([5])
    output = model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=1,
        block_length=1,
        steps=8,
        step_schedule="bernoulli",
        return_dict_in_generate=True,
    )
    assert (output.num_forwards, output.sequences.tolist()) == (1, [[1, 2, 5]])


def test_positions_are_drawn_by_their_scores():
    # logits of 5 and 0 at the two positions: probabilities of .83 and .03
    model = ScriptedModel.writing([7, 8], confidence=[5.0, 0.0])
    settings = {"max_new_tokens": 2, "block_length": 2, "output_trace": True, "eos_early_stop": False}
    prompt = torch.tensor([[1, 2]]).repeat(400, 1)
    traces = model.generate(prompt, remasking_temperature=0.5, **settings).trace
    first = sum(trace.events[0].positions == [2] for trace in traces) / 400
    scores = torch.tensor([5.0, 0.0]).exp()
    scores = scores / (scores + 31)
    assert first == pytest.approx((scores / 0.5).softmax(0)[0].item(), abs=0.08)
    assert all(trace.events[0].positions == [2] for trace in model.generate(prompt[:5], **settings).trace)


class TestRisingEnd:
    def orders(self, **settings):
        # an end of text that is surer than the words before it
        model = ScriptedModel.writing([5, 6, 7, EOS], confidence=[4.0, 4.2, 4.4, 4.6])
        output = model.generate(
            torch.tensor([[1, 2]]), max_new_tokens=4, block_length=4, output_trace=True, **settings
        )
        return [event.positions for event in output.trace[0].events]

    def test_an_end_waits_for_its_weight(self):
        assert self.orders() == [[5], [4], [3], [2]]
        # probabilities of .64, .68, .73 and .76 with weights of .4, .6, .8 and 1
        assert self.orders(suppress_eos="rising") == [[4], [3], [2], [5]]
        # with .8, .87, .93 and 1: .61, .66, .71
        assert self.orders(suppress_eos="rising", eos_weight=0.8) == [[4], [3], [5], [2]]

    def test_the_weight_rises_over_all_blocks(self):
        model = ScriptedModel.writing([5, 6, 7, EOS], confidence=[4.0, 4.2, 4.4, 4.6])
        output = model.generate(
            torch.tensor([[1, 2]]), max_new_tokens=4, block_length=2, output_trace=True, suppress_eos="rising"
        )
        # steps 2 and 3 of 4: weights of .8 and 1
        assert [event.positions for event in output.trace[0].events] == [[3], [2], [4], [5]]
