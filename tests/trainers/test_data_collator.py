"""Which tokens may be masked, and where end-of-text tokens go."""

import copy
import pickle

import pytest
import torch

from llada import DataCollatorForMaskedDiffusion


EOS, PAD = 0, 9


def _row(prompt, answer, *more):
    """A row of a prompt and an answer, and possibly further prompts and answers in turn."""
    ids, labels = [], []
    for number, part in enumerate((prompt, answer, *more)):
        ids += part
        labels += part if number % 2 else [-100] * len(part)
    return {"input_ids": ids, "labels": labels}


def _collate(rows, **settings):
    batch = DataCollatorForMaskedDiffusion(EOS, PAD, **settings)(rows)
    mask = batch.get("attention_mask", torch.ones_like(batch["labels"]))
    return batch["input_ids"].tolist(), batch["labels"].tolist(), mask.sum(1).tolist()


ROWS = [_row([1, 2], [3, 4, 5, EOS]), _row([1], [3]), _row([1, 2, 3], [4, EOS])]


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, [6, 6, 6]),
        ({"min_eos": 3}, [8, 8, 8]),
        ({"eos_fill": "none"}, [6, 3, 5]),
        ({"eos_fill": "none", "min_eos": 0}, [6, 2, 5]),
        ({"eos_fill": "none", "min_eos": 2}, [7, 4, 6]),
        # answers with one end-of-text token are 4, 2 and 2 long
        ({"eos_fill": "multiple", "eos_fill_length": 3}, [8, 4, 6]),
        ({"eos_fill": "fixed", "eos_fill_length": 3}, [6, 4, 6]),
        ({"eos_fill": "fixed", "eos_fill_length": 7, "max_length": 9}, [9, 8, 9]),
        ({"eos_fill": "multiple", "eos_fill_length": 64, "max_length": 7}, [7, 7, 7]),
    ],
)
def test_complete_responses_are_filled_as_asked(settings, lengths):
    ids, labels, visible = _collate(ROWS, **settings)
    assert visible == lengths and {len(row) for row in ids} == {max(lengths)}
    for row, length, given, label in zip(ids, lengths, ROWS, labels, strict=True):
        size = len(given["input_ids"])
        assert row[:size] == given["input_ids"] and label[:size] == given["labels"]
        # the fill is trained, the padding is not
        assert row[size:length] == label[size:length] == [EOS] * (length - size)
        assert row[length:] == [PAD] * (len(row) - length) and label[length:] == [-100] * (len(row) - length)


def test_the_fill_does_not_depend_on_the_batch_unless_it_is_to_the_longest():
    for settings in ({"eos_fill": "multiple", "eos_fill_length": 4}, {"eos_fill": "fixed", "eos_fill_length": 5}):
        _, _, together = _collate(ROWS, **settings)
        assert together == [_collate([row], **settings)[2][0] for row in ROWS]
    assert _collate(ROWS)[2] != [_collate([row])[2][0] for row in ROWS]


def test_there_is_no_attention_mask_where_everything_is_visible():
    collator = DataCollatorForMaskedDiffusion(EOS)
    assert "attention_mask" not in collator(ROWS)
    assert "attention_mask" in collator.for_evaluation()(ROWS)


@pytest.mark.parametrize("eos_fill", ["longest", "multiple", "fixed", "none"])
def test_truncated_rows_are_not_told_to_end(eos_fill):
    rows = [_row([1, 2], [3, 4]), _row([1], [3, 4, EOS]), _row([1], [2])]
    length = {"multiple": 4, "fixed": 6}.get(eos_fill)
    ids, labels, visible = _collate(
        rows, eos_fill=eos_fill, eos_fill_length=length, max_length=4, pad_to_multiple_of=6
    )
    assert ids[0] == [1, 2, 3, 4, PAD, PAD] and labels[0] == [-100, -100, 3, 4, -100, -100]
    # of the same length, but complete
    assert ids[1] == [1, 3, 4, EOS, PAD, PAD]
    assert visible[:2] == [4, 4] and ids[2][:3] == [1, 2, EOS]


def test_rows_without_labels_are_trained_whole():
    ids, labels, _ = _collate([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}], eos_fill="none", min_eos=0)
    assert ids == [[1, 2, 3], [4, 5, PAD]] and labels == [[1, 2, 3], [4, 5, -100]]


CHAT = _row([1, 2], [3, 4], [5], [6, 6, 6], [7], [8], [2, 2])


