"""What the objective of fine-tuning may consist of: means over masked tokens, certainty, editing."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from training_probes import mask_by_content, parameters_of


MASK, EOS = 300, 299
LLADA2 = {"loss_weighting": "uniform", "loss_normalization": "masked"}
OBJECTIVES = {
    "masked": LLADA2,
    "complementary": {**LLADA2, "complementary_masks": True, "mask_sampling": "exact"},
    "confidence": {**LLADA2, "confidence_weight": 2.0, "complementary_masks": True},
    "confidence of sequences": {"confidence_weight": 2.0, "confidence_temperature": 0.5},
    "editing": {**LLADA2, "edit_ratio": 0.3, "complementary_masks": True},
    "editing of sequences": {"edit_ratio": 0.3},
}


@pytest.fixture
def make_learner(make_trainer, make_model):
    """Makes a model that has begun to learn, the same one in every call: some of its predictions are right."""
    trainer = make_trainer(max_steps=8, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=8)
    trainer.train()
    learned = parameters_of(trainer.model)

    def make():
        model = make_model()
        model.load_state_dict(learned)
        return model

    return make


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_loss_is_that_of_the_formula(make_trainer, make_learner, settings):
    trainer = make_trainer(make_learner(), per_device_train_batch_size=4, **settings)
    model, args = trainer.model, trainer.args
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    kept = []
    process = trainer.forward_process
    trainer.forward_process = lambda *args, **kwargs: kept.append(process(*args, **kwargs)) or kept[-1]
    loss = trainer.compute_loss(model, batch)
    (noisy,) = kept

    copies = 2 if args.complementary_masks else 1
    labels = batch["labels"].repeat(copies, 1)
    logits = model(noisy.input_ids).logits
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    masked = noisy.input_ids == MASK
    weighted = losses * noisy.weight[:, None] * masked
    scored = masked
    if args.edit_ratio is not None:
        scored = labels != -100
        weighted = weighted + losses * (scored & ~masked)
        assert ((noisy.input_ids != labels) & scored & ~masked).any()
    if args.confidence_weight:
        entropy = torch.distributions.Categorical(logits=logits / args.confidence_temperature).entropy()
        certain = (logits.argmax(-1) == labels) & masked
        assert 0 < certain.sum() < masked.sum()
        weighted = weighted + args.confidence_weight * entropy * certain
    if args.loss_normalization == "masked":
        expected = weighted.sum() / scored.sum()
    else:
        expected = (weighted.sum(1) / (labels != -100).sum(1)).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
def test_accumulated_gradients_are_those_of_one_batch(make_trainer, make_learner, pairs, settings):
    """Masks depend on the row alone, and rows hold different numbers of them."""
    expected = None
    for size, steps in ((6, 1), (4, 2)):
        trainer = make_trainer(
            make_learner(),
            train_dataset=pairs.select(range(6)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            eos_fill="fixed",
            eos_fill_length=6,
            **settings,
        )
        trainer.optimizer = SGD(trainer.model.parameters(), lr=1.0)
        trainer.forward_process = mask_by_content(trainer.forward_process)
        trainer.train()
        parameters, logs = parameters_of(trainer.model), trainer.state.log_history[0]
        expected = expected or (parameters, logs)
        names = {"loss", "entropy", "edit_ce", "edit_accuracy", "keep_ce", "keep_accuracy"} & logs.keys()
        for name in names:
            assert logs[name] == pytest.approx(expected[1][name], rel=1e-5), name
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter, expected[0][name], atol=1e-5, rtol=1e-4, msg=name)
    assert logs["grad_norm"] > 0.1
    assert ("entropy" in logs) == ("confidence_weight" in settings)
    assert ("keep_ce" in logs) == ("edit_ratio" in settings)


def test_the_masks_that_are_counted_ahead_are_those_of_the_step(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=2, **LLADA2)
    drawn, items, calls = [], [], trainer.compute_loss
    process = trainer.forward_process
    trainer.forward_process = lambda *args, **kwargs: drawn.append(process(*args, **kwargs)) or drawn[-1]
    trainer.compute_loss = lambda *args, num_items_in_batch: (
        items.append(num_items_in_batch) or calls(*args, num_items_in_batch=num_items_in_batch)
    )
    trainer.train()
    # four micro-batches are counted, then the same four are trained
    assert len(drawn) == 16
    for step, counts in ((drawn[:8], items[:4]), (drawn[8:], items[4:])):
        for ahead, then in zip(step[:4], step[4:], strict=True):
            assert torch.equal(ahead.input_ids, then.input_ids)
        assert counts == [sum(batch.masked.sum() for batch in step[:4])] * 4


def test_certainty_grows(make_trainer, make_learner):
    """In the same steps the weight lowers the entropy where the model is right, and does not harm accuracy."""
    ends = []
    for weight in (0.0, 2.0):
        trainer = make_trainer(
            make_learner(),
            max_steps=12,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            confidence_weight=weight,
            **LLADA2,
        )
        trainer.train()
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
        labels, maskable = batch["labels"], batch["labels"] != -100
        noisy = batch["input_ids"].masked_fill(maskable, MASK)
        output = trainer.model(
            noisy, labels=labels, logits_to_keep=maskable, token_losses=True, entropy_temperature=1.0
        )
        ends.append((output.entropies[output.correct].mean().item(), (output.correct.sum() / maskable.sum()).item()))
    assert ends[1][0] < ends[0][0] - 0.1
    assert ends[1][1] > ends[0][1] - 0.05


def test_wrong_tokens_of_the_dataset_are_corrected_and_right_ones_stay(make_trainer, make_model):
    """An answer repeats the prompt. One of its four tokens is wrong, and the model finds out which."""
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(8, (256, 4), generator=generator)
    wrong = right.clone()
    rows, columns = torch.arange(256), torch.randint(4, (256,), generator=generator)
    wrong[rows, columns] = (right[rows, columns] + 3) % 8
    data = {
        "input_ids": torch.cat([right + 10, wrong], dim=1).tolist(),
        "labels": torch.cat([torch.full_like(right, -100), right], dim=1).tolist(),
    }
    trainer = make_trainer(
        make_model(),
        Dataset.from_dict(data),
        eval_dataset=Dataset.from_dict(data).select(range(16)),
        max_steps=80,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_steps=40,
        eos_fill="none",
        min_eos=0,
        edit_ratio=0.0,
        **LLADA2,
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    assert batch["input_ids"].tolist() == data["input_ids"][:4] and batch["labels"].tolist() == data["labels"][:4]
    trainer.train()
    logs = trainer.state.log_history[1]
    assert logs["edit_accuracy"] > 0.9 and logs["keep_accuracy"] > 0.9
    # the likelihood is that of the right tokens
    clean = data | {"input_ids": torch.cat([right + 10, right], dim=1).tolist()}
    bound = trainer.evaluate()["eval_nll_bound"]
    expected = trainer.evaluate(Dataset.from_dict(clean).select(range(16)))["eval_nll_bound"]
    assert bound == pytest.approx(expected, rel=1e-6)


def test_labels_that_cannot_be_are_refused(make_trainer):
    rows = {"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 4]]}
    with pytest.raises(ValueError, match="`labels` has 4 at token 2.*`edit_ratio=0`"):
        make_trainer(train_dataset=Dataset.from_dict(rows))
    for label, message in ((MASK, "is the mask token"), (5000, "has the id 5000")):
        with pytest.raises(ValueError, match=message):
            make_trainer(train_dataset=Dataset.from_dict(rows | {"labels": [[-100, 2, label]]}), edit_ratio=0.0)
