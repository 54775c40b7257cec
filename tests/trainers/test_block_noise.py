"""The noise of distillation: blocks of the answer, and what a teacher had still masked."""

import itertools

import pytest
import torch

from llada.modeling_llada.masked_diffusion import noise_generator
from llada.trainers.block_noise import BlockNoise, block_numbers, trajectory_masks


MASK = 99


def test_blocks_are_counted_from_the_first_token_of_the_answer():
    maskable = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    numbers, counts = block_numbers(maskable, 2)
    assert numbers.tolist() == [[-1, 0, 0, 1, 1, 2], [-1, -1, -1, 0, 0, -1], [-1] * 6]
    assert counts.tolist() == [3, 1, 0]


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0])
def test_masks_are_those_of_the_state_of_the_teacher_that_is_nearest(ratio):
    """Against a loop over all the states of all the orders of four tokens, those written at once included."""
    for steps in itertools.product(range(4), repeat=4):
        # a prompt, the part, and another part that the teacher wrote in between
        row = torch.tensor([[-1, *steps, 0, 3]])
        inside = torch.tensor([[0, 1, 1, 1, 1, 0, 0]]).bool()
        states = [{at for at in range(4) if steps[at] >= start} for start in {*steps}]
        gaps = {len(state): abs(len(state) - ratio * 4) for state in states}
        nearest = min(count for count, gap in gaps.items() if gap == min(gaps.values()))
        (expected,) = [state for state in states if len(state) == nearest]
        masked = trajectory_masks(row, inside, torch.tensor([ratio]))
        assert masked[0].nonzero().flatten().sub(1).tolist() == sorted(expected)


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("with_steps", [False, True])
def test_what_precedes_the_block_is_clean_and_what_follows_is_masked(complementary, with_steps):
    ids = torch.arange(1, 31).repeat(64, 1)
    maskable = torch.zeros(64, 30, dtype=torch.bool)
    maskable[:, 5:27] = True
    steps = torch.where(maskable, torch.arange(30), -1) if with_steps else None
    batch = BlockNoise(MASK, 8, 0.5, 0.5, complementary)(ids, maskable, noise_generator(0), steps)
    assert len(batch.masked) == 64 * (1 + complementary)
    numbers = block_numbers(maskable, 8)[0].repeat(1 + complementary, 1)
    chosen = numbers.masked_fill(~batch.masked, -1).max(dim=1).values
    assert {0, 1, 2} == {*chosen.tolist()} - {-1}
    if complementary:
        first, second = batch.masked.chunk(2)
        block = torch.where(chosen[:64] >= 0, chosen[:64], chosen[64:])
        assert torch.equal(first ^ second, numbers[:64] == block[:, None])
        chosen = block.repeat(2)
    hidden = numbers > chosen[:, None]
    assert torch.equal(batch.input_ids == MASK, batch.masked | hidden)
    assert not (batch.masked & hidden).any()
    assert torch.equal(
        batch.input_ids[batch.input_ids != MASK], ids.repeat(1 + complementary, 1)[batch.input_ids != MASK]
    )
    if with_steps:
        # the teacher wrote from left to right
        for row, block in zip(batch.masked[:64], chosen[:64].tolist(), strict=True):
            start, end = 5 + 8 * block, min(13 + 8 * block, 27)
            assert row.nonzero().flatten().tolist() == [*range(end - (end - start) // 2, end)]


def test_the_ratio_is_uniform_in_its_band_and_every_block_equally_likely():
    ids, maskable = torch.zeros(4000, 24, dtype=torch.long), torch.ones(4000, 24, dtype=torch.bool)
    steps = torch.arange(24).expand(4000, -1)
    batch = BlockNoise(MASK, 8, 0.25, 0.75, False)(ids, maskable, noise_generator(0), steps)
    # eighths of a block, those at the ends half as often
    shares = torch.bincount((batch.ratio * 8).long(), minlength=9) / 4000
    assert torch.allclose(shares, torch.tensor([0, 0, 1, 2, 2, 2, 1, 0, 0]) / 8, atol=0.03)
    blocks = batch.masked.view(4000, 3, 8).any(dim=2).float().mean(dim=0)
    assert torch.allclose(blocks, torch.full((3,), 1 / 3), atol=0.03)
    # without a teacher, each token for itself
    batch = BlockNoise(MASK, 24, 0.5, 0.5, False)(ids, maskable, noise_generator(1))
    assert abs(float(batch.masked.float().mean()) - 0.5) < 0.01


def test_rows_without_an_answer_stay_as_they_are():
    ids, maskable = torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.bool)
    for steps in (None, torch.full((1, 4), -1)):
        batch = BlockNoise(MASK, 2, 0.5, 0.5, True)(ids, maskable, noise_generator(0), steps)
        assert not batch.masked.any() and (batch.input_ids == 1).all() and (batch.ratio == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 0.0, 1.0), "A block of 0 tokens"),
        ((4, 0.5, 0.4), r"limited to \[0.5, 0.4\]"),
        ((4, -0.1, 0.4), "limited to"),
        ((4, 0.1, 1.4), "limited to"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockNoise(MASK, *settings, True)
