"""Asking the model how long its answer is, before it is filled."""

import pytest
import torch
from scripted_model import EOS, MASK, ScriptedModel
from tiny_models import as_block_causal, peaked_llada, tiny_llada

from llada.generation.rules.daedal import end_confidence


def naive_length(
    model,
    prompt: list[int],
    initial: int,
    longest: int,
    step: int,
    threshold: float,
    window: int,
    guidance: float = 0.0,
) -> int:
    length = initial
    while length < longest:
        canvas = torch.tensor([prompt + [model.config.mask_token_id] * length])
        logits = model(canvas).logits[0]
        blank = model(torch.full_like(canvas, model.config.mask_token_id)).logits[0]
        probabilities = (blank + (guidance + 1) * (logits - blank)).softmax(-1)
        found: list[float] = []
        for position in range(canvas.shape[1] - 1, len(prompt) - 1, -1):
            if len(found) < window and probabilities[position].argmax() == model.config.eos_token_id:
                found.append(probabilities[position, model.config.eos_token_id].item())
        if sum(found) / window >= threshold:
            break
        length = min(length + step, longest)
    return length


def test_the_last_ends_count():
    logits = torch.full((2, 4, 3), -torch.inf)
    for row, values in enumerate([[0.9, 0.2, 0.8, 0.6], [0.1, 0.3, 0.2, 0.4]]):
        for place, value in enumerate(values):
            logits[row, place] = torch.tensor([value, 1 - value, 0.0]).log()
    # the last two of .9, .8 and .6; none is the likeliest
    assert end_confidence(logits, torch.tensor([0]), 2).tolist() == pytest.approx([0.7, 0.0])
    assert end_confidence(logits, torch.tensor([0]), 4).tolist() == pytest.approx([2.3 / 4, 0.0])


def ends(canvas: torch.Tensor, length: int) -> torch.Tensor:
    logits = torch.zeros(*canvas.shape, 32)
    logits[:, :, 5] = 8.0
    logits[:, 2 + length :, EOS] = 16.0
    return logits


def ends_after(length: int) -> ScriptedModel:
    """A model that sees a text of so many tokens and nothing after it."""
    return ScriptedModel(lambda canvas: ends(canvas, length))


SETTINGS = {"initial_length": 4, "length_step": 3, "length_threshold": 0.45, "length_window": 4}


@pytest.mark.parametrize(
    ("text", "longest", "length"),
    # two ends of text in the last positions are enough
    [(1, 30, 4), (2, 30, 4), (3, 30, 7), (10, 30, 13), (10, 12, 12), (10, 3, 3), (40, 20, 20)],
)
def test_masks_are_added_until_the_text_ends(text, longest, length):
    model = ends_after(text)
    output = model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=longest,
        threshold=0.5,
        output_trace=True,
        **SETTINGS,
    )
    assert output.trace[0].start == [1, 2] + [MASK] * length
    assert output.sequences[0, 2:].tolist() == ([5] * text + [EOS])[:length]
    # asking counts, too
    asked = len({*range(4, min(length, longest - 1) + 1, 3)}) if longest > 4 else 0
    assert output.num_forwards == len(model.calls) == asked + 1


def test_a_row_does_not_depend_on_its_batch():
    lengths = set()
    for seed in range(6):
        model = peaked_llada(seed)
        with torch.no_grad():
            model.get_output_embeddings().weight[42] *= 2
        model.double()
        rows = [torch.randint(0, 40, (length,)) for length in (6, 3, 4)]
        batch = torch.stack([torch.nn.functional.pad(row, (6 - len(row), 0)) for row in rows])
        attention_mask = torch.stack([torch.arange(6) >= 6 - len(row) for row in rows]).long()
        settings = {**SETTINGS, "max_new_tokens": 20, "block_length": 5, "threshold": 0.6, "pad_token_id": 41}
        together = model.generate(batch, attention_mask=attention_mask, **settings)
        widths = []
        for number, row in enumerate(rows):
            output = model.generate(row[None], **settings, output_trace=True)
            alone = output.sequences[0]
            widths.append(len(alone) - len(row))
            lengths.add(len(output.trace[0].start) - len(row))
            assert len(output.trace[0].start) - len(row) == naive_length(model, row.tolist(), 4, 20, 3, 0.45, 4)
            start = 6 - len(row)
            assert torch.equal(together[number, start : start + len(alone)], alone)
            # and padding after it
            assert set(together[number, start + len(alone) :].tolist()) <= {41}
        assert together.shape[1] == 6 + max(widths)
        for more in ({"kv_cache": "dual"}, {"threshold_relaxation": 0.4}, {"verify_threshold": 0.5}):
            together = model.generate(batch, attention_mask=attention_mask, **settings, **more)
            for number, row in enumerate(rows):
                alone = model.generate(row[None], **settings, **more)[0]
                assert torch.equal(together[number, 6 - len(row) : 6 - len(row) + len(alone)], alone)
    assert len(lengths) > 2


def test_guidance_has_its_say():
    changed = 0
    for seed in range(6):
        model = peaked_llada(seed)
        with torch.no_grad():
            model.get_output_embeddings().weight[42] *= 2
        model.double()
        prompt = torch.randint(0, 40, (1, 5))
        lengths = [naive_length(model, prompt[0].tolist(), 4, 20, 3, 0.45, 4, guidance) for guidance in (0.0, 2.0)]
        output = model.generate(prompt, max_new_tokens=20, cfg_scale=2.0, output_trace=True, **SETTINGS)
        assert len(output.trace[0].start) == 5 + lengths[1]
        changed += lengths[0] != lengths[1]
    assert changed > 1


def test_refusals():
    model = tiny_llada()
    prompt = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="needs full attention and `eos_token_id`"):
        model.generate(prompt, max_new_tokens=8, initial_length=4, eos_token_id=[])
    as_block_causal(model)
    with pytest.raises(ValueError, match="`initial_length=4` asks the model where its text ends"):
        model.generate(prompt, max_new_tokens=8, initial_length=4)


def test_a_trace_has_no_padding_on_either_side():
    model = ScriptedModel(lambda canvas: torch.where(canvas[:, :1, None] == 1, ends(canvas, 9), ends(canvas, 3)))
    settings = {**SETTINGS, "max_new_tokens": 30, "threshold": 0.5, "output_trace": True}
    together = model.generate(torch.tensor([[1, 2], [3, 4]]), **settings)
    for number, prompt in enumerate(([1, 2], [3, 4])):
        alone = model.generate(torch.tensor([prompt]), **settings).trace[0]
        assert together.trace[number].start == alone.start
        assert together.trace[number].final == alone.final
        assert len(alone.final) == len(alone.step_of) <= len(alone.start)
    assert len(together.trace[0].start) > len(together.trace[1].start)


def test_the_mask_is_never_in_the_answer():
    output = ends_after(3).generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=9, **SETTINGS)
    assert not (output == MASK).any()
