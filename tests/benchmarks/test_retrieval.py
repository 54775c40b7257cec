"""The comparison of embeddings, and that of estimators, at a size of seconds."""

import argparse

import pytest
import torch
from tiny_models import tiny_llada

from benchmarks import estimators, retrieval


def test_ranks():
    queries = torch.eye(3)
    # the first is found, the second is second, the third is behind all and in a tie
    documents = torch.tensor([[1.0, 0, 0], [0, 1, 2], [-1, 0, 0], [0, 3, 0], [0, 0, 5]])
    found = retrieval.find(queries, documents)
    assert found == pytest.approx({"mrr": (1 + 1 / 2 + 1 / 5) / 3, "recall@1": 1 / 3, "recall@10": 1})


def test_halves_of_paragraphs():
    page = "one two\nthree four five\n\nshort\n \n" + "w " * 9
    assert retrieval.halve_paragraphs([page], 4, 8) == [("one two", "three four five")]
    assert retrieval.halve_paragraphs([page], 6, 9) == [("w w w w", "w w w w w")]


def test_both_models_are_asked(monkeypatch, tmp_path):
    words = [f"{first}{second}" for first in "bcdfg" for second in "aeiou"]
    pages = ["\n\n".join(" ".join([words[(a * b) % 25] for b in range(30)]) for a in range(1, 13))] * 2
    monkeypatch.setattr(retrieval, "read_pages", lambda: (pages, pages[:1]))
    options = argparse.Namespace(
        encoder=[], steps=2, halves=20, every=1, rows=4, length=16, vocab_size=300, hidden_size=32, layers=1, threads=1
    )
    lines = list(retrieval.run(options))
    assert lines[0] == {"queries": 12, "documents": 36, "tokenizer": 289}
    asked = [(line["model"], line["steps"], line["halves"]) for line in lines[1:]]
    assert asked == [
        *(("diffusion, mean", steps, 0) for steps in range(3)),
        ("diffusion, mean", 2, 20),
        *((f"causal, {pooling}", steps, 0) for steps in range(3) for pooling in ("mean", "last")),
        ("causal, mean", 2, 20),
        ("causal, last", 2, 20),
    ]
    assert all(0 < line["mrr"] <= 1 for line in lines[1:])


def test_halves_are_learned():
    tokenizer, model, _ = retrieval.build(["a b c d e f g h i j k l m n o p"] * 4, 280, 32, 1)
    embed = retrieval.embedder(model.eval(), tokenizer)
    pairs = [(first * 3, second * 3) for first, second in zip("abcdefgh", "ijklmnop", strict=True)]
    before = retrieval.measure(embed, pairs, [])
    retrieval.learn_halves(model, embed, pairs, 60, 8)
    assert retrieval.measure(embed, pairs, [])["mrr"] > max(before["mrr"], 0.8)


def test_estimators_are_compared_with_the_exact_bound():
    model = tiny_llada()
    answers = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8]]
    lines = {(line["estimator"], line["num_draws"]): line for line in estimators.measure(model, [[], []], answers, 3)}
    assert set(lines) == {("exact", None), *estimators.DRAWN, *((name, None) for name in estimators.FIXED)}
    exact = model.log_likelihood([[], []], answers, estimator="exact").log_likelihood
    ordered = model.log_likelihood([[], []], answers, estimator="left_to_right")
    assert lines["exact", None]["mean"] == pytest.approx(float(exact.mean()))
    line = lines["left_to_right", None]
    assert (line["off"], line["rows"]) == pytest.approx((float((ordered.log_likelihood - exact).mean()), 14))
    # five tokens have 31 masks, all of which are summed over
    drawn = torch.stack(
        [model.log_likelihood([[]], [answers[0]], num_draws=32, seed=s).log_likelihood for s in range(3)]
    )
    assert lines["monte_carlo", 32]["spread"] == pytest.approx(float(drawn.std(dim=0).sum() / 2), rel=1e-4)
