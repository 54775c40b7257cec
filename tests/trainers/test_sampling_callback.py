"""Samples during training: what is shown and logged, and that the training does not notice."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from training_probes import parameters_of
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from llada import DiffusionGenerationConfig, SampleCallback
from llada.generation.listeners.trace import Trace, TraceEvent
from llada.trainers.sampling_callback import COLUMNS, describe_steps


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")

THREE = DiffusionGenerationConfig(do_sample=True, num_return_sequences=3)
DRAWN = {"max_new_tokens": 4, "do_sample": True, "temperature": 2.0}


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def sampled(make_trainer, pairs):
    """Trains with samples, and gives trainer, callback and what was written."""

    def train(settings=None, trainer_settings=None, file=None, **kwargs):
        trainer = make_trainer(**{"eval_dataset": pairs, **(trainer_settings or {})})
        file = file or io.StringIO()
        callback = SampleCallback(trainer, file=file, **{"max_new_tokens": 3, **kwargs}, **(settings or {}))
        trainer.add_callback(callback)
        trainer.train()
        return trainer, callback, file.getvalue()

    return train


def test_prompts_of_the_evaluation_set_are_answered(sampled):
    _, callback, written = sampled(freq=2, num_prompts=2, trainer_settings={"max_steps": 4})
    assert [row[0] for row in callback.table] == [2, 2, 4, 4]
    assert [row[1] for row in callback.table] == ["0+5=", "1+6="] * 2
    assert [row[5] for row in callback.table] == ["1", "11"] * 2
    for step, prompt, answer, committed, forwards, _ in callback.table:
        assert f"--- step {step} --- {prompt}\n" in written and f"{committed}\n" in written
        steps = [int(number) for number in re.findall(r"\[(\d+)\](?: |$)", committed)]
        assert steps and max(steps) < forwards and len(set(steps)) == len(steps)
        assert answer in written


@pytest.mark.parametrize("as_dict", [False, True], ids=["one", "several"])
def test_samples_follow_evaluations(sampled, pairs, as_dict):
    trainer_settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    trainer_settings["eval_dataset"] = {"some": pairs, "more": pairs} if as_dict else pairs
    _, callback, _ = sampled(num_prompts=1, trainer_settings=trainer_settings)
    assert [row[0] for row in callback.table] == [2, 4]


def test_prompts_may_be_given_as_text_or_conversations(sampled, tiny_tokenizer):
    conversation = [{"role": "user", "content": "2+2"}]
    _, callback, _ = sampled(prompts=["1+1=", conversation], freq=2)
    texts = [row[1] for row in callback.table]
    rendered = tiny_tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
    assert texts == ["1+1=", tiny_tokenizer.decode(rendered, skip_special_tokens=True).strip()]
    assert [row[5] for row in callback.table] == ["", ""]


def test_answers_grow_in_a_terminal(sampled):
    _, callback, written = sampled(freq=2, num_prompts=1, file=_Terminal())
    # drawn over what stood there, with masks in it
    assert "\r" in written and "░" in written and callback.table[0][3] in written


def test_settings_are_those_of_generate(sampled):
    config = DiffusionGenerationConfig(max_new_tokens=6, block_length=6, max_denoising_steps=2, eos_early_stop=False)
    _, callback, _ = sampled(generation_config=config, max_new_tokens=6, freq=2, num_prompts=1)
    assert callback.table[0][4] == 2


def test_control_characters_reach_no_terminal(sampled, monkeypatch):
    evil = "\x1b]0;title\x07\u202e1+1=\x9b2J"
    file = _Terminal()
    _, callback, written = sampled(prompts=[evil], freq=2, file=file)
    drawn = re.sub(r"\x1b\[[\d;]*[mAK]|\r", "", written)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", drawn + callback.table[0][1] + callback.table[0][3])


def test_every_token_is_shown_with_its_step(tiny_tokenizer):
    tokens = [*b"ab", 27, 32, 299, 299]
    trace = Trace([5, *[300] * 6], [5, *tokens], 300)
    for step, (place, token) in enumerate(zip((3, 1, 2, 4, 5, 6), (27, 97, 98, 32, 299, 299), strict=True)):
        trace.events.append(TraceEvent(step, 0, [place], [token], [1.0]))
    # bytes of the tokenizer are not those of ASCII
    shown = describe_steps(trace, tiny_tokenizer)
    assert [int(step) for step in re.findall(r"\[(\d)\]", shown)] == [1, 2, 0, 3, 4]
    assert shown.endswith("<|endoftext|>[4]") and "\x1b" not in shown


class _Noise(TrainerCallback):
    """The random numbers and modes that every step begins with."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        modes = tuple(module.training for module in model.modules())
        self.seen.append((torch.get_rng_state().sum().item(), modes))


