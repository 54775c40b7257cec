"""Making room while an answer is filled: DAEDAL's second stage."""

from collections import Counter

import pytest
import torch
from naive_expansion import naive_daedal
from scripted_model import EOS, MASK, ScriptedModel
from tiny_models import as_block_causal, peaked_llada, tiny_llada

from benchmarks.counters import DispatchCounter
from llada import DiffusionGenerationConfig
from llada.generation import Canvas, Delta, Trace, preset
from llada.generation.regions import Region
from llada.generation.rules.daedal import MaskInsertion


SETTINGS = {
    "max_new_tokens": 26,
    "initial_length": 5,
    "length_step": 3,
    "length_threshold": 0.02,
    "length_window": 6,
    "expand_threshold": 0.7,
    "expand_factor": 4,
    "expand_end_threshold": 0.9,
    "block_length": 4,
    "threshold": 0.7,
    "pad_token_id": 41,
}

# the same rules with other numbers: rarely and often, by one and by many, one block and many
VARIANTS = {
    "as it is": {},
    "no first stage": {"length_threshold": 0.0},
    "unsure": {"expand_threshold": 0.9, "expand_factor": 2, "length_threshold": 0.0},
    "wide": {"expand_factor": 11, "block_length": 32, "length_threshold": 0.0},
    "content": {"expand_end_threshold": 0.7, "length_threshold": 0.0},
    "slow": {"threshold": 1.0, "block_length": 7, "length_threshold": 0.0},
    "no end in sight": {"length_threshold": 1.0, "max_new_tokens": 9},
}

# what else goes with it
RULES = {
    "threshold": {},
    "factor": {"threshold": None, "factor": 1.2},
    "frechet": {"threshold": None, "frechet_margin": 0.2},
    "entropy": {"threshold": None, "entropy_bound": 0.5, "remasking": "entropy"},
    "calibrated": {
        "threshold": None,
        "entropy_bound": 0.5,
        "remasking": "position_calibrated",
        "token_frequencies": torch.linspace(0, 1, 48),
    },
    "hierarchical": {"low_threshold": 0.5},
    "context": {"threshold_relaxation": 0.3},
    "guidance": {"cfg_scale": 0.7},
    "ends last": {"suppress_eos": "confidence"},
    "whole canvas": {"eos_early_stop": False},
    "one block": {"block_length": 30},
}


def model_of(seed: int, **overrides):
    """A model in double precision that ends its texts now and then."""
    model = peaked_llada(seed, **overrides).double()
    with torch.no_grad():
        model.get_output_embeddings().weight[42] *= 2.5
    return model


