"""The parts of the sampling loop, one by one."""

import pytest
import torch

from llada.generation.canvas import Canvas, Delta, true_first
from llada.generation.regions import Region
from llada.generation.rules.quota import QuotaSelector, schedule_steps, share_out
from llada.generation.rules.selection import StepPlan, best
from llada.generation.scores import confidence


MASK = 9


def delta(positions, tokens, step=0):
    positions, tokens = torch.tensor(positions, dtype=torch.bool), torch.tensor(tokens)
    return Delta(step, 0, positions, tokens, torch.full(tokens.shape, 0.5))


class TestCanvas:
    def test_a_delta_changes_what_it_names(self):
        canvas = Canvas.after_prompt(torch.tensor([[1, 2]]), 3, MASK)
        canvas.apply(delta([[0, 0, 0, 1, 0]], [[1, 2, MASK, 7, MASK]], step=4))
        assert canvas.tokens.tolist() == [[1, 2, MASK, 7, MASK]]
        assert canvas.masked.tolist() == [[False, False, True, False, True]]
        assert canvas.step_of.tolist() == [[-1, -1, -1, 4, -1]]
        assert canvas.confidence.tolist() == [[0, 0, 0, 0.5, 0]]

    def test_frozen_positions_never_change(self):
        canvas = Canvas.after_prompt(torch.tensor([[1, MASK]]), 1, MASK)
        assert canvas.masked.tolist() == [[False, False, True]]
        canvas.apply(delta([[1, 1, 1]], [[5, 6, 7]]))
        assert canvas.tokens.tolist() == [[1, MASK, 7]]

    def test_a_position_can_be_taken_back(self):
        canvas = Canvas.after_prompt(torch.tensor([[1]]), 2, MASK)
        canvas.apply(delta([[0, 1, 1]], [[1, 5, 6]], step=0))
        canvas.apply(delta([[0, 0, 1]], [[1, 5, MASK]], step=1))
        assert canvas.masked.tolist() == [[False, False, True]]
        assert canvas.step_of.tolist() == [[-1, 0, -1]]
        assert canvas.confidence.tolist() == [[0, 0.5, 0]]

    def test_a_committed_mask_leaves_the_position_masked(self):
        canvas = Canvas.after_prompt(torch.tensor([[1]]), 2, MASK)
        canvas.apply(delta([[0, 1, 1]], [[1, MASK, 4]]))
        assert canvas.masked.tolist() == [[False, True, False]]
        assert canvas.step_of.tolist() == [[-1, -1, 0]]

    def test_a_finished_row_is_filled_and_leaves(self):
        canvas = Canvas.after_prompt(torch.tensor([[1], [2]]), 3, MASK)
        canvas.apply(canvas.ending(torch.tensor([True, False]), torch.tensor([2, 0]), fill=0))
        assert canvas.tokens.tolist() == [[1, MASK, 0, 0], [2, MASK, MASK, MASK]]
        assert canvas.masked.tolist() == [[False, True, False, False], [False, True, True, True]]
        assert canvas.finished.tolist() == [True, False]
        assert canvas.ends.tolist() == [2, 4]

    def test_text_on_the_right(self):
        tokens = torch.tensor([[MASK, 1, MASK, 0]])
        frozen = torch.tensor([[False, True, False, True]])
        assert Canvas(tokens, frozen, MASK).has_suffix.tolist() == [[True, True, True, False]]
        padded = Canvas(tokens, frozen, MASK, torch.tensor([[1, 1, 1, 0]]))
        assert padded.has_suffix.tolist() == [[True, False, False, False]]

    def test_the_text_is_filled_up_to_whole_blocks(self):
        prompt, attention_mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
        canvas = Canvas.after_prompt(prompt, 2, MASK, attention_mask, multiple_of=4)
        # texts of 4 and 8 positions
        assert canvas.tokens.shape == (2, 8)
        assert canvas.masked.sum(1).tolist() == [2, 5]
        assert canvas.attention_mask.sum(1).tolist() == [4, 8]
        assert canvas.position_ids.tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7]]
        unpadded = Canvas.after_prompt(prompt[1:], 2, MASK, multiple_of=4)
        assert unpadded.masked.sum().item() == 5