def test_training_does_not_notice(make_trainer, make_model, pairs, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "activation_checkpointing": True}
    adapter = LoraConfig(r=2, lora_dropout=0.3, task_type="CAUSAL_LM")

    def run(samples, resume=None, **more):
        noise = _Noise()
        model = make_model(residual_dropout=0.2)
        trainer = make_trainer(
            model=model, peft_config=adapter, eval_dataset=pairs, callbacks=[noise], **settings, **more
        )
        if samples:
            trainer.add_callback(SampleCallback(trainer, freq=1, num_prompts=2, file=io.StringIO(), **DRAWN))
        trainer.train(resume_from_checkpoint=resume)
        return parameters_of(trainer.model), noise.seen, [log.get("loss") for log in trainer.state.log_history]

    expected, plain, losses = run(False, output_dir=str(tmp_path / "plain"))
    found, sampled, sampled_losses = run(True, output_dir=str(tmp_path / "sampled"))
    assert plain == sampled and losses == sampled_losses
    resumed, _, _ = run(True, str(tmp_path / "sampled" / "checkpoint-2"), output_dir=str(tmp_path / "sampled"))
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]) and torch.equal(tensor, resumed[name]), name


def test_samples_use_the_same_noise_every_time(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs, max_steps=3, learning_rate=0.0)
    callback = SampleCallback(trainer, freq=1, num_prompts=1, file=io.StringIO(), **DRAWN)
    trainer.add_callback(callback)
    trainer.train()
    assert len(callback.table) == 3 and len({tuple(row[1:]) for row in callback.table}) == 1


@pytest.mark.parametrize("backend", ["wandb", "trackio"])
def test_the_table_is_logged(make_trainer, pairs, monkeypatch, backend):
    logged = []

    class Table:
        def __init__(self, columns=None, data=None, dataframe=None):
            self.columns = list(dataframe.columns) if columns is None else columns
            self.data = dataframe.values.tolist() if data is None else list(data)

    monkeypatch.setitem(sys.modules, backend, SimpleNamespace(Table=Table, log=logged.append))
    trainer = make_trainer(eval_dataset=pairs, max_steps=2)
    callback = SampleCallback(trainer, freq=1, num_prompts=1, file=io.StringIO(), max_new_tokens=2)
    trainer.add_callback(callback)
    trainer.args.report_to = [backend]
    trainer.train()
    assert [log["train/global_step"] for log in logged] == [1, 2]
    assert [len(log["samples"].data) for log in logged] == [1, 2]
    assert logged[1]["samples"].columns == list(COLUMNS) and logged[1]["samples"].data == callback.table


def test_tensorboard_gets_a_table_whose_cells_nothing_leaves(make_trainer):
    written = []
    writer = SimpleNamespace(
        add_text=lambda *given: written.append(given),
        add_scalar=lambda *_: None,
        flush=lambda: None,
        close=lambda: None,
    )
    trainer = make_trainer(max_steps=1)
    trainer.callback_handler.callbacks.append(TensorBoardCallback.__new__(TensorBoardCallback))
    trainer.callback_handler.callbacks[-1].__dict__.update(tb_writer=writer, logging_dir="", _SummaryWriter=None)
    prompt = "a|b <img src=x>\n`c`"
    trainer.add_callback(SampleCallback(trainer, [prompt], freq=1, file=io.StringIO(), max_new_tokens=2))
    trainer.train()
    (text,) = (text for name, text, *_ in written if name == "samples")
    lines = text.split("\n")
    assert len(lines) == 3 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    assert "<img" not in text and "a&#124;b &#60;img src&#61;x&#62;<br>&#96;c&#96;" in lines[2]