def test_the_last_answer_is_trained_and_ends_the_row():
    ids, labels, _ = _collate([CHAT], multi_turn="last")
    assert ids == [[1, 2, 3, 4, 5, 6, 6, 6, 7, 8, EOS]]
    assert labels == [[-100] * 9 + [8, EOS]]


def test_all_answers_are_trained():
    ids, labels, _ = _collate([CHAT], multi_turn="all")
    assert ids == [[1, 2, 3, 4, 5, 6, 6, 6, 7, 8, EOS]]
    assert labels == [[-100, -100, 3, 4, -100, 6, 6, 6, -100, 8, EOS]]


def test_a_drawn_answer_is_trained_and_ends_the_row():
    drawn = set()
    for seed in range(20):
        ids, labels, _ = _collate([CHAT], seed=seed)
        drawn.add(tuple(ids[0]))
        (trained,) = [row[row.index(next(t for t in row if t != -100)) :] for row in labels]
        assert trained in ([3, 4, EOS], [6, 6, 6, EOS], [8, EOS]) and len(ids[0]) == len(labels[0])
    assert drawn == {
        (1, 2, 3, 4, EOS),
        (1, 2, 3, 4, 5, 6, 6, 6, EOS),
        (1, 2, 3, 4, 5, 6, 6, 6, 7, 8, EOS),
    }


def test_answers_are_drawn_anew_in_every_epoch_and_the_same_way_again():
    rows = [_row([1, n], [3], [5], [6, n]) for n in range(10, 40)]
    collator = DataCollatorForMaskedDiffusion(EOS, eos_fill="none")

    def trained(collator, rows):
        # two tokens if the first answer was drawn, three if the second
        return collator(rows)["labels"].ne(-100).sum(1).tolist()

    first = trained(collator, rows)
    collator.epoch.fill_(1)
    assert trained(collator, rows) != first and set(first) == {2, 3}
    # an evaluation draws as in epoch 0, whatever the epoch is
    assert trained(collator.for_evaluation(), rows) == first
    collator.epoch.fill_(0)
    # neither the order of the rows nor their neighbours matter
    assert trained(collator, rows[::-1]) == first[::-1]
    assert [trained(collator, [row])[0] for row in rows] == first


def test_worker_processes_see_the_epoch():
    collator = DataCollatorForMaskedDiffusion(EOS)
    assert collator.epoch.is_shared()
    assert pickle.loads(pickle.dumps(DataCollatorForMaskedDiffusion(EOS, min_eos=2))).min_eos == 2


def test_a_truncated_conversation_can_end_with_an_answer_that_is_complete():
    row = _row([1, 2], [3, 4], [5], [6])
    ids, _, _ = _collate([row], multi_turn="last", max_length=6)
    assert ids == [[1, 2, 3, 4, 5, 6]]
    cut_in_a_question = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, -100]}
    ids, labels, _ = _collate([cut_in_a_question], multi_turn="last", max_length=5)
    assert ids == [[1, 2, 3, 4, EOS]] and labels == [[-100, -100, 3, 4, EOS]]


def test_the_width_is_a_multiple():
    ids, _, visible = _collate(ROWS, pad_to_multiple_of=8)
    assert len(ids[0]) == 8 and visible == [6, 6, 6]


def test_examples_are_left_alone():
    rows = copy.deepcopy(ROWS)
    _collate(rows)
    assert rows == ROWS


@pytest.mark.parametrize(
    "as_type", [torch.tensor, lambda values: torch.tensor(values).numpy()], ids=["torch", "numpy"]
)
def test_tensors_are_collated_like_lists(as_type):
    rows = [{name: as_type(values) for name, values in row.items()} for row in ROWS]
    assert _collate(rows) == _collate(ROWS)


def test_rows_with_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match=r"Rows \[1\] of the batch have nothing to train on.*max_length"):
        _collate([ROWS[0], {"input_ids": [1, 2], "labels": [-100, -100]}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_fill": "most"}, "eos_fill='most'.*'multiple'"),
        ({"multi_turn": "first"}, "multi_turn='first'.*'sample'"),
        ({"min_eos": -1}, "min_eos=-1"),
        ({"eos_fill": "multiple"}, "eos_fill_length=None.*length in tokens"),
        ({"eos_fill": "fixed", "eos_fill_length": 0}, "eos_fill_length=0"),
        ({"eos_fill_length": 8}, "no use for `eos_fill_length=8`.*'fixed'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForMaskedDiffusion(EOS, **settings)
