"""What a teacher generated, and in which order."""

import json

import pytest
from datasets import Dataset, IterableDataset, load_dataset

from llada.generation.listeners.trace import Trace, TraceEvent
from llada.trainers.trajectories import TraceChecks, collect_trajectories, read_trace, vocabulary_of


def test_a_trace_is_read_with_what_follows_the_end():
    events = [
        TraceEvent(0, 0, [3, 2, 6], [8, 7, 0], [0.9] * 3),
        TraceEvent(1, 0, [4], [1], [0.9], end=5, fill=0),
    ]
    trace = Trace([5, 6, 9, 9, 9, 9, 9], [5, 6, 7, 8, 1], 9, events)
    assert trace.tokens_per_forward == 3 / 2
    ids, labels, steps = read_trace(trace)
    assert ids == [5, 6, 7, 8, 1, 0, 0]
    assert labels == [-100, -100, 7, 8, 1, 0, 0]
    assert steps == [-1, -1, 0, 0, 1, 1, 0]
    events[0].inserted = [3]
    with pytest.raises(ValueError, match="inserts tokens"):
        read_trace(trace)


def test_rows_are_what_the_teacher_generates(demo, questions, traces):
    model, tokenizer, _ = demo
    for (question, _), row in zip(questions[:6], traces, strict=False):
        prompt = tokenizer(question, return_tensors="pt")
        output = model.generate(**prompt, return_dict_in_generate=True, output_trace=True)
        length, written = prompt["input_ids"].shape[1], output.sequences[0].tolist()
        assert row["input_ids"][: len(written)] == written
        assert len(row["input_ids"]) == length + 4
        assert row["input_ids"][len(written) :] == [tokenizer.eos_token_id] * (length + 4 - len(written))
        assert row["labels"] == [-100] * length + row["input_ids"][length:]
        assert row["step_of"][: len(output.trace[0].final)] == output.trace[0].step_of
        # one token in a step, until the text ended
        assert {*row["step_of"][length:]} == {*range(len(output.trace[0].events))}


def test_a_run_that_was_interrupted_goes_on(demo, traces, questions, tmp_path, monkeypatch):
    model, tokenizer, _ = demo
    prompts, path = Dataset.from_dict({"prompt": [question for question, _ in questions]}), tmp_path / "traces.jsonl"
    collect_trajectories(model, tokenizer, prompts.select(range(8)), path)
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    calls, generate = [], model.generate
    monkeypatch.setattr(
        model, "generate", lambda **inputs: calls.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    rows = collect_trajectories(model.train(), tokenizer, prompts, path, batch_size=60)
    assert model.training and calls == [53]
    assert rows.to_list() == traces.to_list() == load_dataset("json", data_files=str(path), split="train").to_list()
    assert path.read_bytes().startswith(content)
    # nothing is left to do
    assert collect_trajectories(model, tokenizer, prompts, path).to_list() == traces.to_list() and calls == [53]
    model.eval()

    with pytest.raises(ValueError, match="generated with .*max_new_tokens.: 4, .* and now it is .*threshold.: 0.9"):
        more = Dataset.from_dict({"prompt": [*prompts["prompt"], "Who?"]})
        collect_trajectories(model, tokenizer, more, path, threshold=0.9)
    with pytest.raises(ValueError, match="Row 0 of .* answers another prompt"):
        collect_trajectories(model, tokenizer, prompts.select(range(59, -1, -1)), path)
    with pytest.raises(ValueError, match="holds 60 answers to 8 prompts"):
        collect_trajectories(model, tokenizer, prompts.select(range(8)), path)
    path.write_text(json.dumps({"prompt": "Who?"}) + "\n")
    with pytest.raises(ValueError, match=r"rows with \['prompt'\], so it holds no traces"):
        collect_trajectories(model, tokenizer, prompts, path)


def test_prompts_of_every_type(demo, questions, traces):
    model, tokenizer, _ = demo
    question = questions[0][0]
    ids = tokenizer(question)["input_ids"]
    (row,) = collect_trajectories(model, tokenizer, IterableDataset.from_generator(lambda: [{"input_ids": ids}]))
    assert row == traces[0]
    chat = [{"role": "user", "content": question.strip()}]
    (row,) = collect_trajectories(model, tokenizer, Dataset.from_list([{"prompt": chat}]))
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert row["input_ids"][: len(given)] == given and row["labels"][len(given) - 1 : len(given) + 1] != [-100] * 2

    for prompts, message in (
        ([{"question": "Who?"}], r"has the columns \['question'\]; it needs `prompt`"),
        ([{"prompt": "Who?"}, {"prompt": None}], "Row 1 of the prompt dataset: `prompt` is None"),
        ([{"input_ids": [999]}], "Row 0 of the prompt dataset: token 0 has the id 999"),
    ):
        with pytest.raises(ValueError, match=message):
            collect_trajectories(model, tokenizer, Dataset.from_list(prompts))
    prompts = Dataset.from_list([{"prompt": question}])
    with pytest.raises(ValueError, match="`num_return_sequences` is not supported"):
        collect_trajectories(model, tokenizer, prompts, num_return_sequences=2)
    with pytest.raises(ValueError, match="`batch_size=0` answers no prompt"):
        collect_trajectories(model, tokenizer, prompts, batch_size=0)


def test_rows_of_something_else_are_refused(demo, traces, tiny_tokenizer):
    check, row = TraceChecks(demo[1], "train"), traces[1]
    assert check(row, 1) == {}
    for changes, message in (
        ({"vocabulary": vocabulary_of(tiny_tokenizer)}, "Row 1 of the train dataset is of a teacher with another tok"),
        ({"step_of": row["step_of"][:9]}, "has 12 `input_ids`, 12 `labels` and 9 values of `step_of`"),
        ({"labels": row["input_ids"]}, "trains tokens that the teacher was given"),
    ):
        with pytest.raises(ValueError, match=message):
            check(row | changes, 1)