def rows_of(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Rows padded on the left, their attention mask, and the rows alone."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 40, (length,), generator=generator) for length in (6, 3, 5, 6)]
    batch = torch.stack([torch.nn.functional.pad(row, (6 - len(row), 0)) for row in rows])
    return batch, torch.stack([torch.arange(6) >= 6 - len(row) for row in rows]).long(), rows


@pytest.mark.parametrize("name", [*VARIANTS, "guidance"])
def test_token_for_token(name):
    settings = SETTINGS | VARIANTS.get(name, RULES.get(name, {}))
    lengths, grown = set(), 0
    for seed in range(8):
        model = model_of(seed)
        for row in rows_of(seed)[2][:2]:
            expected, forwards, insertions = naive_daedal(model, row.tolist(), **settings)
            output = model.generate(row[None], **settings, output_trace=True)
            assert output.sequences[0].tolist() == expected
            assert output.num_forwards == forwards
            inserted = [event.inserted for event in output.trace[0].events if event.inserted]
            assert inserted == [[position] * added for position, added in insertions]
            lengths.add(len(expected) - len(row))
            grown += len(insertions)
    assert max(lengths) <= settings["max_new_tokens"]
    if name == "no end in sight":
        # the first stage has used all there is
        assert grown == 0 and max(lengths) == 9
    else:
        assert grown > 10 and len(lengths) > 2


@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_depend_on_its_batch(name):
    settings = SETTINGS | RULES[name]
    grown = []
    for seed in range(2, 6):
        model = model_of(seed)
        batch, attention_mask, rows = rows_of(seed)
        together = model.generate(batch, attention_mask=attention_mask, **settings, output_trace=True)
        widths = []
        for number, row in enumerate(rows):
            alone = model.generate(row[None], **settings, output_trace=True)
            length, start = alone.sequences.shape[1], 6 - len(row)
            assert torch.equal(together.sequences[number, start : start + length], alone.sequences[0])
            assert set(together.sequences[number, start + length :].tolist()) <= {41}
            # steps are numbered over the batch
            one, other = alone.trace[0], together.trace[number]
            assert [event.tokens for event in one.events] == [event.tokens for event in other.events]
            assert list(one.frames()) == list(other.frames())
            assert one.final == other.final
            widths.append(start + length)
            grown.append(sum(len(event.inserted) for event in one.events))
        assert together.sequences.shape[1] == max(widths)
    assert sum(count > 0 for count in grown) > 3 and len(set(grown)) > 2


@pytest.mark.parametrize("name", RULES)
def test_properties(name):
    settings = SETTINGS | {"length_threshold": 0.0} | RULES[name]
    grown = 0
    for seed in range(6):
        row = rows_of(seed)[2][0]
        output = model_of(seed).generate(row[None], **settings, output_trace=True)
        (sequence,), (trace,) = output.sequences.tolist(), output.trace
        # what was given stays, no mask is left, and the budget holds
        assert sequence[: len(row)] == row.tolist()
        assert 40 not in sequence
        assert len(sequence) <= len(row) + settings["max_new_tokens"]
        # every pass but that of the first stage writes a token or more, on masks only, and makes room behind a mask
        assert output.num_forwards == len(trace.events) + 1
        frames = list(trace.frames())
        for event, before, after in zip(trace.events, frames[:-1], frames[1:], strict=True):
            assert len(event.positions) >= 1 and 40 not in event.tokens
            assert {before[position] for position in event.positions} == {40}
            assert len(set(event.inserted)) <= 1 and len(event.inserted) < settings["expand_factor"]
            assert len(after) == len(before) + len(event.inserted)
            for position in event.inserted:
                # an end of text in the same step fills the room that was made: the last frame is the output
                assert after[position] == (40 if event.end is None else event.fill)
                assert position not in event.positions
            grown += len(event.inserted)
        # and the trace says what stands where
        assert len(trace.final) == len(trace.step_of) == len(trace.confidence) <= len(frames[-1])
        assert trace.final == sequence == frames[-1][: len(sequence)]
        left = {event.step: Counter(event.tokens) for event in trace.events}
        for token, step in zip(trace.final, trace.step_of, strict=True):
            if step >= 0:
                left[step][token] -= 1
        assert all(min(tokens.values()) >= 0 for tokens in left.values())
        if len(sequence) == len(frames[-1]):
            assert not any(tokens.total() for tokens in left.values())
    assert grown > 10


def test_the_text_moves_with_what_is_known_of_it():
    prompt = torch.tensor([[1, 2], [0, 3]])
    tokens = torch.cat([prompt, torch.tensor([[MASK, MASK, 7, 0, 0], [MASK, MASK, MASK, MASK, 0]])], dim=1)
    frozen = torch.tensor([[1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1]]).bool()
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0]])
    canvas = Canvas(tokens, frozen, MASK, attention_mask)
    canvas.ends = torch.tensor([5, 6])
    positions = torch.tensor([[0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]]).bool()
    repeats = torch.tensor([[0, 0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]])
    confidence = torch.full(tokens.shape, 0.5)
    canvas.apply(Delta(4, 0, positions, tokens.masked_fill(positions, 9), confidence, repeats))
    assert canvas.tokens.tolist() == [[1, 2, MASK, MASK, MASK, 9, 7], [0, 3, MASK, 9, MASK, MASK, MASK]]
    assert canvas.masked.int().tolist() == [[0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 1]]
    assert canvas.step_of.tolist() == [[-1, -1, -1, -1, -1, 4, -1], [-1, -1, -1, 4, -1, -1, -1]]
    assert canvas.confidence.tolist() == [[0, 0, 0, 0, 0, 0.5, 0], [0, 0, 0, 0.5, 0, 0, 0]]
    assert canvas.frozen.int().tolist() == [[1, 1, 0, 0, 0, 0, 0]] * 2
    assert canvas.attention_mask.tolist() == [[1] * 7, [0] + [1] * 6]
    assert canvas.ends.tolist() == [7, 7]
    assert canvas.padding.tolist() == [0, 1]


