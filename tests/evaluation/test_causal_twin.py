"""The autoregressive model to compare with."""

import pytest
import torch
from demo_checkpoint import load_demo

from llada.evaluation import build_causal_twin, causal_log_likelihood


def test_twin_has_the_size_of_the_model() -> None:
    model, _, _ = load_demo()
    twin = build_causal_twin(model.config)

    def shapes(module: torch.nn.Module) -> list[tuple[int, ...]]:
        return sorted(tuple(weight.shape) for weight in module.parameters())

    assert shapes(twin) == shapes(model)
    assert twin.config.rope_parameters["rope_theta"] == model.config.rope_theta == 10000.0
    assert twin.config.eos_token_id == model.config.eos_token_id


def test_twin_looks_left_only() -> None:
    model, _, _ = load_demo()
    twin = build_causal_twin(model.config).eval()
    ids = torch.arange(10, 16).unsqueeze(0)
    changed = ids.clone()
    changed[0, -1] = 99

    with torch.no_grad():
        difference = (twin(ids).logits - twin(changed).logits).abs().amax(dim=2)[0]
    assert difference[:-1].max() == 0
    assert difference[-1] > 0


def test_log_likelihood_is_the_chain_rule() -> None:
    model, tokenizer, _ = load_demo()
    twin = build_causal_twin(model.config).eval()
    # the longer one is not padded, the shorter one is
    texts = ["Ada Moss is Foxholt's shy baker", "Ada Moss"]

    for text, together in zip(texts, causal_log_likelihood(twin, tokenizer, texts), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        expected = 0.0
        for length in range(1, ids.shape[1]):
            with torch.no_grad():
                expected += twin(ids[:, :length]).logits[0, -1].log_softmax(dim=0)[ids[0, length]].item()
        assert together.item() == pytest.approx(expected, abs=1e-4)
