"""Scores of texts: the golden figures, tokenisation, documents, labels."""

import math
import re

import pytest
import torch
from golden import FIXTURES
from installed_wheel import ROOT
from markdown_code import run_blocks
from safetensors.torch import load_file
from transformers import AutoTokenizer

from llada import LLaDAModelLM
from llada.evaluation import (
    build_causal_twin,
    choose_label,
    encode_pair,
    is_greedy,
    log_likelihood,
    reference_estimate,
    score_documents,
)
from llada.evaluation.documents import windows
from llada.modeling_llada.mask_plans import ESTIMATORS


@pytest.fixture(scope="module")
def demo():
    folder = FIXTURES / "llada-demo"
    return LLaDAModelLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def golden_model(golden_llada):
    return LLaDAModelLM.from_pretrained(golden_llada.folder).eval()


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        ("exact", "elbo_enumerated"),
        ("left_to_right", "left_to_right"),
        ("right_to_left", "right_to_left"),
        ("pseudo", "pseudo"),
    ],
)
def test_golden_likelihoods(golden_model, golden_llada, estimator, name):
    expected = golden_llada.expected
    pair = expected["likelihood.prompt"], expected["likelihood.answer"]
    scores = golden_model.log_likelihood(*pair, estimator=estimator)
    assert float(scores.log_likelihood) == pytest.approx(float(expected[f"likelihood.{name}"]), rel=1e-5, abs=1e-5)


REFERENCE = {"reference_0": 0.0, "reference_1": 0.5, "reference_2": 0.0, "reference_3": 0.0}
VALUES = (-105.59678904215495, -77.13153076171875, -6.074889183044434, -147.75361124674478)


@pytest.mark.parametrize(("case", "value"), [*zip(REFERENCE, VALUES, strict=True)])
def test_the_estimate_of_the_authors(golden_model, golden_llada, case, value):
    given = load_file(golden_llada.folder / "reference_likelihood.safetensors")
    prompt, answer, greedy, noisy_ids, mask_ratio = (
        given[f"{case}.{name}"] for name in ("prompt", "answer", "greedy_answer", "noisy_ids", "mask_ratio")
    )
    cfg_scale = REFERENCE[case]
    found = reference_estimate(golden_model, prompt, answer, noisy_ids, mask_ratio, cfg_scale=cfg_scale)
    assert found == pytest.approx(value, rel=1e-5)
    assert not is_greedy(golden_model, prompt, answer, cfg_scale=cfg_scale)
    assert is_greedy(golden_model, prompt, greedy, cfg_scale=cfg_scale)
    # and one that ends otherwise
    greedy[-1] = (greedy[-1] + 1) % 290
    assert not is_greedy(golden_model, prompt, greedy, cfg_scale=cfg_scale)


def test_the_counts_of_the_authors_are_not_uniform(golden_model):
    """The documented quirk: of 8 tokens, three quarters of the counts are even."""
    generator = torch.Generator().manual_seed(0)
    counts = ESTIMATORS["reference"][0](8, 16 * 64, generator).masked.sum(1)
    assert (counts % 2 == 0).double().mean() == pytest.approx(0.75, abs=0.02)
    counts = ESTIMATORS["monte_carlo"][0](8, 16 * 64, generator).masked.sum(1)
    assert (counts % 2 == 0).double().mean() == pytest.approx(0.5, abs=0.02)


def test_the_right_answer_is_the_likely_one(demo):
    model, tokenizer = demo
    answers = [" Hazelmere's curious dancer", " Hazelmere's curious farmer", " Gustav Gray"]
    scores = log_likelihood(model, tokenizer, "Gustav Gray is", answers)
    assert scores.log_likelihood.argmax() == 0 and scores.num_tokens.tolist() == [3, 3, 2]
    # as a question, in the template
    names = ["Gustav Gray", "Gustav Green"]
    question = "Who is Hazelmere's curious dancer?"
    asked = log_likelihood(model, tokenizer, question, names, apply_chat_template=True, estimator="exact")
    assert asked.log_likelihood.argmax() == 0
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    same = model.log_likelihood(ids, tokenizer("Gustav Gray", add_special_tokens=False)["input_ids"])
    assert float(same.log_likelihood) == pytest.approx(float(asked.log_likelihood[0]), rel=1e-6)


def test_prompts_and_answers_are_paired(demo):
    model, tokenizer = demo
    prompts = ["Gustav Gray is", "Who is"]
    both = log_likelihood(model, tokenizer, prompts, " Gustav", estimator="pseudo").log_likelihood
    again = log_likelihood(model, tokenizer, prompts, [" Gustav"] * 2, estimator="pseudo").log_likelihood
    assert torch.equal(both, again) and both[0] != both[1]
    with pytest.raises(ValueError, match="There are 2 prompts and 3 answers"):
        log_likelihood(model, tokenizer, prompts, ["a", "b", "c"])
    with pytest.raises(ValueError, match="LlamaForCausalLM is no masked diffusion model.*causal_log_likelihood"):
        log_likelihood(build_causal_twin(model.config), tokenizer, "a", "b")


