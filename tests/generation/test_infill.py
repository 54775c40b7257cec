"""Filling masks where they stand."""

import pytest
import torch
from golden import load_golden
from scripted_model import EOS, EOT, MASK, ScriptedModel

from llada import LLaDAModelLM


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


@pytest.mark.parametrize(
    "settings",
    [{}, {"block_length": 4}, {"steps": 5}, {"max_denoising_steps": 3, "cfg_scale": 1.2}, {"eos_early_stop": False}],
    ids=str,
)
def test_a_tail_of_masks_is_what_generate_fills(model, settings):
    prompt = torch.tensor([[299, 299, 5, 6, 7], [1, 2, 3, 4, 5]])
    attention_mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    canvas = torch.cat([prompt, torch.full((2, 12), 300)], dim=1)
    longer = torch.cat([attention_mask, torch.ones(2, 12, dtype=torch.long)], dim=1)
    settings = {"return_dict_in_generate": True, **settings}
    generated = model.generate(prompt, attention_mask=attention_mask, max_new_tokens=12, **settings)
    filled = model.infill(canvas, attention_mask=longer, **settings)
    assert torch.equal(filled.sequences, generated.sequences)
    assert filled.num_forwards == generated.num_forwards


@pytest.mark.parametrize("block_length", [None, 3])
def test_given_tokens_stay_and_every_mask_is_filled(model, block_length):
    tokens = torch.randint(0, 290, (4, 20))
    holes = torch.rand(4, 20) < 0.4
    holes[:, 5] = True
    canvas = tokens.masked_fill(holes, 300)
    output = model.infill(canvas, block_length=block_length, output_trace=True)
    assert torch.equal(output.sequences[~holes], tokens[~holes])
    assert not (output.sequences == 300).any()
    for row, trace in enumerate(output.trace):
        changed = {position for event in trace.events for position in event.positions}
        assert changed == set(holes[row].nonzero().flatten().tolist())


def test_a_row_does_not_depend_on_its_batch(model):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 290, (length,), generator=generator) for length in (15, 9, 12)]
    for row in rows:
        row[torch.rand(len(row), generator=generator) < 0.5] = 300
    for padding_side in ("left", "right"):
        batch, attention_mask = torch.full((3, 15), 299), torch.zeros(3, 15, dtype=torch.long)
        for index, row in enumerate(rows):
            place = slice(15 - len(row), 15) if padding_side == "left" else slice(0, len(row))
            batch[index, place], attention_mask[index, place] = row, 1
        together = model.infill(batch, attention_mask=attention_mask, block_length=4)
        for index, row in enumerate(rows):
            alone = model.infill(row.unsqueeze(0), block_length=4)
            assert torch.equal(together[index][attention_mask[index].bool()], alone[0])


def test_a_full_row_in_a_batch_is_left_alone(model):
    canvas = torch.tensor([[1, 2, 3], [4, 300, 300]])
    output = model.infill(canvas, return_dict_in_generate=True)
    assert output.sequences[0].tolist() == [1, 2, 3]
    assert output.num_forwards == 2


def test_text_on_the_right_is_read(model):
    canvas = torch.tensor([[300, 300, 40, 50, 60], [300, 300, 70, 80, 90]])
    filled = model.infill(canvas)
    assert not torch.equal(filled[0, :2], filled[1, :2])


def test_no_end_of_text_before_given_text():
    def script(canvas):
        logits = torch.zeros(*canvas.shape, 32)
        logits[..., EOS], logits[..., EOT], logits[..., 0], logits[..., 7] = 9.0, 8.0, 7.0, 1.0
        return logits

    model = ScriptedModel(script)
    canvas = torch.tensor([[MASK, 5, MASK, MASK]])
    output = model.infill(canvas, eos_token_id=[EOS, EOT], return_dict_in_generate=True)
    assert output.sequences.tolist() == [[7, 5, EOS, 0]]
    # padding on the right is no text
    canvas = torch.tensor([[MASK, 5, MASK, MASK, 0]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 0]])
    filled = model.infill(canvas, attention_mask=attention_mask, eos_token_id=[EOS, EOT])
    assert filled.tolist() == [[7, 5, EOS, 0, 0]]


def test_masks_under_padding_are_not_filled():
    model = ScriptedModel.writing([7, 8], prompt_length=1)
    filled = model.infill(torch.tensor([[MASK, MASK, MASK]]), attention_mask=torch.tensor([[0, 1, 1]]))
    assert filled.tolist() == [[MASK, 7, 8]]


def test_blocks_without_masks_cost_nothing():
    model = ScriptedModel.writing([7] * 9, prompt_length=0)
    canvas = torch.tensor([[MASK, 1, 1, 1, 1, 1, 1, MASK, MASK]])
    assert model.infill(canvas, block_length=2, steps=3).tolist() == [[7, 1, 1, 1, 1, 1, 1, 7, 7]]
    assert len(model.calls) == 3


def test_guidance_masks_given_text_on_both_sides():
    seen = []

    def script(canvas):
        seen.append(canvas.tolist())
        return torch.zeros(*canvas.shape, 32)

    ScriptedModel(script).infill(torch.tensor([[4, MASK, 5]]), cfg_scale=1.0)
    assert seen == [[[4, MASK, 5], [MASK, MASK, MASK]]]


@pytest.mark.parametrize(
    ("canvas", "arguments", "message"),
    [
        ([[1, 2]], {}, "no mask token 30 to fill"),
        ([[1, MASK]], {"attention_mask": torch.tensor([[1, 0]])}, "no mask token 30 to fill"),
        ([[MASK] * 65], {}, "65 positions, more than the 64"),
        ([[MASK, 1]], {"num_beams": 3}, "beam search"),
        ([[MASK, 1, MASK]], {"steps": 1, "block_length": 1}, "fewer than the 2 blocks"),
        ([[MASK, 1]], {"temprature": 3}, "`temprature` .write `temperature`"),
    ],
)
def test_refusals(canvas, arguments, message):
    with pytest.raises(ValueError, match=message):
        ScriptedModel.writing([7]).infill(torch.tensor(canvas), **arguments)
