"""What fine-tuning computes: the loss, its gradient, the noise, the metrics and evaluations."""

import logging
import math
import re

import pytest
import torch
from datasets import Dataset
from torch.optim import SGD
from training_probes import NoiseRecorder, mask_by_content, mask_every_other, parameters_of

from llada import DataCollatorForMaskedDiffusion
from llada.modeling_llada.likelihood_bound import content_keys, likelihood_bound
from llada.modeling_llada.masked_diffusion import masked_cross_entropy
from llada.trainers.diffusion_trainer import stage_factor


MASK, EOS = 300, 299


def _train_one_step(trainer, forward_process=mask_every_other):
    trainer.optimizer = SGD(trainer.model.parameters(), lr=1.0)
    trainer.args.max_grad_norm = 0.0
    trainer.forward_process = forward_process
    trainer.train()
    return parameters_of(trainer.model), trainer.state.log_history[0]["loss"]


FIXED_FILL = {"eos_fill": "fixed", "eos_fill_length": 6, "max_steps": 1}


@pytest.mark.parametrize("family", ["llada", "illada"])
@pytest.mark.parametrize("normalization", ["sequence", "token", "batch"])
@pytest.mark.parametrize("data", ["pairs", "text"])
def test_accumulated_gradients_are_those_of_one_batch(make_trainer, make_model, pairs, data, normalization, family):
    if data == "text":
        # the first position is trained, too: the base would not count it for a class named "...ForCausalLM"
        pairs = Dataset.from_dict({"text": [p + c for p, c in zip(pairs["prompt"], pairs["completion"], strict=True)]})
    rows = pairs.select(range(6))
    expected = None
    # in the last split the two parts differ in size
    for size, steps in ((6, 1), (3, 2), (1, 6), (4, 2)):
        trainer = make_trainer(
            make_model(family),
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            loss_normalization=normalization,
            # rows differ in the number of tokens that count
            eos_fill="none",
            max_steps=1,
        )
        parameters, loss = _train_one_step(trainer, mask_by_content(trainer.forward_process))
        expected = expected or (parameters, loss)
        assert loss == pytest.approx(expected[1], rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, expected[0][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("normalization", ["sequence", "token", "batch"])
def test_the_loss_is_that_of_the_formula(make_trainer, normalization):
    trainer = make_trainer(loss_normalization=normalization, **FIXED_FILL)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    model, maskable = trainer.model, batch["labels"] != -100
    noisy = mask_every_other(batch["input_ids"], maskable)
    with torch.no_grad():
        logits = model(noisy.input_ids, attention_mask=batch.get("attention_mask")).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"], reduction="none")
    rows = (losses * noisy.masked).sum(1) * noisy.weight
    expected = {
        "sequence": (rows / maskable.sum(1)).mean(),
        "token": rows.sum() / maskable.sum(),
        "batch": rows.mean(),
    }[normalization]
    trainer.forward_process = mask_every_other
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)


def test_labels_do_not_leak(make_trainer, make_model, tiny_tokenizer):
    """On answers that nothing predicts, a model that sees them reaches a loss of 0, and one that does not cannot."""
    generator = torch.Generator().manual_seed(1)
    answers = torch.randint(8, (640, 6), generator=generator).tolist()
    rows = Dataset.from_dict(
        {"input_ids": [[10, *row] for row in answers], "labels": [[-100, *row] for row in answers]}
    )
    trainer = make_trainer(
        make_model(),
        rows,
        max_steps=40,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=20,
        eos_fill="none",
        min_eos=0,
        # a lone mask is the easiest to cheat on
        max_mask_ratio=0.5,
    )
    trainer.train()
    assert math.log(8) * 0.95 < trainer.state.log_history[1]["content_ce"] < math.log(8) * 1.15


def test_the_model_sees_masks_and_is_asked_for_nothing_else(make_trainer):
    trainer = make_trainer()
    rows, seen = [], []

    def record_rows(module, inputs, output):
        rows.append(output.shape)

    def record_ids(module, args, kwargs):
        seen.append((kwargs["input_ids"], kwargs["logits_to_keep"]))

    trainer.model.lm_head.register_forward_hook(record_rows)
    trainer.model.register_forward_pre_hook(record_ids, with_kwargs=True)
    trainer.train()
    assert len(rows) == len(seen) == 2
    for shape, (input_ids, masked) in zip(rows, seen, strict=True):
        assert torch.equal(input_ids == MASK, masked) and 0 < masked.sum() < masked.numel()
        assert shape == (masked.sum(), 320)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask_sampling": "exact", "ratio_sampling": "stratified"},
        {"complementary_masks": True, "eos_fill": "none"},
        {"mask_schedule": "cosine", "ratio_sampling": "low_discrepancy"},
        {"loss_weighting": "uniform", "min_mask_ratio": 0.3, "max_mask_ratio": 0.8},
        {"activation_checkpointing": True},
        {"bf16": True},
        {"gradient_accumulation_steps": 2, "multi_turn": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llada", "illada"])
def test_training_moves_every_parameter(make_trainer, make_model, settings, family):
    trainer = make_trainer(make_model(family), weight_decay=0.0, **settings)
    before = parameters_of(trainer.model)
    trainer.train()
    after = parameters_of(trainer.model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(parameter.isfinite().all() for parameter in after.values())


def test_short_answers_give_finite_losses(make_trainer):
    rows = Dataset.from_dict({"input_ids": [[1, n] for n in range(16)], "labels": [[-100, n] for n in range(16)]})
    # most batches of one token have no mask at all
    trainer = make_trainer(
        train_dataset=rows, per_device_train_batch_size=1, max_steps=16, eos_fill="none", min_eos=0, max_mask_ratio=0.3
    )
    trainer.train()
    history = trainer.state.log_history[:-1]
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in history)
    assert sum(entry["loss"] == 0 for entry in history) > 4
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_noise_differs_between_steps_micro_steps_and_seeds(make_trainer, pairs):
    drawn = []
    for seed in (0, 1):
        trainer = make_trainer(
            train_dataset=pairs.select([0] * 4),
            seed=seed,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
        recorder = NoiseRecorder(trainer)
        trainer.train()
        drawn += [tuple(ratio) for _, ratio in recorder.drawn]
    assert len(drawn) == len(set(drawn)) == 8


def test_strata_span_the_accumulated_batch(make_trainer):
    trainer = make_trainer(
        ratio_sampling="stratified", per_device_train_batch_size=2, gradient_accumulation_steps=4, mask_eps=0.0
    )
    recorder = NoiseRecorder(trainer)
    trainer.train()
    for step in (recorder.drawn[:4], recorder.drawn[4:]):
        ratios = torch.tensor([ratio for _, batch in step for ratio in batch])
        assert (ratios * 8).floor().sort().values.tolist() == list(range(8))


def test_metrics_separate_content_from_end_of_text(make_trainer):
    trainer = make_trainer(max_steps=4, logging_steps=2, complementary_masks=True, eos_fill="longest")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        # an untrained model knows nothing: ln 320
        assert entry["content_ce"] == pytest.approx(math.log(320), rel=0.1)
        assert 0 <= entry["content_accuracy"] <= 1 and 0 <= entry["eos_accuracy"] <= 1 and entry["eos_ce"] > 0
        # every token is masked in one of the two copies
        assert entry["mask_ratio"] == pytest.approx(0.5)
        assert {name for name in entry if name.startswith("ce_q")} <= {"ce_q1", "ce_q2", "ce_q3", "ce_q4"}
        assert min(entry[name] for name in entry if name.startswith("ce_q")) > 4
    assert entries[1]["num_tokens"] > entries[0]["num_tokens"] > 0
    assert "content_ce" not in trainer.state.log_history[-1]


def test_metrics_are_those_of_the_masked_tokens(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=8, **FIXED_FILL)
    trainer.forward_process = mask_every_other
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    noisy = mask_every_other(batch["input_ids"], batch["labels"] != -100)
    with torch.no_grad():
        logits = trainer.model(noisy.input_ids, attention_mask=batch.get("attention_mask")).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"], reduction="none")
    content = noisy.masked & (batch["input_ids"] != EOS)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["content_ce"] == pytest.approx(losses[content].mean().item(), rel=1e-4)
    assert logged["eos_ce"] == pytest.approx(losses[noisy.masked & ~content].mean().item(), rel=1e-4)
    assert logged["ce_q3"] == pytest.approx(losses[noisy.masked].mean().item(), rel=1e-4)
    assert logged["mask_ratio"] == pytest.approx((noisy.masked.sum() / (batch["labels"] != -100).sum()).item())
    accuracy = (logits.argmax(-1) == batch["input_ids"])[content].float().mean().item()
    assert logged["content_accuracy"] == pytest.approx(accuracy)
    assert logged["num_tokens"] == batch["attention_mask"].sum()


def test_the_same_evaluation_gives_the_same_number(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs)
    first = trainer.evaluate()
    torch.manual_seed(7)
    timing = ("runtime", "per_second")
    again = trainer.evaluate()
    assert {k: v for k, v in first.items() if not k.endswith(timing)} == {
        k: v for k, v in again.items() if not k.endswith(timing)
    }
    trainer.train()
    assert trainer.evaluate()["eval_nll_bound"] != first["eval_nll_bound"]


@pytest.mark.parametrize("normalization", ["sequence", "token", "batch"])
def test_evaluations_do_not_depend_on_padding_or_batches(make_trainer, pairs, normalization):
    results = [
        make_trainer(
            eval_dataset=pairs.select(range(7)), per_device_eval_batch_size=size, loss_normalization=normalization
        ).evaluate()
        for size in (1, 3, 7)
    ]
    names = [name for name in results[0] if not name.endswith(("runtime", "per_second", "preparation_time"))]
    assert len(names) >= 7
    for other in results[1:]:
        for name in names:
            assert other[name] == pytest.approx(results[0][name], rel=1e-5), name


def test_an_evaluation_is_the_bound(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs, num_eval_draws=5, eval_seed=3)
    metrics = trainer.evaluate()
    model, total, tokens, rows = trainer.model.eval(), 0.0, 0, []
    for row in trainer.eval_dataset:
        input_ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])

        @torch.no_grad()
        def score(noisy_ids, masked, labels=labels):
            return masked_cross_entropy(model, noisy_ids, masked, labels)[0]

        keys = content_keys(input_ids)
        bound = likelihood_bound(score, input_ids, labels != -100, MASK, 5, keys, seed=3)
        total, tokens = total + bound.sum().item(), tokens + int((labels != -100).sum())
        rows.append(bound.sum().item() / int((labels != -100).sum()))
    assert metrics["eval_nll_bound"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["eval_ppl_bound"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    # eight end-of-text tokens, one per row
    assert metrics["eval_content_nll_bound"] * (tokens - 8) + metrics["eval_eos_nll_bound"] * 8 == pytest.approx(
        total, rel=1e-5
    )
    assert trainer.predict(trainer.eval_dataset).metrics["test_nll_bound"] == metrics["eval_nll_bound"]


def test_rows_that_come_late_are_prepared_like_those_before(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs)
    expected = trainer.evaluate()["eval_nll_bound"]
    assert trainer.predict(trainer.eval_dataset).metrics["test_nll_bound"] == expected
    for late in (pairs, pairs.to_iterable_dataset()):
        assert trainer.evaluate(late)["eval_nll_bound"] == expected
        assert trainer.predict(late).metrics["test_nll_bound"] == expected
    assert trainer.evaluate({"late": pairs})["eval_late_nll_bound"] == expected


def test_a_hopeless_bound_is_reported(make_trainer, pairs):
    trainer = make_trainer(eval_dataset=pairs)
    trainer.model.lm_head.weight.data.mul_(1e6)
    metrics = trainer.evaluate()
    assert metrics["eval_nll_bound"] > 700 and metrics["eval_ppl_bound"] == math.inf


def test_a_trainer_of_several_evaluation_sets_reports_each(make_trainer, pairs):
    trainer = make_trainer(
        eval_dataset={"easy": pairs.select([0]), "hard": pairs.select([1, 2])},
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_hard_nll_bound",
        greater_is_better=False,
        load_best_model_at_end=True,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    bounds = {k: v for entry in trainer.state.log_history for k, v in entry.items() if k.endswith("hard_nll_bound")}
    assert trainer.state.best_metric == bounds["eval_hard_nll_bound"]


def test_a_custom_collator_is_used_for_training_and_evaluation(make_trainer, pairs):
    calls = []

    def collate(examples):
        calls.append(len(examples))
        return DataCollatorForMaskedDiffusion(EOS, eos_fill="fixed", eos_fill_length=9)(examples)

    trainer = make_trainer(data_collator=collate, eval_dataset=pairs, max_steps=1)
    trainer.train()
    trainer.evaluate()
    assert calls == [4, 4, 8] or calls == [4, 8]


def test_the_learning_rate_is_that_of_the_paper(make_trainer):
    trainer = make_trainer(max_steps=20, warmup_steps=4, learning_rate=1.0, weight_decay=0.0)
    trainer.create_optimizer_and_scheduler(20)
    rates = []
    for _ in range(20):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:4] == [0, 0.25, 0.5, 0.75] and rates[4:19] == [1.0] * 15
    # the last tenth
    assert rates[19] == pytest.approx(0.55) and trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.1)


def test_a_schedule_with_settings_is_that_of_transformers(make_trainer):
    trainer = make_trainer(
        max_steps=10, learning_rate=1.0, lr_scheduler_kwargs={"num_decay_steps": 5, "decay_type": "linear"}
    )
    trainer.create_optimizer_and_scheduler(10)
    for _ in range(10):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == 0


def test_stages_jump_where_two_points_meet():
    stages = ((0.0, 1.0), (0.5, 1.0), (0.5, 0.25), (1.0, 0.0))
    factors = [stage_factor(step, warmup=0, total=100, stages=stages) for step in (0, 49, 51, 75, 100)]
    assert factors == pytest.approx([1.0, 1.0, 0.245, 0.125, 0.0])


def test_the_first_step_trains_without_a_warm_up(make_trainer):
    trainer = make_trainer(max_steps=1, warmup_steps=0, weight_decay=0.0)
    before = parameters_of(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 1e-3
    assert not any(torch.equal(before[name], value) for name, value in parameters_of(trainer.model).items())


@pytest.mark.parametrize(
    ("warmup_steps", "message"),
    [
        (
            50,
            "takes 50 of the 60 steps.*the peak of 0.001 is reached for 10 of them.*`warmup_steps=6`",
        ),
        (0.5, "`warmup_steps=0.5` takes 30 of the 60 steps.*the peak of 0.001 is reached for 30 of them"),
        (80, "`warmup_steps=80` takes 80 of the 60 steps.*stays below 0.00075 and never reaches its peak of 0.001"),
        (15, None),
        (0, None),
    ],
)
def test_a_run_that_is_mostly_warm_up_is_reported(make_trainer, caplog, warmup_steps, message):
    trainer = make_trainer(warmup_steps=warmup_steps)
    with caplog.at_level(logging.WARNING):
        trainer.create_optimizer_and_scheduler(60)
    assert re.search(message, caplog.text) if message else not caplog.records


def test_outputs_cannot_be_returned(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match="return_outputs=True"):
        trainer.compute_loss(trainer.model, batch, return_outputs=True)