def test_a_pair_is_one_text(tiny_tokenizer):
    for prompt, answer in (("2 + 2 =", " 4"), ("2 + 2 = ", "4"), ("two  ", "three"), ("", "four")):
        before, after = encode_pair(tiny_tokenizer, prompt, answer)
        assert before + after == tiny_tokenizer(prompt + answer)["input_ids"]
    assert encode_pair(tiny_tokenizer, "2 + 2 = ", "4") == encode_pair(tiny_tokenizer, "2 + 2 =", " 4")


def test_a_start_token_is_nobodys_answer(demo):
    _, tokenizer = demo
    before, after = encode_pair(tokenizer, "", "Gustav Gray")
    assert before == [tokenizer.bos_token_id] and len(after) == 2


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize(("window", "num_context"), [(8, 4), (8, 0), (8, 7), (1, 0)])
def test_every_token_of_a_document_is_scored_once(length, window, num_context):
    parts = windows(length, window, num_context)
    assert [place for _, start, end in parts for place in range(start, end)] == list(range(length))
    for given, start, end in parts:
        assert end - given <= window and 0 <= given <= start
        assert start - given >= min(num_context, start)


def test_a_document_longer_than_the_context(demo):
    model, tokenizer = demo
    text = " ".join(["Gustav Gray is Hazelmere's curious dancer"] * 4)
    scores = score_documents(model, tokenizer, [text, "Gustav"], window=12, num_context=6, estimator="left_to_right")
    ids = tokenizer(text)["input_ids"]
    nats = float(model.log_likelihood(ids[:1], ids[1:12], estimator="left_to_right").log_likelihood)
    for start in range(12, len(ids), 6):
        part = ids[start : start + 6]
        given = ids[start + len(part) - 12 : start]
        nats += float(model.log_likelihood(given, part, estimator="left_to_right").log_likelihood)
    nats += float(model.log_likelihood(ids[:1], ids[1:2]).log_likelihood)
    assert scores.num_tokens == len(ids) - 1 + 1 and scores.num_bytes == len(text) + 6
    assert scores.bits_per_byte == pytest.approx(-nats / math.log(2) / scores.num_bytes, rel=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(-nats / scores.num_tokens), rel=1e-6)
    assert scores.standard_error == 0
    drawn = score_documents(model, tokenizer, [text], window=12, num_draws=32)
    assert 0 < drawn.standard_error < drawn.bits_per_byte


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": [""]}, "There is no text to score"),
        ({"window": 10**6}, "`window=1000000` is no length of a text for this model"),
        ({"window": 8, "num_context": 8}, "`num_context=8` leaves no room in a window of 8"),
    ],
)
def test_documents_that_cannot_be_scored(demo, given, message):
    with pytest.raises(ValueError, match=message):
        score_documents(*demo, **{"texts": ["Gustav"]} | given)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_labels_are_answers_of_one_token(demo, cfg_scale):
    model, tokenizer = demo
    prompts, labels = ["Gustav", "Who is Gustav", "Gustav Gray is"], [" Gray", " Green", " is"]
    scores = choose_label(model, tokenizer, prompts, labels, cfg_scale=cfg_scale, batch_size=2)
    assert scores.shape == (3, 3)
    for row, prompt in enumerate(prompts):
        expected = log_likelihood(model, tokenizer, prompt, labels, cfg_scale=cfg_scale).log_likelihood
        torch.testing.assert_close(scores[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "labels", "message"),
    [
        (["Gustav"], [" Gray is", " Gray"], "The label ' Gray is' takes 2 tokens after 'Gustav'"),
        (["Gustav"], [" Gray", "  Gray"], "Two of the labels .* are the same token"),
        ("Gustav", [" Gray"], "Give lists of prompts and labels"),
        (["Gustav"], [], "Give lists of prompts and labels"),
    ],
)
def test_labels_that_are_none(demo, prompts, labels, message):
    with pytest.raises(ValueError, match=message):
        choose_label(*demo, prompts, labels)


def test_the_page_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    _, printed = run_blocks(page, "evaluation.md")
    assert printed.splitlines() == [" Hazelmere's curious dancer [0.0, 0.0]", "torch.Size([1, 2])", "6"]
    # every estimator has its row
    for name in (*ESTIMATORS, "confidence"):
        assert re.search(rf'^\| .*`"{name}"`', page, re.MULTILINE)
