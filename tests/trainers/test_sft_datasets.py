"""Which tokens of a dataset are trained, by type of dataset and chat template."""

import pytest
from datasets import Dataset, IterableDataset


def _trained(trainer, row=0, dataset=None):
    """The whole of a row as text, and its trained parts."""
    row = (dataset or trainer.train_dataset)[row]
    decode = trainer.processing_class.decode
    parts, part = [], []
    for token in [*row["labels"], -100]:
        if token != -100:
            part.append(token)
        elif part:
            parts.append(decode(part))
            part = []
    return decode(row["input_ids"]), parts


def test_completions_are_trained(make_trainer):
    text, parts = _trained(make_trainer(), row=1)
    assert text == "1+6=11<|endoftext|>" and parts == ["11<|endoftext|>"]


def test_text_is_trained_whole(make_trainer):
    text, parts = _trained(make_trainer(train_dataset=Dataset.from_dict({"text": ["abc", "de"]})))
    assert text == "abc<|endoftext|>" and parts == [text]


def test_tokenised_rows_are_taken_as_they_are(make_trainer):
    rows = Dataset.from_dict({"input_ids": [[65, 66, 67]], "labels": [[-100, 66, -100]]})
    assert make_trainer(train_dataset=rows).train_dataset[0] == rows[0]


def _header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


PROMPT = f"<|startoftext|>{_header('user')}q10<|eot_id|>{_header('assistant')}"
CONVERSATION = f"{PROMPT}answer 1 0<|eot_id|>{_header('user')}q11<|eot_id|>{_header('assistant')}answer 1 1<|eot_id|>"


@pytest.fixture(params=["marked", "published"])
def tokenizer(request, tiny_tokenizer):
    """Tokenizers whose template marks answers, and whose template is that of LLaDA-8B."""
    if request.param == "published":
        request.getfixturevalue("published_tokenizer")
    return tiny_tokenizer


def test_answers_of_messages_are_trained(make_trainer, conversations, tokenizer):
    template = tokenizer.chat_template
    trainer = make_trainer(train_dataset=conversations, processing_class=tokenizer)
    text, parts = _trained(trainer, row=1)
    assert text == CONVERSATION and parts == ["answer 1 0<|eot_id|>", "answer 1 1<|eot_id|>"]
    # one of them at a time, with the end of text after it
    labels = trainer.data_collator([trainer.train_dataset[1]])["labels"][0]
    trained = tokenizer.decode(labels[labels != -100])
    assert trained in ("answer 1 0<|eot_id|><|endoftext|>", "answer 1 1<|eot_id|><|endoftext|>")
    assert tokenizer.chat_template == template


def test_other_answers_are_trained_in_other_epochs(make_trainer, conversations, tiny_tokenizer):
    # one conversation of three turns
    trainer = make_trainer(
        train_dataset=conversations.select([2]), max_steps=12, per_device_train_batch_size=1, dataloader_num_workers=1
    )
    seen, compute_loss = [], trainer.compute_loss

    def record(model, inputs, **kwargs):
        labels = inputs["labels"][0]
        seen.append(tiny_tokenizer.decode(labels[labels != -100], skip_special_tokens=True))
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = record
    trainer.train()
    assert len(seen) == 12 and set(seen) == {"answer 2 0", "answer 2 1", "answer 2 2"}


def test_messages_can_be_trained_whole(make_trainer, conversations, tokenizer):
    trainer = make_trainer(train_dataset=conversations, processing_class=tokenizer, assistant_only_loss=False)
    assert _trained(trainer, row=1) == (CONVERSATION, [CONVERSATION])


def test_completions_of_conversations_are_trained(make_trainer, tokenizer):
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "q10"}]],
            "completion": [[{"role": "assistant", "content": "answer 1 0"}]],
        }
    )
    trainer = make_trainer(train_dataset=rows, processing_class=tokenizer)
    text, parts = _trained(trainer)
    # what is trained is what generation continues, and no header follows it
    assert text == PROMPT + "answer 1 0<|eot_id|>" and parts == ["answer 1 0<|eot_id|>"]
    rendered = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, tokenize=False)
    assert rendered == PROMPT


def test_the_format_of_sharegpt_is_understood(make_trainer, published_tokenizer):
    rows = Dataset.from_dict(
        {"conversations": [[{"from": "user", "value": "q10"}, {"from": "assistant", "value": "answer 1 0"}]]}
    )
    trainer = make_trainer(train_dataset=rows, processing_class=published_tokenizer)
    assert _trained(trainer) == (PROMPT + "answer 1 0<|eot_id|>", ["answer 1 0<|eot_id|>"])


