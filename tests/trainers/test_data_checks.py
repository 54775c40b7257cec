"""What fine-tuning honours in a dataset, and what it refuses: with the row, the column and what to write."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import PromptTuningConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from llada import DataCollatorForMaskedDiffusion


def _stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


MAKERS = pytest.mark.parametrize("make", [Dataset.from_list, _stream], ids=["dataset", "stream"])


def _rows(trainer, dataset=None):
    rows = trainer.train_dataset if dataset is None else dataset
    return [(row["input_ids"], row["labels"]) for row in rows]


@MAKERS
@pytest.mark.parametrize(
    ("row", "ids", "labels"),
    [
        ({"prompt_lengths": 2}, [1, 2, 3, 4], [-100, -100, 3, 4]),
        ({"prompt_lengths": [0]}, [1, 2, 3, 4], [1, 2, 3, 4]),
        ({"completion_mask": [0, 1, 1, 0]}, [1, 2, 3, 4], [-100, 2, 3, -100]),
        ({"assistant_masks": [0, 0, 0, 1]}, [1, 2, 3, 4], [-100, -100, -100, 4]),
        ({"labels": [-100, -100, 3, 4]}, [1, 2, 3, 4], [-100, -100, 3, 4]),
        ({"attention_mask": [0, 1, 1, 0]}, [2, 3], [2, 3]),
        ({"attention_mask": [1, 1, 1, 0], "prompt_lengths": 1}, [1, 2, 3], [-100, 2, 3]),
        # of a position that is padding nothing is read
        ({"attention_mask": [0, 1, 1, 1], "labels": [7, -100, 3, 4]}, [2, 3, 4], [-100, 3, 4]),
        ({"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}, [1, 2, 3, 4], [-100, 2, -100, 4]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_columns_of_tokenised_rows_are_honoured(make_trainer, make, row, ids, labels):
    trainer = make_trainer(
        train_dataset=make([{"input_ids": [1, 2, 3, 4], **row}]),
        eval_dataset=make([{"input_ids": [1, 2, 3, 4], **row}]),
    )
    assert _rows(trainer) == _rows(trainer, trainer.eval_dataset) == [(ids, labels)]
    # prepared rows are prepared once
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_rows_may_be_tensors(make_trainer):
    rows = Dataset.from_list([{"input_ids": [1, 2, 3], "prompt_lengths": 1, "attention_mask": [1, 1, 0]}])
    for form in ("torch", "numpy"):
        (row,) = _rows(make_trainer(train_dataset=rows.with_format(form)))
        assert [np.asarray(values).tolist() for values in row] == [[1, 2], [-100, 2]]


def test_completion_masks_may_be_left_unread(make_trainer):
    rows = Dataset.from_list([{"input_ids": [1, 2], "completion_mask": [0, 1]}])
    assert _rows(make_trainer(train_dataset=rows, completion_only_loss=False)) == [([1, 2], [1, 2])]


def _message(content, role="assistant"):
    return {"role": role, "content": content}


USER = _message("q", "user")
FINE = {
    "input_ids": [1, 2],
    "labels": [1, 2],
    "attention_mask": [1, 1],
    "completion_mask": [0, 1],
    "prompt_lengths": 1,
    "text": "a",
    "prompt": "a",
    "completion": "b",
    "messages": [USER, _message("a")],
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
}
BROKEN = {
    "lengths of labels": ({"input_ids": [1, 2], "labels": [1]}, "`labels` has 1 values and `input_ids` 2"),
    "lengths of masks": ({"input_ids": [1, 2], "attention_mask": [1, 1, 1]}, "`attention_mask` has 3 values"),
    "other labels": ({"input_ids": [1, 2], "labels": [-100, 9]}, "`labels` has 9 at token 1, where `input_ids` has 2"),
    "no labels": ({"input_ids": [1, 2], "labels": None}, "`labels` is None. Write a flat list of integers"),
    "hole": ({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}, "`attention_mask` has a hole"),
    "mask of weights": ({"input_ids": [1, 2], "completion_mask": [0, 2]}, "`completion_mask` has values other than"),
    "long prompt": ({"input_ids": [1, 2], "prompt_lengths": 3}, "`prompt_lengths` is 3 in a row of 2 tokens"),
    "negative prompt": ({"input_ids": [1, 2], "prompt_lengths": -1}, "`prompt_lengths` is -1 .*before the answer"),
    "no ids": ({"input_ids": None}, "`input_ids` is None"),
    "mask token": ({"input_ids": [1, 300]}, r"token 1 is the mask token \(id 300\).*Take it out"),
    "mask token in text": ({"text": "ab<|mdm_mask|>"}, "token 2 is the mask token"),
    "vocabulary": ({"input_ids": [1, 320]}, "token 1 has the id 320, and the vocabulary has the ids 0 to 319"),
    "negative": ({"input_ids": [-100, 2]}, "token 0 has the id -100"),
    "no text": ({"text": None}, "`text` is None. Write text, or drop the row"),
    "no prompt": ({"prompt": None, "completion": "b"}, "`prompt` is None"),
    "no completion": ({"prompt": "a", "completion": None}, "`completion` is None"),
    "no messages": ({"messages": None}, "`messages` is None. Write a list of messages"),
    "empty messages": ({"messages": []}, r"`messages` is \[\]. Write a list"),
    "no message": ({"messages": [None]}, r"`messages\[0\]` is None. Write a `dict`"),
    "no content": ({"messages": [USER, _message(None)]}, r"content of `messages\[1\]` is None. Write text"),
    "unknown role": ({"messages": [USER, _message("a", "bot")]}, r"`messages\[1\]` has the role 'bot'.*'assistant'"),
    "no role": ({"messages": [USER, _message("a", None)]}, r"`messages\[1\]` has the role None"),
    "no answer": ({"messages": [USER]}, "no answer to train on"),
    "unknown sender": ({"conversations": [{"from": "bing", "value": "q"}]}, "has the role 'bing', which nobody knows"),
}


@MAKERS
@pytest.mark.parametrize(("row", "message"), BROKEN.values(), ids=BROKEN)
def test_rows_that_cannot_be_read_are_named(make_trainer, make, row, message):
    rows = [{column: FINE[column] for column in row}, row]
    with pytest.raises(ValueError, match=f"Row 1 of the train dataset: .*{message}"):
        list(make_trainer(train_dataset=make(rows)).train_dataset)


@MAKERS
def test_rows_of_evaluations_that_cannot_be_read_are_named(make_trainer, make):
    row, message = BROKEN["mask token"]
    rows = [{"input_ids": [1, 2]}, row]
    with pytest.raises(ValueError, match=f"Row 1 of the hard dataset: {message}"):
        list(make_trainer(eval_dataset={"hard": make(rows)}).eval_dataset["hard"])
    with pytest.raises(ValueError, match=f"Row 1 of the eval dataset: {message}"):
        make_trainer().evaluate(make(rows))


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [[1, 2]]},
        {"input_ids": [1.0, 2.0]},
        {"input_ids": [1, 2], "prompt_lengths": [1, 1]},
        {"prompt": [USER], "completion": "b"},
        {"messages": "q"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]},
    ],
    ids=["nested", "floats", "two lengths", "mixed", "text", "parts"],
)
def test_fields_of_another_type_are_named(make_trainer, row):
    with pytest.raises(ValueError, match="Row 0 of the train dataset: .*Write"):
        make_trainer(train_dataset=Dataset.from_list([row]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, r"rename_columns\(\{'question': 'prompt', 'answer': 'completion'\}\)"),
        ({"instruction": "a", "response": "b"}, r"\{'instruction': 'prompt', 'response': 'completion'\}"),
        ({"instruction": "a", "input": "", "output": "b"}, r"row\['instruction'\].*row\['input'\].*row\['output'\]"),
        ({"prompt": "a", "chosen": "b"}, r"\{'chosen': 'completion'\}"),
        ({"prompt": "a"}, r"columns \['prompt'\]; it needs `prompt` and `completion`.*Rename or map them"),
        ({"words": "a"}, r"columns \['words'\]; it needs .*`dataset_text_field`"),
        ({"input_ids": [1], "prompt_len": 1}, r"rename_column\('prompt_len', 'prompt_lengths'\)"),
        ({"input_ids": [1], "loss_mask": [1]}, "`loss_mask`, which is not read"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_columns_that_nobody_knows_come_with_advice(make_trainer, pairs, row, message):
    rows = Dataset.from_list([row])
    with pytest.raises(ValueError, match=f"The train dataset has .*{message}"):
        make_trainer(train_dataset=rows)
    with pytest.raises(ValueError, match=f"The eval dataset has .*{message}"):
        make_trainer().evaluate(rows)


def test_what_is_no_dataset_is_refused(make_trainer, pairs):
    splits = DatasetDict(train=pairs, test=pairs.select([0]))
    with pytest.raises(ValueError, match=r"train dataset is a DatasetDict of the splits .*`dataset\['train'\]`"):
        make_trainer(train_dataset=splits)
    with pytest.raises(ValueError, match=r"of type list. Write .*Dataset.from_list\(rows\)"):
        make_trainer(train_dataset=pairs.to_list())
    # evaluation takes several
    assert {"eval_train_loss", "eval_test_loss"} <= make_trainer(eval_dataset=splits).evaluate().keys()


@MAKERS
def test_empty_files_are_refused(make_trainer, pairs, make):
    with pytest.raises(ValueError, match="The train dataset is empty"):
        make_trainer(train_dataset=make([]))
    with pytest.raises(ValueError, match="The eval dataset is empty"):
        make_trainer(eval_dataset=make([]))
    with pytest.raises(ValueError, match="The eval dataset is empty"):
        make_trainer().evaluate(make([]))


LONG = [{"prompt": "a" * length, "completion": "b"} for length in (1, 9, 2, 8)]


def test_rows_that_are_left_out_are_counted(make_trainer, caplog):
    rows = Dataset.from_list(LONG)
    trainer = make_trainer(train_dataset=rows, eval_dataset=rows.select([0, 1, 2]), max_length=8)
    assert len(trainer.train_dataset) == len(trainer.eval_dataset) == 2
    rest = "have nothing to train on within `max_length=8` and are left out. Raise `max_length`"
    assert f"2 of 4 rows of the train dataset {rest}" in caplog.text
    assert f"1 of 3 rows of the eval dataset {rest}" in caplog.text
    with pytest.raises(ValueError, match="All rows of the eval dataset have nothing to train on within"):
        trainer.evaluate(rows.select([1, 3]))


def test_rows_that_are_left_out_of_a_stream_are_told(make_trainer, caplog):
    trainer = make_trainer(train_dataset=_stream(LONG), max_length=8)
    assert len(list(trainer.train_dataset)) == 2
    assert "Some rows of the train dataset have nothing to train on within `max_length=8`" in caplog.text
    with pytest.raises(ValueError, match="All rows of the train dataset have nothing to train on"):
        make_trainer(train_dataset=_stream(LONG[1:2]), max_length=8)


@MAKERS
def test_empty_answers_are_counted(make_trainer, make, caplog):
    pairs = [{"prompt": "a", "completion": text} for text in ("b", " ", "")]
    trainer = make_trainer(train_dataset=make(pairs))
    assert [labels for _, labels in _rows(trainer)][2] == [-100, 299]
    talks = [{"messages": [USER, _message(text)]} for text in ("b", "")]
    trainer.evaluate(make(talks))
    counts = ("2 of 3 rows", "1 of 2 rows") if make is not _stream else ("Rows", "Rows")
    for count, name in zip(counts, ("train", "eval"), strict=True):
        assert f"{count} of the {name} dataset have an empty answer" in caplog.text


def test_every_dataset_is_read_by_its_own_type(make_trainer, pairs, conversations):
    sets = {"talks": conversations, "pairs": pairs, "text": Dataset.from_dict({"text": ["ab"]})}
    # the questions of messages are not scored, nor prompts, whatever is trained
    expected = None
    for train in (pairs, conversations, sets["text"]):
        prepared = make_trainer(train_dataset=train, eval_dataset=sets).eval_dataset
        rows = {name: _rows(None, dataset) for name, dataset in prepared.items()}
        expected = expected or rows
        assert rows == expected
    assert all(labels[0] == -100 for name in ("talks", "pairs") for _, labels in expected[name])


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"text": "a"}, {"assistant_only_loss": True}, "not conversational. Write `messages`"),
        ({"prompt": "a", "completion": "b"}, {"assistant_only_loss": True}, "not conversational"),
        ({"input_ids": [1, 2]}, {"completion_only_loss": True}, "what a completion is. Write `prompt`"),
        ({"text": "a"}, {"completion_only_loss": True}, "what a completion is"),
    ],
    ids=["text", "pair", "tokens", "completion of text"],
)
def test_answers_that_are_not_told_are_refused(make_trainer, row, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(train_dataset=Dataset.from_list([row]), **settings)


def test_answers_of_a_completion_can_be_trained_alone(make_trainer, tiny_tokenizer):
    row = {"prompt": [USER], "completion": [_message("one"), _message("more", "user"), _message("two")]}
    for settings, text in (
        ({"assistant_only_loss": True}, "one<|eot_id|>two<|eot_id|>"),
        ({}, "one<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nmore<|eot_id|>"),
    ):
        trainer = make_trainer(train_dataset=Dataset.from_list([row]), **settings)
        assert trainer.args.assistant_only_loss == settings.get("assistant_only_loss")
        ((_, labels),) = _rows(trainer)
        assert tiny_tokenizer.decode([label for label in labels if label != -100]).startswith(text)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "2+2=", "completion": "4"}, {"prompt": "é", "completion": "你<|endoftext|>"}],
        [{"text": "abc"}, {"text": ""}],
        [{"messages": [USER, _message("a"), USER, _message(" b ")]}],
        [{"prompt": [USER], "completion": [_message("a")]}],
    ],
    ids=["pairs", "text", "messages", "conversational pairs"],
)
def test_rows_are_those_of_the_base(make_trainer, make_model, make_args, tiny_tokenizer, rows):
    base = SFTTrainer(
        make_model(),
        make_args(SFTConfig, assistant_only_loss="messages" in rows[0], bf16=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    assert _rows(make_trainer(train_dataset=Dataset.from_list(rows))) == _rows(base)


def test_tools_and_variables_reach_the_template(make_trainer, tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{{ style }}{% for tool in tools or [] %}{{ tool.name }}{% endfor %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    row = {"messages": [USER, _message("a")], "tools": '[{"name": "add"}]', "chat_template_kwargs": {"style": "dry "}}
    ((ids, labels),) = _rows(make_trainer(train_dataset=Dataset.from_list([row])))
    assert tiny_tokenizer.decode(ids) == "dry add[user]q[assistant]a" and labels == [*[-100] * (len(ids) - 1), ids[-1]]


def test_conversations_of_sharegpt_are_read(make_trainer, tiny_tokenizer):
    ((_, labels),) = _rows(make_trainer(train_dataset=Dataset.from_list([{"conversations": FINE["conversations"]}])))
    assert tiny_tokenizer.decode([label for label in labels if label != -100]) == "a<|eot_id|>"
    with pytest.raises(ValueError, match="no chat template"):
        tiny_tokenizer.chat_template = None
        make_trainer(
            train_dataset=Dataset.from_list([{"messages": FINE["messages"]}]), processing_class=tiny_tokenizer
        )


def test_roles_that_the_template_names_are_known(make_trainer, tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}[{{ 'K' if m.role == 'critic' else m.role }}]{{ m.content }}{% endfor %}"
    )
    row = {"messages": [USER, _message("well", "critic"), _message("a")]}
    ((ids, _),) = _rows(make_trainer(train_dataset=Dataset.from_list([row])))
    assert tiny_tokenizer.decode(ids) == "[user]q[K]well[assistant]a"


def test_a_function_may_write_the_text(make_model, make_args, tiny_tokenizer):
    from llada import LLaDASFTTrainer

    trainer = LLaDASFTTrainer(
        make_model(),
        make_args(dataset_text_field="words"),
        train_dataset=Dataset.from_list([{"question": "a", "answer": "b"}]),
        processing_class=tiny_tokenizer,
        formatting_func=lambda row: row["question"] + row["answer"],
    )
    ((ids, _),) = _rows(trainer)
    assert tiny_tokenizer.decode(ids) == "ab<|endoftext|>"


def test_transforms_are_refused(make_trainer, pairs):
    with pytest.raises(ValueError, match="with_transform"):
        make_trainer(train_dataset=pairs.with_transform(lambda rows: rows))


def test_a_prompt_that_ends_within_a_token_is_told(make_trainer, tiny_tokenizer, caplog):
    tiny_tokenizer.add_tokens(["=4"])
    rows = Dataset.from_list([{"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match="the vocabulary has the ids"):
        make_trainer(train_dataset=Dataset.from_list([{"input_ids": [321]}]))
    trainer = make_trainer(train_dataset=rows)
    trainer._prepare_dataset(
        Dataset.from_list([{"prompt": "2+2=", "completion": "4"}]), tiny_tokenizer, trainer.args, False, None, "eval"
    )
    assert "The tokens of a prompt end with '='" in caplog.text


def test_adapters_of_virtual_tokens_in_a_model_are_refused(make_trainer, make_model):
    sizes = {"num_virtual_tokens": 2, "num_attention_heads": 4, "num_layers": 2, "token_dim": 32}
    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", **sizes))
    with pytest.raises(ValueError, match="PromptTuningConfig, whose virtual tokens.*LoraConfig"):
        make_trainer(model)


@pytest.mark.parametrize("unknown", [None, "<|reserved_301|>"])
def test_an_unknown_end_of_text_is_refused(make_trainer, tiny_tokenizer, unknown):
    # a tokenizer with an unknown token has an id for every name
    tiny_tokenizer.unk_token = unknown
    with pytest.raises(ValueError, match=r"`eos_token='<nope>'` is no token of the tokenizer.*'<\|endoftext\|>'"):
        make_trainer(eos_token="<nope>", processing_class=tiny_tokenizer)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_published_template_can_be_given_by_path(
    make_trainer, conversations, published_tokenizer, tiny_tokenizer, tmp_path, form
):
    published_tokenizer.save_pretrained(tmp_path / "published")
    other = type(published_tokenizer).from_pretrained(tmp_path / "published")
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    other.eos_token = "<|reserved_301|>"
    path = tmp_path / "published" / ("chat_template.jinja" if form == "file" else "")
    trainer = make_trainer(train_dataset=conversations, processing_class=other, chat_template_path=str(path))
    ids, labels = _rows(trainer)[0]
    assert other.decode([label for label in labels if label != -100]) == "answer 0 0<|eot_id|>"
    assert other.decode(ids).endswith("answer 0 0<|eot_id|>")
    # a folder brings its end of text along
    eos = 301 if form == "file" else 299
    assert trainer.data_collator.eos_token_id == trainer._eos_token_id == eos
    trainer.train()


def test_rows_that_are_not_prepared_are_looked_at(make_trainer, pairs):
    settings = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    fine = {"input_ids": [65, 66], "labels": [-100, 66]}
    for column, value in (("attention_mask", [1, 1]), ("prompt_lengths", 1)):
        row = fine | {column: value}
        if column == "prompt_lengths":
            row.pop("labels")
        with pytest.raises(ValueError, match=f"`{column}` of the train dataset unread"):
            make_trainer(train_dataset=Dataset.from_list([row]), **settings)
        with pytest.raises(ValueError, match=f"`{column}` of the eval dataset unread"):
            make_trainer(train_dataset=Dataset.from_list([fine]), **settings).evaluate(Dataset.from_list([row]))
    # a collator of one's own may read them, if it is given them
    rows = Dataset.from_list([fine | {"attention_mask": [1, 1]}])
    make_trainer(train_dataset=rows, data_collator=lambda rows: rows, **settings)
    broken = Dataset.from_list([{"input_ids": [65, 66], "labels": [66]}] * 4)
    with pytest.raises(ValueError, match="Row 0 of the batch has 1 labels and 2 tokens"):
        make_trainer(train_dataset=broken, **settings).train()


def test_labels_do_not_shift_across_the_rows_of_a_batch():
    rows = [{"input_ids": [1, 2], "labels": [1]}, {"input_ids": [3], "labels": [3, -100]}]
    with pytest.raises(ValueError, match="Row 0 of the batch has 1 labels and 2 tokens. Write one for every token"):
        DataCollatorForMaskedDiffusion(299)(rows)
    mixed = [{"input_ids": [1, 2], "labels": [1, -100]}, {"input_ids": [3]}]
    for order in (mixed, mixed[::-1]):
        with pytest.raises(ValueError, match="Some rows of the batch have `labels` and some have none"):
            DataCollatorForMaskedDiffusion(299)(order)
    tensors = [{name: torch.tensor(values) for name, values in row.items()} for row in mixed[:1]]
    assert DataCollatorForMaskedDiffusion(299)(tensors)["labels"].tolist() == [[1, 299]]


@pytest.fixture(autouse=True)
def _every_warning_once(caplog):
    """Warnings are told once in a process: forgets those of earlier tests, and lets `caplog` see them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.warning_once.cache_clear()
    logger = logging.getLogger("llada")
    logger.propagate = True
    yield


def test_rows_may_be_read_by_several_processes(make_trainer, conversations, published_tokenizer):
    alone = make_trainer(train_dataset=conversations, processing_class=published_tokenizer)
    together = make_trainer(train_dataset=conversations, processing_class=published_tokenizer, dataset_num_proc=2)
    assert _rows(together) == _rows(alone)
    broken = Dataset.from_list([FINE, FINE, FINE, FINE | {"input_ids": [1, 300]}])
    with pytest.raises(ValueError, match="Row 3 of the train dataset: `labels` has 2 at token 1"):
        make_trainer(train_dataset=broken, dataset_num_proc=2)
