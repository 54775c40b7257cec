"""Streamers and traces: what listens to the deltas."""

import json

import pytest
import torch
from golden import load_golden
from scripted_model import EOS, MASK, ScriptedModel
from transformers import TextDiffusionStreamer, TextIteratorStreamer, TextStreamer

from llada import LLaDAModelLM
from llada.generation import Trace


class Listener:
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(("put", value.tolist()))

    def put_draft(self, value):
        self.heard.append(("draft", value.tolist()))

    def end(self):
        self.heard.append(("end",))


PROMPT = torch.tensor([[1, 2]])


class TestStreaming:
    def test_settled_tokens_once_and_drafts_in_between(self):
        model = ScriptedModel.writing([11, 12, 13, 14], confidence=[2.0, 1.0, 3.0, 2.5])
        listener = Listener()
        model.generate(PROMPT, max_new_tokens=4, streamer=listener)
        assert listener.heard == [
            ("put", [[1, 2]]),
            ("draft", [[MASK, MASK, 13, MASK]]),
            ("draft", [[MASK, MASK, 13, 14]]),
            ("put", [[11]]),
            ("draft", [[MASK, 13, 14]]),
            ("put", [[12, 13, 14]]),
            ("end",),
        ]

    def test_nothing_after_the_end_of_text(self):
        model = ScriptedModel.writing([11, EOS, 13, 14], confidence=[9.0, 8.0, 1.0, 1.0])
        listener = Listener()
        sequences = model.generate(PROMPT, max_new_tokens=4, streamer=listener)
        put = [token for kind, *value in listener.heard if kind == "put" for token in value[0][0]]
        assert put == [1, 2, 11, EOS]
        assert sequences.tolist() == [[1, 2, 11, EOS]]
        assert listener.heard[-1] == ("end",)

    def test_a_streamer_without_drafts(self):
        class Plain(Listener):
            put_draft = property()

        listener = Plain()
        ScriptedModel.writing([11, 12]).generate(PROMPT, max_new_tokens=2, streamer=listener)
        assert [kind for kind, *_ in listener.heard] == ["put", "put", "put", "end"]

    def test_what_is_put_is_the_sequence(self):
        model = LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()
        listener = Listener()
        sequences = model.generate(PROMPT, max_new_tokens=24, block_length=8, steps=9, streamer=listener)
        put = [token for kind, *value in listener.heard if kind == "put" for token in value[0][0]]
        assert put == sequences[0].tolist()

    def test_infill_streams_from_the_first_gap(self):
        listener = Listener()
        canvas = torch.tensor([[5, MASK, 6]])
        ScriptedModel.writing([11], prompt_length=1).infill(canvas, streamer=listener)
        assert listener.heard == [("put", [[5]]), ("put", [[11, 6]]), ("end",)]

    def test_streamers_of_transformers(self, tiny_tokenizer, capsys):
        model = LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()
        prompt = tiny_tokenizer("hello", return_tensors="pt").input_ids
        expected = tiny_tokenizer.decode(model.generate(prompt, max_new_tokens=8)[0, 5:])
        model.generate(prompt, max_new_tokens=8, streamer=TextStreamer(tiny_tokenizer, skip_prompt=True))
        assert capsys.readouterr().out.replace("\n", "") == expected.replace("\n", "")
        model.generate(prompt, max_new_tokens=8, streamer=TextDiffusionStreamer(tiny_tokenizer))
        assert "<|mdm_mask|>" in capsys.readouterr().out
        streamer = TextIteratorStreamer(tiny_tokenizer, skip_prompt=True)
        model.generate(prompt, max_new_tokens=8, streamer=streamer)
        assert "".join(streamer) == expected
        with pytest.raises(ValueError, match="batch size 1"):
            model.generate(prompt.expand(2, -1), max_new_tokens=4, streamer=TextStreamer(tiny_tokenizer))

    @pytest.mark.parametrize(
        "mistake", [{"max_new_tokens": 0}, {"logits_processor": [lambda ids, scores: scores * torch.nan]}]
    )
    def test_an_error_ends_the_stream(self, mistake):
        listener = Listener()
        with pytest.raises(ValueError):
            ScriptedModel.writing([11, 12]).generate(PROMPT, streamer=listener, **{"max_new_tokens": 2, **mistake})
        assert listener.heard[-1] == ("end",)
        assert listener.heard.count(("end",)) == 1

    def test_an_error_ends_the_stream_of_an_infill(self):
        listener = Listener()
        with pytest.raises(ValueError, match="no mask token"):
            ScriptedModel.writing([11]).infill(PROMPT, streamer=listener)
        assert listener.heard == [("end",)]

    def test_an_unfinished_stream_can_be_read_to_its_end(self, tiny_tokenizer):
        model = LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()
        streamer = TextIteratorStreamer(tiny_tokenizer, timeout=1)
        prompt = tiny_tokenizer("hello", return_tensors="pt").input_ids
        with pytest.raises(ValueError, match="temperature"):
            model.generate(prompt, max_new_tokens=8, temperature=torch.nan, streamer=streamer)
        assert "".join(streamer) == ""


class TestTrace:
    def trace(self):
        model = ScriptedModel.writing([11, 12, 13], confidence=[1.0, 3.0, 2.0])
        prompt, attention_mask = torch.tensor([[0, 2], [3, 4]]), torch.tensor([[0, 1], [1, 1]])
        output = model.generate(prompt, attention_mask=attention_mask, max_new_tokens=3, output_trace=True)
        return output

    def test_tells_when_and_how_sure_without_padding(self):
        output = self.trace()
        first, second = output.trace
        assert first.start == [2, MASK, MASK, MASK]
        assert first.final == [2, 11, 12, 13]
        assert second.final == [3, 4, 11, 12, 13]
        assert first.step_of == [-1, 2, 0, 1]
        assert second.step_of == [-1, -1, 2, 0, 1]
        assert first.confidence[0] == 1.0
        assert first.confidence[2] > first.confidence[3] > first.confidence[1]
        assert first.settings["max_new_tokens"] == 3

    def test_frames_replay_the_canvas(self):
        frames = list(self.trace().trace[0].frames())
        assert frames == [[2, MASK, MASK, MASK], [2, MASK, 12, MASK], [2, MASK, 12, 13], [2, 11, 12, 13]]

    def test_round_trip(self, tmp_path):
        trace = self.trace().trace[1]
        trace.save(tmp_path / "trace.json")
        assert Trace.load(tmp_path / "trace.json") == trace
        json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))

    def test_only_on_request(self):
        model = ScriptedModel.writing([11])
        assert model.generate(PROMPT, max_new_tokens=1, return_dict_in_generate=True).trace is None
        assert isinstance(model.generate(PROMPT, max_new_tokens=1), torch.Tensor)