def test_streams_are_trained(make_trainer, conversations, tokenizer):
    stream = IterableDataset.from_generator(lambda: iter(conversations))
    trainer = make_trainer(train_dataset=stream, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.state.log_history[0]["content_ce"] > 5


def test_evaluation_sets_are_prepared_like_the_training_set(make_trainer, conversations, published_tokenizer):
    trainer = make_trainer(
        train_dataset=conversations, eval_dataset=conversations, processing_class=published_tokenizer
    )
    template = published_tokenizer.chat_template
    assert _trained(trainer, 1, trainer.eval_dataset) == _trained(trainer, 1)
    # also one that comes late
    late = trainer.evaluate(conversations)
    assert late["eval_nll_bound"] == trainer.evaluate()["eval_nll_bound"]
    assert published_tokenizer.chat_template == template


def test_the_published_template_is_saved(make_trainer, conversations, published_tokenizer, tmp_path):
    template = published_tokenizer.chat_template
    trainer = make_trainer(
        train_dataset=conversations,
        processing_class=published_tokenizer,
        save_strategy="steps",
        save_steps=2,
        multi_turn="last",
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-2"):
        assert type(published_tokenizer).from_pretrained(folder).chat_template == template


def test_a_failed_start_leaves_the_template_alone(make_trainer, conversations, published_tokenizer):
    template = published_tokenizer.chat_template
    with pytest.raises(ValueError, match="eos_token"):
        make_trainer(train_dataset=conversations, processing_class=published_tokenizer, eos_token="<|no such token|>")
    assert published_tokenizer.chat_template == template


MARKED_TEMPLATE = """\
{%- for message in messages -%}
    {{ "[" + message["role"] + "]" }}
    {%- if message["role"] == "assistant" -%}
        {%- generation -%}{{ message["content"] + "<|eot_id|>" }}{%- endgeneration -%}
    {%- else -%}{{ message["content"] }}{%- endif -%}
{%- endfor -%}
"""


def test_a_template_that_is_given_is_trained_and_saved(make_trainer, conversations, published_tokenizer, tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(MARKED_TEMPLATE, encoding="utf-8")
    trainer = make_trainer(
        train_dataset=conversations, processing_class=published_tokenizer, chat_template_path=str(path)
    )
    assert _trained(trainer, 1)[1] == ["answer 1 0<|eot_id|>", "answer 1 1<|eot_id|>"]
    assert published_tokenizer.chat_template == MARKED_TEMPLATE


def test_another_end_of_text_token_is_filled_in(make_trainer, pairs):
    trainer = make_trainer(eos_token="<|eot_id|>", eos_fill="fixed", eos_fill_length=12)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["labels"][0, -10:].tolist() == [298] * 10
    assert trainer.model.config.eos_token_id == 298
    trainer.train()
    assert trainer.state.log_history[0]["eos_ce"] > 5


def test_rows_that_are_cut_off_end_without_the_end_of_text(make_trainer):
    rows = Dataset.from_dict({"prompt": ["ab", "abcdefghijkl"], "completion": ["cdefghijkl", "m"]})
    trainer = make_trainer(train_dataset=rows, max_length=8)
    # the second has nothing left to train on
    assert len(trainer.train_dataset) == 1
    batch = trainer.data_collator([trainer.train_dataset[0], {"input_ids": [65, 66], "labels": [-100, 66]}])
    assert trainer.processing_class.decode(batch["input_ids"][0]) == "abcdefgh"
    assert 299 not in batch["labels"][0] and batch["labels"][1].tolist() == [-100, 66, *[299] * 6]


def test_rows_that_are_prompt_only_are_refused(make_trainer):
    rows = Dataset.from_dict({"input_ids": [[65, 66]] * 4, "labels": [[-100, -100]] * 4})
    with pytest.raises(ValueError, match="nothing to train on"):
        make_trainer(train_dataset=rows, max_length=None).train()
    # `max_length` drops them beforehand
    mixed = Dataset.from_dict({"input_ids": [[65, 66], [65, 66]], "labels": [[-100, -100], [-100, 66]]})
    assert len(make_trainer(train_dataset=mixed).train_dataset) == 1


def test_unread_masks_are_refused(make_trainer):
    rows = Dataset.from_dict({"input_ids": [[65, 66]], "completion_mask": [[0, 1]]})
    with pytest.raises(ValueError, match="skip_prepare_dataset.*`labels`"):
        make_trainer(train_dataset=rows, dataset_kwargs={"skip_prepare_dataset": True})
    labelled = rows.add_column("labels", [[-100, 66]])
    trainer = make_trainer(train_dataset=labelled, dataset_kwargs={"skip_prepare_dataset": True})
    assert trainer.train_dataset[0]["labels"] == [-100, 66]
