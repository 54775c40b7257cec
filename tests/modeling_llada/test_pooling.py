"""One vector for a text, from the model itself and through sentence-transformers."""

import numpy
import pytest
import torch
from golden import load_golden
from installed_wheel import ROOT
from markdown_code import run_blocks
from tiny_models import tiny_llada
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModelForMaskedLM, pipeline

from llada.modeling_llada.pooling import mean_states


TEXTS = ["a", "a longer text", "(b)"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    AutoModelForMaskedLM.from_pretrained(load_golden("llada").folder).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> torch.Tensor:
    """The mean over the tokens of each text alone."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), build_tiny_tokenizer()
    with torch.no_grad():
        states = [model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    return torch.stack([state.mean(dim=0) for state in states])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(folder, expected, side):
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = build_tiny_tokenizer()(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    assert inputs["attention_mask"].sum() < inputs["attention_mask"].numel()
    torch.testing.assert_close(model.get_text_features(**inputs), expected, atol=1e-5, rtol=1e-4)


def test_counts_are_exact_in_narrow_dtypes():
    # 257 is no number of bfloat16
    states = torch.cat([torch.ones(1, 257, 4), torch.full((1, 3, 4), 100.0)], dim=1).bfloat16()
    mask = torch.tensor([[1] * 257 + [0] * 3])
    assert torch.equal(mean_states(states, mask), mean_states(states[:, :257]))
    assert torch.equal(mean_states(states, mask), torch.ones(1, 4, dtype=torch.bfloat16))
    assert not mean_states(states, torch.zeros_like(mask)).any()


def test_texts_that_are_trained_on_have_no_masks(caplog):
    model = tiny_llada().train()
    model.get_text_features(torch.arange(5)[None]).sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()
    assert "not one position is masked" not in caplog.text


def test_the_states_of_the_pipeline_have_this_mean(folder, expected):
    states = pipeline("feature-extraction", model=str(folder))(TEXTS)
    found = torch.stack([torch.tensor(rows[0]).mean(dim=0) for rows in states])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_sentence_transformers(folder, expected, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert encoder.get_embedding_dimension() == 64 and encoder.max_seq_length == 512
    torch.testing.assert_close(torch.tensor(encoder.encode(TEXTS)), expected, atol=1e-5, rtol=1e-4)
    encoder.save_pretrained(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert numpy.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    # what was saved is the model still
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).get_text_features(torch.arange(3)[None]).shape == (1, 64)


def test_sentence_transformers_train_it(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    losses = sentence_transformers.sentence_transformer.losses
    loss = losses.MultipleNegativesRankingLoss(encoder)
    pairs = [encoder.preprocess(texts) for texts in (["abc", "xyz"], ["abd", "xyw"])]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    values = []
    for _ in range(5):
        value = loss(pairs, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]


def test_a_cross_encoder(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    scores = encoder.predict([("a", "b"), ("a longer question", "an answer")])
    assert scores.shape == (2,) and numpy.isfinite(scores).all()


def test_the_page_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")
    _, printed = run_blocks(page, "embeddings.md")
    assert printed.splitlines() == ["torch.Size([2, 64])", "torch.Size([2, 3]) torch.Size([2, 7, 2])"]