def test_blocks_reach_to_where_rows_may_grow():
    tokens = torch.tensor([[1, MASK, MASK, 0, 0, 0, 0]])
    canvas = Canvas(tokens, tokens != MASK, MASK, (tokens > 0).long())
    canvas.ends = torch.tensor([3])
    blocks = list(Region(canvas, 4, grows=True))
    assert [block.inside[0].nonzero().flatten().tolist() for block in blocks] == [[1, 2, 3, 4], [5, 6]]
    assert [block.num_masked for block in blocks] == [[2], [0]]
    assert [(block.start, block.end) for block in blocks] == [(1, 5), (5, 7)]
    assert len(list(Region(canvas, 4))) == 1


def unsure_of_the_second(canvas):
    """Sure of 5 everywhere, but not at the second position after a prompt of two, before there are ten."""
    logits = torch.zeros(*canvas.shape, 32)
    logits[:, :, 5] = 9.0
    logits[:, 3, 5] = 9.0 if canvas.shape[1] >= 10 else 1.0
    return logits


def test_streamers_see_the_text_grow():
    heard = []

    class Listener:
        def put(self, value):
            heard.append(value.tolist()[0])

        def put_draft(self, value):
            heard.append(["draft", *value.tolist()[0]])

        def end(self):
            heard.append("end")

    sequences = ScriptedModel(unsure_of_the_second).generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=6,
        initial_length=3,
        length_threshold=0.0,
        length_window=3,
        expand_threshold=0.3,
        expand_factor=3,
        threshold=0.9,
        streamer=Listener(),
    )
    # one end of text is put behind, and with it the text may grow by two
    assert heard == [
        [1, 2],
        [5],
        ["draft", MASK, MASK, MASK, 5, EOS],
        ["draft", MASK, 5, 5, 5, EOS],
        [5, 5, 5, 5, EOS],
        "end",
    ]
    assert sequences.tolist() == [[1, 2, 5, 5, 5, 5, 5, EOS]]


def test_a_trace_comes_back_from_its_file(tmp_path):
    output = model_of(7).generate(rows_of(7)[0][:1], **SETTINGS | VARIANTS["unsure"], output_trace=True)
    (trace,) = output.trace
    assert any(event.inserted for event in trace.events)
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace


def test_criteria_are_asked_at_every_position_that_there_is():
    model, asked = ScriptedModel(unsure_of_the_second), []

    def never(input_ids, scores):
        asked.append(input_ids.shape[1])
        return torch.zeros(1, dtype=torch.bool)

    settings = {"initial_length": 3, "length_threshold": 0.0, "length_window": 3, "expand_factor": 3}
    model.generate(
        torch.tensor([[1, 2]]),
        max_new_tokens=40,
        expand_threshold=0.3,
        threshold=0.9,
        stopping_criteria=[never],
        eos_early_stop=False,
        **settings,
    )
    # two and two more, and none of the room that is not needed
    assert asked == [3, 4, 5, 6, 7, 8, 9, 10]


def test_a_step_waits_once():
    model, counter, between, last = model_of(7), DispatchCounter(), [], []
    model.register_forward_pre_hook(lambda *_: between.extend(counter.waits.total() - value for value in last))
    model.register_forward_hook(lambda *_: last.__setitem__(slice(None), [counter.waits.total()]))
    batch, attention_mask, _ = rows_of(7)
    with counter:
        output = model.generate(
            batch,
            attention_mask=attention_mask,
            **SETTINGS | {"block_length": 30, "length_threshold": 0.0, "threshold": 1.0},
        )
    assert output.shape[1] > batch.shape[1] + 8
    # the first pass asks how long the text is, the second brings constants to the device
    assert len(between) > 9 and set(between[2:]) == {1}