def test_tensorboard_writes_losses_and_samples(make_trainer, pairs, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(
        report_to="tensorboard",
        eval_dataset=pairs,
        sample_steps=1,
        sample_prompts=["1+1="],
        sample_kwargs={"max_new_tokens": 2},
    )
    trainer.train()
    trainer.evaluate()
    events = event_accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("loss", "content_ce", "mask_ratio"):
        written = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        logged = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
        assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged] and len(logged) == 2
    (bound,) = events.Scalars("eval/nll_bound")
    assert bound.value == pytest.approx(trainer.state.log_history[-1]["eval_nll_bound"])
    assert [event.step for event in events.Tensors("samples/text_summary")] == [1, 2]
    assert b"| 2 | 1&#43;1&#61; |" in events.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0]


def test_the_option_adds_the_callback(make_trainer, pairs, make_args):
    trainer = make_trainer(
        eval_dataset=pairs, sample_steps=1, sample_prompts=["1+1="], sample_kwargs='{"max_new_tokens": 2}'
    )
    (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, SampleCallback))
    trainer.train()
    assert [row[:2] for row in callback.table] == [[1, "1+1="], [2, "1+1="]]
    assert not any(isinstance(one, SampleCallback) for one in make_trainer().callback_handler.callbacks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_kwargs": "{", "sample_steps": 1}, "is no JSON"),
        ({"sample_kwargs": "3", "sample_steps": 1}, "names no arguments of `generate`"),
        ({"sample_prompts": ["a"]}, "do nothing without samples"),
        ({"sample_steps": -1}, "is no number of steps"),
    ],
    ids=["no JSON", "no dict", "no steps", "negative"],
)
def test_wrong_options_are_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(**settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freq": 0}, "is no number of steps"),
        ({}, "Samples follow evaluations, of which this run has none"),
        ({"freq": 1}, "There is no evaluation set"),
        ({"freq": 1, "prompts": []}, "`prompts` is empty"),
        ({"freq": 1, "num_prompts": 0}, "`num_prompts=0` asks for none"),
        ({"freq": 1, "prompts": ["a"], "num_return_sequences": 2}, "one answer is shown"),
        (
            {
                "freq": 1,
                "prompts": ["a"],
                "generation_config": DiffusionGenerationConfig(do_sample=True, num_return_sequences=3),
            },
            "=3`",
        ),
    ],
    ids=["frequency", "never", "no rows", "no prompts", "no row", "two answers", "three answers"],
)
def test_what_could_not_sample_is_refused(make_trainer, given, message):
    with pytest.raises(ValueError, match=message):
        SampleCallback(make_trainer(), **given)


def test_rows_without_a_prompt_and_trainers_without_a_tokenizer_are_refused(make_trainer):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
    for dataset in (Dataset.from_list(rows), IterableDataset.from_generator(lambda: iter(rows))):
        trainer = make_trainer(eval_dataset=dataset)
        with pytest.raises(ValueError, match="have no prompt"):
            SampleCallback(trainer, freq=1)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="The trainer has no tokenizer"):
        SampleCallback(trainer, ["a"], freq=1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)), "fsdp_version: 2"),
        (SimpleNamespace(), "DeepSpeed"),
    ],
    ids=["fsdp", "deepspeed"],
)
def test_weights_that_sampling_cannot_gather_are_refused(make_trainer, state, message):
    trainer = make_trainer()
    callback = SampleCallback(trainer, ["a"], freq=1)
    stand_in = SimpleNamespace(accelerator=SimpleNamespace(state=state, distributed_type="DEEPSPEED"))
    callback.trainer = stand_in
    with pytest.raises(ValueError, match=message):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
