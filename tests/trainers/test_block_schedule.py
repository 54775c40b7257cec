"""Blocks that grow and shrink in the course of a training."""

import pytest

from llada.trainers.block_schedule import BlockSchedule


PUBLISHED = [1, 4, 32, 64]


def lengths(total: int, *args) -> list[int]:
    schedule = BlockSchedule(*args)
    return [schedule(step, total) for step in range(total)]


def test_the_published_schedule():
    """LLaDA2.0: 1, 4, 32, 64, then all 4096 tokens at once, then 2048 and so on to 32."""
    assert lengths(22, 4096, 32, PUBLISHED, 8, 7) == [
        *(1, 1, 4, 4, 32, 32, 64, 64),
        *[0] * 7,
        *(2048, 1024, 512, 256, 128, 64, 32),
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # shares of ten steps
        ((16, 4, [1, 4], 0.2, 0.4), [1, 4, 0, 0, 0, 0, 8, 8, 4, 4]),
        ((16, 0, [1, 4, 32], 0.4, 0), [1, 1, 4, 4, 0, 0, 0, 0, 0, 0]),
        # without a decay blocks are those of the end when the warm-up is over
        ((16, 8, [1, 4, 8], 2, 0), [1, 4, 8, 8, 8, 8, 8, 8, 8, 8]),
        ((16, 16, [1, 4], 2, 0), [1, 4, 0, 0, 0, 0, 0, 0, 0, 0]),
        ((20, 4, [1], 0, 1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
        # rows that are no power of two times the block
        ((20, 4, [1], 0, 3), [0, 0, 0, 0, 0, 0, 0, 16, 8, 4]),
        ((16, 4, PUBLISHED, 10, 0), [1] * 10),
    ],
)
def test_stages(settings, expected):
    assert lengths(10, *settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((16, 4, [1, 4], -1, 0), "`block_warmup_steps=-1` is no number of steps"),
        ((16, 4, [1, 4], 0, 2.5), "`block_decay_steps=2.5` is no number of steps"),
        ((16, 4, [1, 4], float("nan"), 0), "is no number of steps"),
        ((16, 4, [], 2, 0), r"`block_warmup_lengths=\[\]` are no lengths that grow"),
        ((16, 4, [4, 1], 2, 0), "are no lengths that grow; write such as"),
        ((16, 4, [0, 1], 2, 0), "are no lengths that grow"),
        ((16, 4, [4, 8], 2, 0), "begin with blocks as long as those of 4 tokens"),
        ((16, 0, [16], 2, 0), "begin with blocks as long as those of 16 tokens"),
        ((16, 0, [1], 0, 2), "write a `block_length` between, such as 32"),
        ((16, 16, [1], 0, 2), "from the 16 tokens of a row to `block_length=16`"),
    ],
)
def test_what_is_no_schedule_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BlockSchedule(*settings)


def test_more_steps_than_there_are_are_refused():
    schedule = BlockSchedule(16, 4, [1], 4, 0.5)
    with pytest.raises(ValueError, match="are 4 and 3 steps, and the training has 6; write fewer"):
        schedule(0, 6)
    assert schedule(0, 8) == 1
