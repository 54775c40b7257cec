"""The length at which the model is least uncertain, against a plain loop."""

import pytest
import torch
from scripted_model import MASK, ScriptedModel
from tiny_models import as_block_causal, peaked_llada, tiny_llada

from llada import DiffusionGenerationConfig


CANDIDATES = [9, 4, 14, 6]


@torch.no_grad()
def naive_length(model, prompt: list[int], candidates: list[int], guidance: float = 0.0) -> int:
    means = {}
    for length in candidates:
        canvas = torch.tensor([prompt + [model.config.mask_token_id] * length])
        logits = model(canvas).logits[0]
        blank = model(torch.full_like(canvas, model.config.mask_token_id)).logits[0]
        logs = (blank + (guidance + 1) * (logits - blank)).log_softmax(-1)
        means[length] = sum(-(row.exp() * row).sum().item() for row in logs[len(prompt) :]) / length
    return min(means, key=means.get)


def length_of(trace, row):
    return len(trace.start) - len(row)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_row_takes_its_own_length_whatever_its_batch(guidance):
    found = set()
    for seed in range(6):
        model = peaked_llada(seed).double()
        rows = [torch.randint(0, 40, (length,)) for length in (6, 3, 4)]
        batch = torch.stack([torch.nn.functional.pad(row, (6 - len(row), 0), value=42) for row in rows])
        attention_mask = torch.stack([torch.arange(6) >= 6 - len(row) for row in rows]).long()
        settings = {
            "length_candidates": CANDIDATES,
            "cfg_scale": guidance,
            "max_new_tokens": 20,
            "block_length": 5,
            "pad_token_id": 41,
            "output_trace": True,
        }
        together = model.generate(batch, attention_mask=attention_mask, **settings)
        for number, row in enumerate(rows):
            alone = model.generate(row[None], **settings)
            length = naive_length(model, row.tolist(), CANDIDATES, guidance)
            assert length_of(alone.trace[0], row) == length_of(together.trace[number], row) == length
            sequence, start = alone.sequences[0], 6 - len(row)
            assert torch.equal(together.sequences[number, start : start + len(sequence)], sequence)
            # and padding after it
            assert set(together.sequences[number, start + len(sequence) :].tolist()) <= {41}
            found.add(length)
    assert len(found) > 1


def test_the_valley_is_found_and_its_passes_counted():
    def uncertain(canvas: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*canvas.shape, 32)
        # the surest at 7 masks
        number = (canvas == MASK).sum(1)
        logits[:, :, 5] = 8.0 - (number - 7).abs()[:, None]
        return logits

    model = ScriptedModel(uncertain)
    prompt = torch.tensor([[1, 2]])
    settings = {"max_new_tokens": 12, "threshold": 0.0, "return_dict_in_generate": True}
    for candidates, length, passes in (
        ([4, 7, 11], 7, 3),
        # the first of equals
        ([9, 5], 9, 2),
        ([5, 9], 5, 2),
        # none is longer than it may be, and none is asked about twice
        ([20, 30, 1], 12, 2),
    ):
        output = model.generate(prompt, length_candidates=candidates, **settings)
        assert output.sequences.tolist() == [[1, 2] + [5] * length]
        assert output.num_forwards == passes + 1


def test_refusals():
    with pytest.raises(ValueError, match="`length_candidates` and `initial_length` each say how many masks"):
        DiffusionGenerationConfig(length_candidates=[4], initial_length=4)
    with pytest.raises(ValueError, match="`length_candidates` must be a list of integers, at least 1"):
        DiffusionGenerationConfig(length_candidates=[4, 0])
    model = tiny_llada()
    as_block_causal(model)
    with pytest.raises(ValueError, match=r"`length_candidates=\[4, 6\]` is for models with full attention"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=8, length_candidates=[4, 6])
