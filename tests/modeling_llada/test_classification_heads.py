"""Classifiers of texts and of tokens: what they load and save, what they compute, and that they train."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from golden import load_golden
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from tiny_tokenizer import build_tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

import llada
from llada.modeling_llada.auto import CLASSIFIERS


KINDS = {"texts": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}
FAMILIES = ["llada", "illada", "llada_moe", "llada2_moe"]
TINY = dict(zip(FAMILIES, (tiny_llada, tiny_illada, tiny_llada_moe, tiny_llada2_moe), strict=True))


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def tiny(kind: str, family: str = "llada", **settings):
    """A small classifier of which every weight matters."""
    torch.manual_seed(0)
    config = TINY[family](num_labels=3, **settings).config
    model = CLASSIFIERS[type(config)][kind == "tokens"](config).eval()
    nn.init.normal_(model.score.bias)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_checkpoint_comes_back_with_a_head(family, kind, tmp_path):
    source = load_golden(family).folder
    model, info = KINDS[kind].from_pretrained(source, num_labels=3, output_loading_info=True)
    assert type(model) in CLASSIFIERS[type(model.config)] and type(model).__name__ in llada.__all__
    # the head is new, and that of the mask predictor is not missed
    assert info["missing_keys"] == {"score.weight", "score.bias"} and not info["unexpected_keys"]
    published = load_file(source / "model.safetensors")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    # under the published names, as they were
    new = {"score.weight", "score.bias"}
    assert saved.keys() - published.keys() == new
    assert published.keys() - saved.keys() <= {"lm_head.weight", "model.transformer.ff_out.weight"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in saved.items() if name not in new)
    again, info = KINDS[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.config.num_labels == 3
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_only_the_head_may_be_missing(kind, tmp_path):
    source = load_golden("llada").folder
    shutil.copy(source / "config.json", tmp_path)
    tensors = load_file(source / "model.safetensors")
    norm = tensors.pop("model.transformer.ln_f.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the 31 tensors of a LLaDAFor\w+: `model.norm.weight`"):
        KINDS[kind].from_pretrained(tmp_path)
    tensors |= {
        "model.transformer.ln_f.weight": norm,
        "score.weight": torch.zeros(3, 64),
        "score.bias": torch.zeros(3),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`score.bias` is \(3,\) and must be \(2,\).*`ignore_mismatched_sizes=True`"):
        KINDS[kind].from_pretrained(tmp_path)
    assert KINDS[kind].from_pretrained(tmp_path, num_labels=3).score.weight.abs().max() == 0


def test_the_mask_predictor_says_that_it_has_no_head_in_the_file_of_a_classifier(tmp_path):
    tiny("texts").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors of a LLaDAModelLM: `lm_head.weight`"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_texts_are_the_mean_of_their_tokens(family):
    model = tiny("texts", family)
    rows = [torch.arange(3, 3 + length) for length in (7, 4, 1)]
    alone = torch.stack([model.score(model.model(row[None]).last_hidden_state[0].mean(dim=0)) for row in rows])
    for side in ("right", "left"):
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=42, padding_side=side)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, alone)
        by_query = mask[:, None, :].bool().expand(-1, 7, -1) | ~mask[:, :, None].bool()
        torch.testing.assert_close(model(ids, attention_mask=by_query & mask[:, None, :].bool()).logits, alone)


@torch.no_grad()
def test_tokens_see_what_stands_behind_them():
    model = tiny("tokens")
    ids = torch.arange(3, 9)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    first, second = model(ids).logits[0], model(changed).logits[0]
    assert first.shape == (6, 3) and (first - second).abs().amax(dim=1).min() > 1e-3
    torch.testing.assert_close(first, model.score(model.model(ids).last_hidden_state[0]))


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({}, torch.tensor([2, 0]), lambda logits, labels: nn.functional.cross_entropy(logits, labels)),
        (
            {},
            torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
            lambda logits, labels: nn.functional.binary_cross_entropy_with_logits(logits, labels),
        ),
        ({"num_labels": 1}, torch.tensor([0.5, 2]), lambda logits, labels: (logits[:, 0] - labels).square().mean()),
    ],
    ids=["one label", "several labels", "a number"],
)
def test_losses_of_texts(settings, labels, expected):
    model = tiny("texts")
    if settings:
        model.config.num_labels = model.num_labels = 1
        model.score = nn.Linear(32, 1)
    ids = torch.arange(10).view(2, 5)
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, expected(output.logits, labels))
    # a part of a larger batch
    total = model(ids, labels=labels, num_items_in_batch=4 * labels.numel()).loss
    torch.testing.assert_close(4 * total, output.loss)


def test_losses_of_tokens():
    model = tiny("tokens")
    ids, labels = torch.arange(10).view(2, 5), torch.tensor([[0, -100, 2, 1, -100], [-100, -100, 1, 1, 0]])
    output = model(ids, labels=labels)
    chosen = labels != -100
    expected = -output.logits.log_softmax(dim=-1)[chosen].gather(1, labels[chosen][:, None]).mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=12).loss, output.loss / 2)


def test_routers_are_not_recorded():
    model = tiny("texts", "llada_moe")
    ids = torch.arange(4)[None]
    with pytest.raises(ValueError, match="do not record their routers.*write `output_router_logits=False`"):
        model(ids, output_router_logits=True)
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="also in the configuration"):
        model(ids)
    assert model(ids, output_router_logits=False).logits.shape == (1, 3)


def test_adapters_train_the_head_beside_them(tmp_path):
    model = tiny("texts")
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-2 if "score" in name else -3] for name in trained} == {"default", "lora_A", "lora_B"}
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in trained:
                parameter.normal_()
    ids = torch.arange(6)[None]
    expected = adapted.eval()(ids).logits
    adapted.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(tiny("texts"), tmp_path).eval()(ids).logits, expected)


# some hold a bracket
TEXTS = [f"{left}{middle}{right}" for left in ("a", "bc", "cab") for middle in ("", "(a)", "(bc)") for right in "abc"]


def train(kind: str, folder, texts: list[str] = TEXTS, **settings) -> Trainer:
    """Trains with the stock trainer."""
    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(0)
    model = KINDS[kind].from_pretrained(
        load_golden("llada").folder, id2label={0: "plain", 1: "bracket"}, label2id={"plain": 0, "bracket": 1}
    )
    rows = []
    for text in texts:
        inside = [int("(" in text[: place + 1] and ")" not in text[:place]) for place in range(len(text))]
        rows.append({**tokenizer(text), "labels": int("(" in text) if kind == "texts" else inside})
    collator = DataCollatorWithPadding(tokenizer) if kind == "texts" else DataCollatorForTokenClassification(tokenizer)
    args = TrainingArguments(
        folder,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    trainer = Trainer(model, args, collator, Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_trained_with_the_stock_trainer_and_used_in_the_stock_pipeline(task, tmp_path, caplog):
    kind = "texts" if task.startswith("text") else "tokens"
    trainer = train(kind, tmp_path, max_steps=30, per_device_train_batch_size=9, logging_steps=5)
    # text without masks is what classifiers are trained on
    assert "not one position is masked" not in caplog.text
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.1 < losses[0]
    trainer.save_model(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["id2label"] == {"0": "plain", "1": "bracket"}
    found = pipeline(task, model=str(tmp_path / "model"))(["ab", "b(c)a"], batch_size=2)
    if kind == "texts":
        assert [answer["label"] for answer in found] == ["plain", "bracket"]
    else:
        assert [[token["entity"] for token in row] for row in found] == [
            ["plain"] * 2,
            ["plain", *["bracket"] * 3, "plain"],
        ]


def test_accumulated_batches_are_one_batch(kind, tmp_path):
    """Also where the parts have unequal numbers of labels: 9 rows in parts of 4, 4 and 1."""
    start = KINDS[kind].from_pretrained(load_golden("llada").folder).model.layers[0].mlp.up_proj.weight
    changes = []
    for rows, parts in ((9, 1), (4, 3)):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts, "num_train_epochs": 1}
        trainer = train(kind, tmp_path, TEXTS[::3], optim="sgd", **settings)
        assert trainer.state.global_step == 1
        changes.append(trainer.model.model.layers[0].mlp.up_proj.weight - start)
    assert changes[0].abs().max() > 1e-5
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-3, atol=1e-7)
