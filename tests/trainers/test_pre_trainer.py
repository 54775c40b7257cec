"""Pre-training: chunks, random lengths, the loss and its settings."""

import math

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from torch.optim import SGD
from training_probes import NoiseRecorder, mask_by_content, mask_every_other, parameters_of
from transformers import AutoModelForMaskedLM, TrainingArguments
from trl import SFTConfig

from llada import LLaDAPreTrainer, LLaDAPreTrainingConfig
from llada.trainers.data.data_checks import TokenChecks
from llada.trainers.diffusion_trainer import stage_factor
from llada.trainers.pre_trainer import chunk_documents


EOS = 299
CHECKS = TokenChecks(vocab_size=320, mask_token_id=300)


@pytest.fixture
def texts():
    return Dataset.from_dict({"text": [chr(97 + n) * (5 + n) for n in range(24)]})


@pytest.fixture
def make_pre_trainer(make_model, make_args, tiny_tokenizer, texts):
    """Makes a pre-training trainer. Keywords are arguments of the trainer, or of its configuration."""

    def make(model=None, train_dataset=None, **settings):
        names = ("data_collator", "eval_dataset", "processing_class")
        given = {name: settings.pop(name) for name in names if name in settings}
        args = settings.pop("args", None)
        if args is None:
            args = make_args(LLaDAPreTrainingConfig, **{"sequence_length": 16, **settings})
        return LLaDAPreTrainer(
            model=make_model() if model is None else model,
            args=args,
            train_dataset=texts if train_dataset is None else train_dataset,
            **{"processing_class": tiny_tokenizer, **given},
        )

    return make


def test_documents_are_joined_and_cut(tiny_tokenizer):
    documents = Dataset.from_dict({"text": ["abcd", "efg", "h", "ijklm"]})
    chunks = chunk_documents(documents, 6, CHECKS, EOS, tiny_tokenizer)
    assert [tiny_tokenizer.decode(row) for row in chunks["input_ids"]] == [
        "abcd<|endoftext|>e",
        "fg<|endoftext|>h<|endoftext|>i",
    ]


def test_tokenised_documents_are_joined_and_cut():
    documents = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, EOS], [], [5, 6]], "other": [0, 1, 2, 3]})
    assert chunk_documents(documents, 3, CHECKS, EOS).to_dict() == {
        "input_ids": [[1, 2, 3], [EOS, 4, EOS], [EOS, 5, 6]]
    }
    assert chunk_documents(documents, 3, CHECKS).to_dict() == {"input_ids": [[1, 2, 3], [4, EOS, 5]]}


def test_the_tokenizer_adds_nothing_to_a_document(tiny_tokenizer):
    """Tokens that it puts around a text would stand in the middle of a sequence."""
    around = {"single": "<|startoftext|> $A <|endoftext|>", "special_tokens": [("<|startoftext|>", 295)]}
    around["special_tokens"].append(("<|endoftext|>", 299))
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**around)
    assert tiny_tokenizer("ab")["input_ids"] == [
        295,
        *tiny_tokenizer("ab", add_special_tokens=False)["input_ids"],
        299,
    ]
    chunks = chunk_documents(Dataset.from_dict({"text": ["ab", "c"]}), 5, CHECKS, EOS, tiny_tokenizer)
    assert tiny_tokenizer.decode(chunks[0]["input_ids"]) == "ab<|endoftext|>c<|endoftext|>"


def test_streams_are_joined_and_cut():
    stream = IterableDataset.from_generator(lambda: iter([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]))
    assert list(chunk_documents(stream, 2, CHECKS)) == [{"input_ids": [1, 2]}, {"input_ids": [3, 4]}]


def test_documents_that_cannot_be_chunked_are_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"columns \['words'\].*dataset_text_field"):
        chunk_documents(Dataset.from_dict({"words": ["a"]}), 4, CHECKS, EOS, tiny_tokenizer)
    with pytest.raises(ValueError, match="holds text; write `processing_class=tokenizer`"):
        chunk_documents(Dataset.from_dict({"text": ["a"]}), 4, CHECKS, EOS)
    with pytest.raises(ValueError, match="too short for one sequence of 4 tokens"):
        chunk_documents(Dataset.from_dict({"text": ["a"]}), 4, CHECKS, EOS, tiny_tokenizer)