def test_no_attention_mask_where_rows_are_alike():
    model, masks = model_of(7), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append((kwargs["attention_mask"], kwargs["input_ids"].shape[1])),
        with_kwargs=True,
    )
    row = rows_of(7)[0][:1]
    sequences = model.generate(row, **SETTINGS | {"length_threshold": 0.0})
    assert all(mask is None for mask, _ in masks)
    # nothing is computed where no row has grown
    lengths = [length for _, length in masks]
    assert lengths == sorted(lengths)
    assert lengths[1] == row.shape[1] + 5 + 3 < lengths[-1]
    assert sequences.shape[1] <= lengths[-1]


def test_the_preset_has_both_stages_and_comes_back_from_its_file(tmp_path):
    config = preset("daedal")
    assert (config.initial_length, config.expand_threshold, config.expand_factor) == (64, 0.1, 8)
    config.save_pretrained(tmp_path)
    loaded = DiffusionGenerationConfig.from_pretrained(tmp_path)
    names = ("expand_threshold", "expand_factor", "expand_end_threshold", "length_window", "block_length", "threshold")
    assert [getattr(loaded, name) for name in names] == [0.1, 8, 0.9, 32, 32, 0.9]
    unset = DiffusionGenerationConfig(expand_threshold=0.1)
    finer = [MaskInsertion.get(unset, name) for name in ("expand_factor", "expand_end_threshold")]
    assert finer == [8, 0.9]


def test_the_preset_token_for_token():
    model = model_of(7, max_position_embeddings=256)
    settings = {name: getattr(preset("daedal"), name) for name in SETTINGS} | {
        "max_new_tokens": 120,
        "initial_length": 40,
        "length_threshold": 0.0,
        "expand_threshold": 0.6,
        "pad_token_id": 41,
    }
    expected, forwards, insertions = naive_daedal(model, [1, 2, 3], **settings)
    output = model.generate(torch.tensor([[1, 2, 3]]), **settings, return_dict_in_generate=True)
    assert output.sequences[0].tolist() == expected
    assert output.num_forwards == forwards
    assert len(insertions) > 2


class TestRefusals:
    prompt = torch.tensor([[1, 2]])

    def test_infill(self):
        with pytest.raises(ValueError, match=r"`expand_threshold=0.1` inserts masks .* call `generate`"):
            tiny_llada().infill(torch.tensor([[1, 40, 40]]), expand_threshold=0.1, threshold=0.5, initial_length=2)

    def test_block_causal_models(self):
        model = tiny_llada()
        as_block_causal(model)
        with pytest.raises(ValueError, match="needs full attention and `eos_token_id`"):
            model.generate(self.prompt, **SETTINGS, kv_cache=None)

    def test_a_canvas_that_may_outgrow_the_model(self):
        with pytest.raises(ValueError, match="The canvas has 65 positions, more than the 64"):
            tiny_llada().generate(self.prompt, **SETTINGS | {"max_new_tokens": 63})

    def test_compiled_steps(self):
        from transformers import CompileConfig

        with pytest.raises(ValueError, match="the positions that ExpandingForward computes change"):
            tiny_llada().generate(self.prompt, **SETTINGS, compile_config=CompileConfig(backend="eager"))

    @pytest.mark.parametrize("name", ["kv_cache", "commit_gaps", "remask_threshold"])
    def test_at_once(self, name):
        value = {"kv_cache": "prefix", "commit_gaps": [3.0], "remask_threshold": 0.5}[name]
        with pytest.raises(ValueError, match=rf"`expand_threshold=0.1` and `{name}=.*cannot work together"):
            preset("daedal", **{name: value})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"expand_factor": 1}, "`expand_factor` must be at least 2, but is 1"),
            ({"expand_threshold": 1.5}, "`expand_threshold` is a probability"),
            ({"expand_end_threshold": -0.5}, "`expand_end_threshold` is a probability"),
            ({"expansion_factor": 8}, "write `expand_factor`"),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_values(self, settings, message):
        with pytest.raises(ValueError, match=message):
            DiffusionGenerationConfig(**settings)