class TestRegion:
    def test_blocks_from_the_start_of_the_text(self):
        prompt, attention_mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
        canvas = Canvas.after_prompt(prompt, 2, MASK, attention_mask, multiple_of=2)
        region = Region(canvas, 2, from_text_start=True)
        assert region.num_masked == [[2, 0], [1, 2]]
        first, second = region
        assert (first.start, first.end, second.start, second.end) == (2, 5, 4, 6)
        assert first.inside.tolist() == [[False, False, False, True, True, False], [False] * 3 + [True, False, False]]

    def test_blocks_begin_at_the_first_mask_of_each_row(self):
        tokens = torch.tensor([[1, MASK, MASK, MASK, MASK, MASK], [1, 1, 1, MASK, 2, MASK]])
        region = Region(Canvas(tokens, tokens != MASK, MASK), block_length=2)
        assert region.num_masked == [[2, 2, 1], [1, 1, 0]]
        reached = [block.reached.tolist() for block in region]
        assert [(block.start, block.end) for block in region] == [(1, 5), (3, 6), (5, 6)]
        assert reached[0] == [[True, True, True, False, False, False], [True] * 5 + [False]]
        assert reached[2] == [[True] * 6] * 2

    @pytest.mark.parametrize("block_length", [None, 4, 99])
    def test_one_block(self, block_length):
        region = Region(Canvas.after_prompt(torch.tensor([[1, 2]]), 4, MASK), block_length)
        assert region.num_masked == [[4]]
        assert len(list(region)) == 1


class TestQuota:
    @pytest.mark.parametrize(
        ("masks", "steps", "expected"), [(10, 4, [3, 3, 2, 2]), (4, 6, [1, 1, 1, 1, 0, 0]), (5, 5, [1] * 5)]
    )
    def test_as_published(self, masks, steps, expected):
        assert share_out(masks, steps) == expected

    def selector(self, **settings):
        tokens = torch.tensor([[MASK] * 5, [1, MASK, MASK, 1, 1]])
        canvas = Canvas(tokens, tokens != MASK, MASK)
        region = Region(canvas, block_length=3)
        selector = QuotaSelector(schedule_steps(region, **settings))
        blocks = []
        for block in region:
            selector.begin(canvas, block)
            steps = [selector.plan.at(step) for step in range(len(selector.plan))]
            blocks.append([[most] * 2 if limits is None else limits.tolist() for most, limits in steps])
        return blocks

    def test_every_row_has_its_own_schedule(self):
        assert self.selector() == [[[1, 1], [1, 1], [1, 0]], [[1, 0], [1, 0]]]
        assert self.selector(max_denoising_steps=2) == [[[2, 1], [1, 1]], [[1, 0], [1, 0]]]
        # the second row has all its masks in one block, and all three steps
        assert self.selector(steps=3) == [[[2, 1], [1, 1]], [[2, 0]]]

    def test_idle_steps(self):
        assert self.selector(max_denoising_steps=4)[1] == [[1, 0], [1, 0]]
        kept = self.selector(max_denoising_steps=4, keep_idle_steps=True)
        assert kept[1] == [[1, 0], [1, 0], [0, 0], [0, 0]]

    def test_too_few_steps(self):
        with pytest.raises(ValueError, match="`steps=1` is fewer than the 2 blocks"):
            self.selector(steps=1)

    def test_numbers_that_rows_share_stay_on_the_host(self):
        plan = StepPlan([[3, 2], [3]], 1, torch.device("cpu"))
        (most, limits), beyond = plan.at(1), plan.at(2)
        assert (len(plan), most, limits.tolist(), beyond) == (2, 2, [2, 1], (1, None))
        assert StepPlan([[3, 2], [3, 2]], 1, torch.device("cpu")).at(0) == (3, None)
        assert StepPlan([[]], 1, torch.device("cpu")).at(0) == (1, None)

    def test_the_best_eligible_positions_are_selected(self):
        inf = torch.inf
        scores = torch.tensor([[0.1, -inf, 0.9, 0.5], [-inf, -inf, -0.5, -inf], [0.3, 0.2, 0.1, 0.4]])
        selected = best(scores, 3, torch.tensor([2, 3, 0]))
        assert selected.tolist() == [
            [False, False, True, True],
            [False, False, True, False],
            [False, False, False, False],
        ]


def test_confidence_is_the_probability_of_the_token():
    logits = torch.randn(5, 11)
    tokens = torch.randint(11, (5,))
    expected = logits.softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert torch.allclose(confidence(logits, tokens), expected, atol=1e-6)
    assert confidence(logits.bfloat16(), tokens).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confidence_is_exact_over_a_real_vocabulary(dtype):
    """To a few roundings, also of improbable tokens and of one that was ruled out."""
    logits = 3 * torch.randn(7, 126464, generator=torch.Generator().manual_seed(0))
    logits[0, 5] += 300
    logits[1, 7] = -torch.inf
    tokens = torch.tensor([5, 7, *logits[2:6].argmax(1).tolist(), 9])
    expected = logits.double().softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    actual = confidence(logits, tokens, dtype)
    assert actual.dtype == dtype
    assert actual[1] == 0
    assert torch.allclose(actual.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-12)
    # beside a token that is surer than any number of this precision can say
    assert confidence(logits, torch.full((7,), 9), dtype)[0] < 1e-37


def test_true_cells_come_first_and_in_order():
    wanted = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
    assert true_first(wanted, 3).tolist() == [[1, 3, 4], [0, 4, 1]]
    assert true_first(wanted.flatten(), 5).tolist() == [1, 3, 4, 5, 9]