@pytest.mark.parametrize("make", [Dataset.from_list, lambda rows: IterableDataset.from_generator(lambda: iter(rows))])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "Row 1 of the eval dataset: `text` is None.*drop the row"),
        ({"text": "a<|mdm_mask|>"}, r"Row 1 .*token 1 is the mask token \(id 300\).*Take it out"),
        ({"input_ids": [1, 320]}, "Row 1 .*token 1 has the id 320.*0 to 319"),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, "Row 1 .*pre-training trains every one.*LLaDASFTTrainer"),
        ({"input_ids": [1, 2], "prompt_lengths": 1}, "Row 1 .*pre-training trains every one"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "Row 1 .*`attention_mask` has 1 values and `input_ids` 2"),
    ],
    ids=["null", "mask", "vocabulary", "labels", "prompt", "lengths"],
)
def test_documents_that_cannot_be_read_are_refused(tiny_tokenizer, row, message, make):
    fine = {"text": "ab", "input_ids": [1, 2], "labels": [1, 2], "prompt_lengths": 0, "attention_mask": [1, 1]}
    rows = make([{column: fine[column] for column in row}, row])
    with pytest.raises(ValueError, match=message):
        list(chunk_documents(rows, 1, CHECKS, None, tiny_tokenizer, name="eval"))


def test_padding_of_documents_is_cut_off_and_what_is_left_out_is_counted(caplog):
    rows = Dataset.from_dict(
        {"input_ids": [[9, 1, 2, 3], [4, 9, 9, 9]], "attention_mask": [[0, 1, 1, 1], [1, 0, 0, 0]]}
    )
    assert chunk_documents(rows, 3, CHECKS).to_dict() == {"input_ids": [[1, 2, 3]]}
    assert "1 of 4 tokens of the train dataset did not fill a sequence" in caplog.text


def test_collections_of_splits_and_empty_files_are_refused(make_pre_trainer, texts):
    with pytest.raises(
        ValueError, match=r"train dataset is a DatasetDict of the splits \['train'\].*dataset\['train'\]"
    ):
        make_pre_trainer(train_dataset=DatasetDict(train=texts))
    with pytest.raises(ValueError, match="The b dataset is empty"):
        make_pre_trainer(eval_dataset={"a": texts, "b": texts.select([])})


def test_adapters_of_virtual_tokens_are_refused(make_pre_trainer, make_model):
    sizes = {"num_virtual_tokens": 2, "num_attention_heads": 4, "num_layers": 2, "token_dim": 32}
    model = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", **sizes))
    with pytest.raises(ValueError, match="PromptTuningConfig, whose virtual tokens"):
        make_pre_trainer(model)


def test_every_token_may_be_masked_and_the_loss_is_per_token(make_pre_trainer):
    trainer = make_pre_trainer(random_length_probability=0.0)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    assert batch["input_ids"].shape == (4, 16) and torch.equal(batch["labels"], batch["input_ids"])
    assert "attention_mask" not in batch
    noisy = mask_every_other(batch["input_ids"], torch.ones(4, 16, dtype=torch.bool))
    with torch.no_grad():
        logits = trainer.model(noisy.input_ids).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"], reduction="none")
    trainer.forward_process = mask_every_other
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, (losses * noisy.masked * noisy.weight[:, None]).sum() / 64)


@pytest.mark.parametrize("family", ["llada", "illada"])
def test_accumulated_gradients_are_those_of_one_batch(make_pre_trainer, make_model, family):
    results = []
    for size, steps in ((6, 1), (2, 3), (4, 2)):
        trainer = make_pre_trainer(
            make_model(family),
            # six sequences: the last split has parts of four and two
            Dataset.from_dict({"input_ids": torch.arange(96).view(6, 16).tolist()}),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
            # also cut to a length
            random_length_probability=1.0,
        )
        assert len(trainer.train_dataset) == 6
        trainer.forward_process = mask_by_content(trainer.forward_process)
        trainer.optimizer = SGD(trainer.model.parameters(), lr=1.0)
        trainer.train()
        results.append((parameters_of(trainer.model), trainer.state.log_history[0]["loss"]))
    for parameters, loss in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, results[0][0][name], atol=1e-5, rtol=1e-4, msg=name)


