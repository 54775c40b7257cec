"""What a forward pass refuses or warns of: unknown arguments, packed documents, padding, training without masks."""

import logging

import pytest
import torch
from datasets import Dataset
from demo_checkpoint import DEMO_FOLDER, load_demo
from tiny_models import tiny_llada, tiny_llada2_moe
from transformers import BertConfig, BertForMaskedLM, pipeline
from transformers.utils import TransformersKwargs
from trl import SFTConfig, SFTTrainer

from llada.modeling_llada.forward_checks import FROM_LIBRARIES


IDS = torch.tensor([[3, 4, 40, 6, 7, 8]])
WITHOUT_MASKS = IDS.masked_fill(IDS == 40, 5)


@pytest.fixture
def messages(caplog):
    """What transformers' loggers say, every warning again."""
    # does not propagate, as the loggers of this package do
    logger = logging.getLogger("transformers")
    type(logger).warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("part", ["model with head", "backbone"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("block_lenght", r" \(write `block_length`\)"),
        ("atention_mask", r" \(write `attention_mask`\)"),
        ("position_id", r" \(write `position_ids`\)"),
        ("zzzz", r"\."),
    ],
)
def test_unknown_arguments_are_refused(part, name, hint):
    model = tiny_llada() if part == "model with head" else tiny_llada().model
    with pytest.raises(ValueError, match=f"The model takes no argument `{name}`{hint}"):
        model(IDS, **{name: 32})
    # asks for nothing
    model(IDS, **{name: None})


def test_what_libraries_pass_is_taken():
    model = tiny_llada()
    assert set(TransformersKwargs.__annotations__) <= FROM_LIBRARIES
    values = {"is_causal": False, "output_router_logits": False, "return_dict": True}
    plain = model(IDS, attention_mask=torch.ones_like(IDS)).logits
    for name in sorted(FROM_LIBRARIES - {"output_router_indices", "position_ids", "return_dict"}):
        given = {name: values.get(name, False)}
        assert torch.equal(model(IDS, attention_mask=torch.ones_like(IDS), **given).logits, plain), name
    assert isinstance(model(IDS, return_dict=False), tuple)


@pytest.mark.parametrize("build", [tiny_llada, tiny_llada2_moe])
def test_packed_documents_are_refused(build):
    model = build()
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for mask in (None, torch.ones_like(IDS)):
        with pytest.raises(ValueError, match="`position_ids` has a position twice in a row, as packed documents do"):
            model(IDS, position_ids=packed, attention_mask=mask)
    # with the mask that the message asks for every document is as it would be alone
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    mask = documents[:, :, None] == documents[:, None, :]
    logits = model(IDS, position_ids=packed, attention_mask=mask).logits
    for begin in (0, 3):
        alone = model(IDS[:, begin : begin + 3]).logits
        torch.testing.assert_close(logits[:, begin : begin + 3], alone, rtol=0, atol=1e-5)
    # padding may stand at any position
    padding = torch.tensor([[0, 0, 1, 1, 1, 1]])
    model(IDS, position_ids=(padding.cumsum(1) - 1).clamp(min=0), attention_mask=padding)


def test_padding_without_a_mask_is_warned_of(messages):
    model = tiny_llada()
    padded = torch.tensor([[42, 42, 3, 40, 6, 7]])
    model(IDS)
    model(padded, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]))
    # ends with the end of text, which is the padding token and part of the text
    model(padded.flip(1))
    assert "attention_mask" not in messages.text
    model(padded)
    assert "We strongly recommend passing in an `attention_mask`" in messages.text


def test_padding_without_a_mask_is_warned_of_in_generate(messages):
    model = tiny_llada()
    model.generate(torch.tensor([[3, 4]]), max_new_tokens=4)
    assert "attention_mask" not in messages.text
    model.generate(torch.tensor([[42, 42, 3]]), max_new_tokens=4)
    assert "We strongly recommend passing in an `attention_mask`" in messages.text


@pytest.mark.parametrize("given", ["by path", "with a head", "the backbone"])
def test_features_are_hidden_states(given):
    model, tokenizer, _ = load_demo()
    inputs = tokenizer("Mary", return_tensors="pt")
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    chosen = {"by path": str(DEMO_FOLDER), "with a head": model, "the backbone": model.model}[given]
    features = pipeline("feature-extraction", model=chosen, tokenizer=tokenizer)
    torch.testing.assert_close(features("Mary", return_tensors=True), expected, rtol=0, atol=1e-5)


def test_features_of_other_models_are_what_they_were():
    model = BertForMaskedLM(
        BertConfig(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    _, tokenizer, _ = load_demo()
    features = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    inputs = tokenizer("Mary", return_tensors="pt")
    torch.testing.assert_close(features("Mary", return_tensors=True), model(**inputs).logits, rtol=0, atol=1e-5)


def test_training_without_masks_is_warned_of(messages):
    model = tiny_llada()
    # scored, not trained; trained with masks; without labels, which our trainers keep to themselves
    model(WITHOUT_MASKS, labels=WITHOUT_MASKS)
    model.train()
    with torch.no_grad():
        model(WITHOUT_MASKS, labels=WITHOUT_MASKS)
    model(WITHOUT_MASKS)
    assert "LLaDASFTTrainer" not in messages.text
    model(WITHOUT_MASKS, labels=WITHOUT_MASKS)
    assert messages.text.count("`llada.LLaDASFTTrainer` and `llada.LLaDAPreTrainer` mask it") == 1
    model(WITHOUT_MASKS, labels=WITHOUT_MASKS)
    assert messages.text.count("LLaDASFTTrainer") == 1


def test_training_with_masks_is_not(messages):
    model = tiny_llada().train()
    for ids in (IDS, WITHOUT_MASKS):
        # only the first batch is looked at
        model(ids, labels=ids)
    assert "LLaDASFTTrainer" not in messages.text


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_the_trainer_of_causal_models_is_warned_of(messages, tmp_path):
    model, tokenizer, _ = load_demo()
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 2, "labels": [[3, 4, 5, 6]] * 2})
    settings = {"max_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no"}
    SFTTrainer(model, SFTConfig(str(tmp_path), **settings), train_dataset=rows, processing_class=tokenizer).train()
    assert "`llada.LLaDASFTTrainer` and `llada.LLaDAPreTrainer` mask it" in messages.text
