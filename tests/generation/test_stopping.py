"""Where an answer ends: the first end of text or stop, whatever else there is; and what streamers get of it."""

import pytest
import torch
from scripted_model import EOS, MASK, ScriptedModel
from tiny_models import as_block_causal, peaked_llada, tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers import MaxLengthCriteria, MaxTimeCriteria

from llada.generation import preset


PROMPT = torch.tensor([[1, 2]])
FAMILIES = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}


def ends_with(*tokens):
    """A stopping criterion: the text ends with one of the tokens."""
    return lambda input_ids, scores: torch.isin(input_ids[:, -1], torch.tensor(tokens))


def first_of(answer: list[int], *tokens: int) -> list[int]:
    """An answer up to the first of some tokens."""
    places = [place for place, token in enumerate(answer) if token in tokens]
    return answer[: places[0] + 1] if places else answer


def batch_of(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    prompts = torch.randint(0, 40, (len(lengths), width), generator=generator)
    attention_mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return prompts, attention_mask


@pytest.fixture(scope="module")
def models():
    return {name: family(initializer_range=0.4, pad_token_id=41) for name, family in FAMILIES.items()}


@pytest.mark.parametrize("is_cached", [False, True], ids=["full", "cached"])
@pytest.mark.parametrize("block_length", [1, 2, 4, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_whichever_is_first_ends_a_row(models, family, block_length, is_cached):
    model = models[family]
    kind = ("block" if model.config.block_causal else "dual") if is_cached else None
    prompts, attention_mask = batch_of(6, 3, 5, 4)
    settings = {"attention_mask": attention_mask, "max_new_tokens": 18, "block_length": block_length}
    settings |= {"threshold": 0.95, "kv_cache": kind}
    whole = model.generate(prompts, eos_token_id=None, **settings)[:, 6:].tolist()
    # two tokens that follow each other in the first row, either as the end of text
    *_, earlier, later = dict.fromkeys(whole[0])
    for eos, stop in ((earlier, later), (later, earlier)):
        expected = [first_of(row, eos, stop) for row in whole]
        assert expected[0][-1] == earlier
        sequences = model.generate(prompts, stopping_criteria=[ends_with(stop)], eos_token_id=eos, **settings)
        longest = max(map(len, expected))
        assert sequences[:, 6:].tolist() == [row + [41] * (longest - len(row)) for row in expected]


@pytest.mark.parametrize("block_length", [1, 2, 4, 32])
@pytest.mark.parametrize("text", ["yz stop!", "stop", "no end", "y"])
def test_stop_strings_before_the_end_of_text(tiny_tokenizer, text, block_length):
    tokens = [*tiny_tokenizer(text).input_ids, 299, 7, 7, 7]

    def script(canvas):
        logits = torch.zeros(*canvas.shape, 320)
        # the end of text is the surest of all
        for place, token in enumerate(tokens):
            logits[:, 2 + place, token] = 20.0 if token == 299 else 9.0
        return logits

    scripted = ScriptedModel(script)
    scripted.config.vocab_size = 320
    sequences = scripted.generate(
        PROMPT,
        max_new_tokens=len(tokens),
        block_length=block_length,
        stop_strings=["stop", "end"],
        tokenizer=tiny_tokenizer,
        mask_token_id=300,
        eos_token_id=299,
    )
    answer = tiny_tokenizer.decode(sequences[0, 2:], skip_special_tokens=True)
    assert answer == (text.removesuffix("!") if "stop" in text or "end" in text else text)


class TestInfill:
    """Given text is no answer."""

    model = ScriptedModel.writing([11, 12, 13, 14, 15, 16], prompt_length=0)

    @pytest.mark.parametrize("block_length", [1, 2, None])
    def test_a_given_token_does_not_stop(self, block_length):
        canvas = torch.tensor([[MASK, 9, MASK, 9, MASK, MASK]])
        sequences = self.model.infill(canvas, stopping_criteria=[ends_with(9)], block_length=block_length)
        assert sequences.tolist() == [[11, 9, 13, 9, 15, 16]]

    @pytest.mark.parametrize("block_length", [1, 2, None])
    def test_no_stop_before_given_text(self, block_length):
        canvas = torch.tensor([[MASK, 9, MASK, 9, MASK, MASK]])
        for token in (11, 13):
            sequences = self.model.infill(canvas, stopping_criteria=[ends_with(token)], block_length=block_length)
            assert sequences.tolist() == [[11, 9, 13, 9, 15, 16]]
        # after the last given token there is one
        sequences = self.model.infill(canvas, stopping_criteria=[ends_with(15)], block_length=block_length)
        assert sequences.tolist() == [[11, 9, 13, 9, 15, 0]]

    def test_no_gap_is_left_when_time_is_up(self):
        canvas = torch.tensor([[MASK, 9, MASK, 9, MASK, MASK]])
        sequences = self.model.infill(canvas, max_time=0.0, block_length=1)
        assert sequences.tolist() == [[11, 9, 13, 9, 0, 0]]
        # the block with the last gap goes on
        assert self.model.infill(canvas, max_time=0.0, block_length=5).tolist() == [[11, 9, 13, 9, 15, 0]]
        assert self.model.infill(canvas[:, :4], max_time=0.0, block_length=1).tolist() == [[11, 9, 13, 9]]

    def test_padding_on_the_right_is_no_text(self):
        canvas = torch.tensor([[MASK, 9, MASK, MASK, 0]])
        mask = torch.tensor([[1, 1, 1, 1, 0]])
        sequences = self.model.infill(canvas, attention_mask=mask, stopping_criteria=[ends_with(13)])
        assert sequences.tolist() == [[11, 9, 13, 0, 0]]


@pytest.mark.parametrize(
    "clock", [{"max_time": 0.0}, {"stopping_criteria": [MaxTimeCriteria(0.0)]}], ids=["own", "given"]
)
def test_a_row_out_of_time_keeps_what_it_has(clock):
    model = ScriptedModel.writing([11, 12, 13, 14, EOS, 16])
    sequences = model.generate(PROMPT, max_new_tokens=6, block_length=4, **clock)
    assert sequences.tolist() == [[1, 2, 11, 12, 13, 14]]
    assert len(model.calls) == 4
    # a stop inside counts all the same
    clock = {name: [*value, ends_with(12)] if name == "stopping_criteria" else value for name, value in clock.items()}
    clock.setdefault("stopping_criteria", [ends_with(12)])
    assert model.generate(PROMPT, max_new_tokens=6, block_length=4, **clock).tolist() == [[1, 2, 11, 12]]


class TestTheLongestRowEndsTheBatch:
    def test_shorter_rows_are_filled(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 7] = 3.0
            for row, first in enumerate(canvas[:, 0].tolist()):
                logits[row, 1 + first :, EOS] = 9.0
            return logits

        prompts = torch.tensor([[1, 2], [4, 2], [3, 2]])
        output = ScriptedModel(script).generate(prompts, max_new_tokens=20, block_length=4, output_trace=True)
        assert output.sequences.tolist() == [
            [1, 2, EOS, 0, 0, 0],
            [4, 2, 7, 7, 7, EOS],
            [3, 2, 7, 7, EOS, 0],
        ]
        assert [trace.final for trace in output.trace] == [[1, 2, EOS], [4, 2, 7, 7, 7, EOS], [3, 2, 7, 7, EOS]]
        assert [len(trace.step_of) for trace in output.trace] == [3, 6, 5]
        assert [len(trace.confidence) for trace in output.trace] == [3, 6, 5]

    def test_the_published_sampler_returns_its_canvas(self):
        settings = {"max_new_tokens": 6, "steps": 6, "block_length": 6}
        for name, expected in (("llada", [11, EOS, 13, 14, 15, 16]), ("fast-dllm", [11, EOS])):
            model = ScriptedModel.writing([11, EOS, 13, 14, 15, 16])
            assert model.generate(PROMPT, preset(name, **settings, kv_cache=None))[0, 2:].tolist() == expected

    def test_infill_keeps_its_length(self):
        model = ScriptedModel.writing([11, EOS, 13, 14])
        canvas = torch.tensor([[1, 2, MASK, MASK, MASK, MASK]])
        assert model.infill(canvas).tolist() == [[1, 2, 11, EOS, 0, 0]]


class Recorder:
    """Keeps what is put."""

    def __init__(self):
        self.pieces, self.is_ended = [], False

    def put(self, value):
        assert not self.is_ended
        self.pieces.append(value)

    def end(self):
        self.is_ended = True

    @property
    def tokens(self):
        return torch.cat(self.pieces, dim=1)


RULES = {
    "quota": {},
    "drafts": {"threshold": 0.4, "max_denoising_steps": 4},
    "remask": {"threshold": 0.5, "remask_threshold": 0.6},
    "running": {"max_denoising_steps": 3, "running_confidence": True},
    "edit": {"threshold": 0.5, "editing_threshold": 0.5, "max_post_steps": 2},
    "wino": {"threshold": 0.3, "verify_threshold": 0.7},
    "whole": {"eos_early_stop": False},
    "dual": {"kv_cache": "dual", "threshold": 0.6},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "length": {"initial_length": 5, "length_step": 3, "length_threshold": 0.4, "length_window": 4},
    "valley": {"length_candidates": [5, 9, 13]},
    "expansion": {
        "threshold": 0.7,
        "initial_length": 5,
        "length_threshold": 0.0,
        "length_window": 6,
        "expand_threshold": 0.7,
        "expand_factor": 4,
    },
    "block-causal": {"threshold": 0.6, "kv_cache": "block"},
    "infill": {},
}
STOPS = {
    "eos": {},
    "stop": {"stopping_criteria": [ends_with(*range(0, 40, 4))]},
    "length": {"stopping_criteria": [MaxLengthCriteria(12)]},
    "time": {"max_time": 0.0},
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_put_is_the_sequence(rule, stop):
    settings = {"pad_token_id": 41, **RULES[rule], **STOPS[stop]}
    model = peaked_llada(0, num_hidden_layers=1)
    model.get_output_embeddings().weight.data[42] *= 1.8
    if rule == "block-causal":
        as_block_causal(model)
    for lengths in ((6,), (6, 3, 5)):
        prompts, attention_mask = batch_of(*lengths)
        for block_length in (4, 32):
            recorder = Recorder()
            arguments = {"block_length": block_length, "streamer": recorder, **settings}
            if rule == "infill":
                canvas = torch.cat([prompts, torch.full((len(lengths), 13), 40)], dim=1)
                canvas[:, 3:5] = 40
                attention_mask = torch.nn.functional.pad(
                    attention_mask, (0, canvas.shape[1] - attention_mask.shape[1]), value=1
                )
                sequences = model.infill(canvas, attention_mask=attention_mask, **arguments)
                assert sequences.shape == canvas.shape
            else:
                sequences = model.generate(prompts, attention_mask=attention_mask, max_new_tokens=13, **arguments)
            assert recorder.is_ended and len(recorder.pieces) > 1
            assert torch.equal(recorder.tokens, sequences)