def _lengths(trainer):
    recorder = NoiseRecorder(trainer)
    trainer.train()
    return [len(ids[0]) for ids, _ in recorder.drawn]


def test_the_batches_of_a_step_are_cut_to_one_random_length(make_pre_trainer):
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    settings["train_dataset"] = Dataset.from_dict({"input_ids": torch.arange(128).view(8, 16).tolist()})
    lengths = _lengths(make_pre_trainer(random_length_probability=0.5, **settings))
    assert lengths[::2] == lengths[1::2]
    assert 16 in lengths and len(set(lengths)) > 2
    # the length depends on the seed and the step
    assert lengths == _lengths(make_pre_trainer(random_length_probability=0.5, **settings))
    assert lengths != _lengths(make_pre_trainer(random_length_probability=0.5, seed=3, **settings))
    assert set(_lengths(make_pre_trainer(random_length_probability=0.0, **settings))) == {16}


def test_random_lengths_are_uniform_and_rare(make_pre_trainer):
    trainer = make_pre_trainer(random_length_probability=1.0, sequence_length=4)

    def count(probability):
        trainer.args.random_length_probability = probability
        counts = [0] * 6
        for trainer.state.global_step in range(4000):
            (batch,) = trainer._adapt_batches([{"input_ids": torch.zeros(1, 5)}])
            counts[batch["input_ids"].shape[1]] += 1
        return counts

    # within four standard deviations of a quarter each, from one token to the whole sequence
    assert count(1.0) == pytest.approx([0, 1000, 1000, 1000, 1000, 0], abs=110)
    uncut = count(LLaDAPreTrainingConfig.random_length_probability)[5]
    assert 4000 - uncut == pytest.approx(40, abs=25)


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_a_resumed_run_is_the_uninterrupted_one(make_pre_trainer, make_model, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "random_length_probability": 0.5}
    trainer = make_pre_trainer(**settings)
    trainer.train()
    again = make_pre_trainer(make_model(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, parameter in parameters_of(trainer.model).items():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_evaluations_report_the_bound_per_token(make_pre_trainer, texts):
    trainer = make_pre_trainer(eval_dataset={"a": texts, "b": texts.select(range(6))})
    metrics = trainer.evaluate()
    assert metrics["eval_a_nll_bound"] == pytest.approx(math.log(320), rel=0.1)
    assert metrics["eval_b_loss"] == pytest.approx(metrics["eval_b_nll_bound"])
    assert metrics["eval_a_ppl_bound"] == pytest.approx(math.exp(metrics["eval_a_nll_bound"]))
    again = trainer.evaluate()
    assert all(again[name] == metrics[name] for name in metrics if name.endswith("bound"))


def test_documents_that_come_late_are_chunked_like_those_before(make_pre_trainer, texts):
    def bounds(metrics):
        return [value for name, value in metrics.items() if name.endswith("nll_bound")]

    trainer = make_pre_trainer(eval_dataset={"a": texts, "b": texts.select(range(6))})
    expected = bounds(trainer.evaluate())
    assert len(expected) >= 4
    # as text, and chunked already
    assert bounds(trainer.evaluate({"a": texts, "b": texts.select(range(6))})) == expected
    assert bounds(trainer.evaluate(dict(trainer.eval_dataset))) == expected
    for late in (texts, texts.to_iterable_dataset(), trainer.eval_dataset["a"]):
        assert bounds(trainer.evaluate(late)) == bounds(trainer.predict(late).metrics)
        assert bounds(trainer.evaluate(late))[0] == expected[0]


def test_sequences_stay_as_they_are():
    rows = [[1, 2, 3], [4, 5, 6]]
    for dataset in (
        Dataset.from_dict({"input_ids": rows}),
        IterableDataset.from_generator(lambda: ({"input_ids": row} for row in rows)),
    ):
        assert [row["input_ids"] for row in chunk_documents(dataset, 3, CHECKS, EOS)] == rows


def test_a_path_is_trained_further(make_pre_trainer, golden_llada, golden_illada):
    for golden in (golden_llada, golden_illada):
        expected = AutoModelForMaskedLM.from_pretrained(golden.folder)
        trainer = make_pre_trainer(str(golden.folder), weight_decay=0.0)
        assert type(trainer.model) is type(expected) and trainer.model.dtype == torch.float32
        trainer.train()
        before, after = parameters_of(expected), parameters_of(trainer.model)
        assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_ids_need_no_tokenizer(make_pre_trainer, make_model):
    rows = Dataset.from_dict({"input_ids": [list(range(10))] * 8})
    trainer = make_pre_trainer(make_model(), rows, processing_class=None)
    # the end of text is that of the model
    assert trainer.train_dataset[0]["input_ids"] == [*range(10), EOS, *range(5)]
    trainer.train()
    listed = make_model(eos_token_id=[EOS, 298])
    assert make_pre_trainer(listed, rows, processing_class=None).train_dataset[0]["input_ids"][10] == EOS
    none = make_model(eos_token_id=None)
    assert make_pre_trainer(none, rows, processing_class=None).train_dataset[0]["input_ids"][10] == 0


def test_the_learning_rate_falls_in_the_stages_of_the_paper():
    def factor(share):
        return stage_factor(int(share * 23_000), warmup=2000, total=23_000, stages=LLaDAPreTrainer._stages)

    assert factor(1000 / 23_000) == pytest.approx(0.5)
    assert factor(1.1 / 2.3) == 1
    assert factor(1.3 / 2.3) == factor(1.9 / 2.3) == 0.25
    assert factor(2.15 / 2.3) == pytest.approx((0.25 + 0.025) / 2) and factor(1) == pytest.approx(0.025)


def test_a_run_follows_the_stages_or_those_it_is_given(make_pre_trainer):
    def rates(**settings):
        trainer = make_pre_trainer(max_steps=23, learning_rate=1.0, warmup_steps=2, **settings)
        trainer.create_optimizer_and_scheduler(23)
        factors = []
        for _ in range(24):
            factors.append(trainer.lr_scheduler.get_last_lr()[0])
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        return factors

    paper = rates()
    assert paper[:13] == pytest.approx([0, 0.5, *[1.0] * 10, 0.25]) and paper[20] == 0.25
    assert paper[21:] == pytest.approx([0.175, 0.1, 0.025])
    # warm-up, stable, decay
    given = rates(lr_scheduler_kwargs={"num_decay_steps": 4, "decay_type": "linear"})
    assert given == pytest.approx([0, 0.5, *[1.0] * 18, 0.75, 0.5, 0.25, 0])


def test_arguments_of_the_base_keep_their_values(make_pre_trainer, make_args):
    args = make_args(TrainingArguments, learning_rate=0.5)
    rows = Dataset.from_dict({"input_ids": [[1] * 5000]})
    trainer = make_pre_trainer(train_dataset=rows, args=args)
    assert type(trainer.args) is LLaDAPreTrainingConfig
    assert (trainer.args.learning_rate, trainer.args.sequence_length) == (0.5, 4096)
    with pytest.raises(ValueError, match="`args` is a SFTConfig, whose .*`packing`"):
        make_pre_trainer(train_dataset=rows, args=make_args(SFTConfig, bf16=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"random_length_probability": 1.5}, "random_length_probability=1.5"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_cannot_work_are_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(LLaDAPreTrainingConfig, **settings)


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
def test_what_needs_all_logits_is_refused(make_model, make_args, name):
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        LLaDAPreTrainer(make_model(), make_args(LLaDAPreTrainingConfig), **{name: lambda *_: {}})


def test_a_card_is_written(make_pre_trainer, tmp_path):
    trainer = make_pre_trainer()
    trainer.train()
    trainer.create_model_card(dataset_name="ada/alphabet")
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "ada/alphabet" in card and "pre-training" in card and "LLaDAPreTrainer" in card
