"""Running-confidence remasking against a plain loop."""

import naive_rules
import pytest
import torch
from tiny_models import peaked_llada

from llada import DiffusionGenerationConfig


MASK = 40


@pytest.mark.parametrize("score", ["confidence", "margin", "entropy"])
def test_token_for_token(score):
    remasking = {"confidence": "low_confidence"}.get(score, score)
    taken_back = 0
    for seed in range(5):
        model = peaked_llada(seed).double()
        rows = [torch.randint(0, 40, (length,)) for length in (6, 3, 4)]
        batch = torch.stack([torch.nn.functional.pad(row, (6 - len(row), 0), value=42) for row in rows])
        attention_mask = torch.stack([torch.arange(6) >= 6 - len(row) for row in rows]).long()
        for block_length, steps in ((12, 4), (12, 5), (5, 3), (5, 9)):
            settings = {
                "max_new_tokens": 12,
                "block_length": block_length,
                "max_denoising_steps": steps,
                "remasking": remasking,
                "running_confidence": True,
                "confidence_dtype": "float64",
                "eos_early_stop": False,
                "output_trace": True,
            }
            together = model.generate(batch, attention_mask=attention_mask, **settings)
            for number, row in enumerate(rows):
                naive, states = naive_rules.running_confidence(
                    model, [*row.tolist(), *[MASK] * 12], block_length, steps, score
                )
                alone = model.generate(row[None], **settings)
                assert alone.sequences[0].tolist() == naive
                assert together.sequences[number, 6 - len(row) :].tolist() == naive
                # one pass per step; what is filled and masked again in a step is no change
                assert alone.num_forwards == len(states)
                frames = list(alone.trace[0].frames())
                assert frames[1:] == states == list(together.trace[number].frames())[1:]
                for event, before in zip(alone.trace[0].events, frames, strict=False):
                    assert all(
                        before[place] != token for place, token in zip(event.positions, event.tokens, strict=True)
                    )
                taken_back += sum(event.tokens.count(MASK) for event in alone.trace[0].events)
    assert taken_back > 10


def test_gaps_with_text_between():
    for seed in range(4):
        model = peaked_llada(seed).double()
        canvas = [1, MASK, MASK, 7, MASK, 8, 9, MASK, MASK, MASK, 5]
        # no end of text is proposed before text that was given
        model.get_output_embeddings().weight.data[42] *= 0
        settings = {"block_length": 9, "max_denoising_steps": 3, "confidence_dtype": "float64"}
        naive, _ = naive_rules.running_confidence(model, canvas, 9, 3)
        output = model.infill(torch.tensor([canvas]), running_confidence=True, **settings)[0].tolist()
        assert output == naive


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.5}, "the one works on a fixed plan"),
        ({"step_schedule": "bernoulli"}, "positions are revealed in any order"),
        ({"remask_threshold": 0.5}, "each say what becomes of kept predictions"),
        ({"commit_gaps": [1.0]}, "the other opens it again"),
        ({"kv_cache": "delayed"}, "committed positions are not computed"),
        ({"rng_compat": "llada", "eos_early_stop": False}, "leave out `running_confidence`"),
    ],
    ids=str,
)
def test_what_it_does_not_go_with(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(running_confidence=True, **settings)
    DiffusionGenerationConfig(running_confidence=False, **settings)
