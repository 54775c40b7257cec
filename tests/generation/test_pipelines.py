"""The stock pipelines of transformers on our checkpoints, with our defaults."""

import pytest
import torch
from golden import load_golden
from tiny_tokenizer import build_tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    AutoModelForMaskedLM.from_pretrained(load_golden("llada").folder).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator(checkpoint):
    return pipeline("text-generation", model=str(checkpoint))


def greedy(checkpoint, text, **settings):
    tokenizer = build_tiny_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    inputs = tokenizer(text, return_tensors="pt")
    tokens = model.generate(**inputs, **settings)[0, inputs.input_ids.shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True)


class TestTextGeneration:
    def test_decodes_greedily_without_being_told(self, generator, checkpoint):
        expected = greedy(checkpoint, "hello")
        assert generator("hello")[0]["generated_text"] == "hello" + expected
        assert generator("hello", return_full_text=False)[0]["generated_text"] == expected

    def test_settings_reach_generate(self, generator, checkpoint):
        settings = {"max_new_tokens": 12, "steps": 4, "block_length": 6, "cfg_scale": 0.5}
        result = generator("hello", return_full_text=False, **settings)
        assert result[0]["generated_text"] == greedy(checkpoint, "hello", **settings)

    def test_a_batch_equals_single_prompts(self, generator):
        texts = ["a", "a longer prompt", "middle"]
        together = generator(texts, batch_size=3, max_new_tokens=10)
        assert together == [generator(text, max_new_tokens=10) for text in texts]

    def test_chats(self, generator):
        chat = [{"role": "user", "content": "hi"}]
        reply = generator(chat, max_new_tokens=6)[0]["generated_text"]
        assert reply[0] == chat[0]
        assert reply[1]["role"] == "assistant"
        # the dialogue goes on
        chat = [*reply, {"role": "user", "content": "and?"}]
        assert len(generator(chat, max_new_tokens=6)[0]["generated_text"]) == 4

    def test_several_answers(self, generator):
        results = generator("a", do_sample=True, num_return_sequences=3, max_new_tokens=16)
        assert len({result["generated_text"] for result in results}) == 3

    def test_stop_sequences(self, generator):
        text = generator("hello", return_full_text=False, max_new_tokens=32)[0]["generated_text"]
        stop = text[6]
        stopped = generator("hello", return_full_text=False, max_new_tokens=32, stop_sequence=stop)
        assert stopped[0]["generated_text"] == text[: text.index(stop) + 1]

    def test_errors_come_through(self, generator):
        with pytest.raises(ValueError, match="write `block_length`"):
            generator("a", block_lenght=4)
        with pytest.raises(ValueError, match="at least one token"):
            generator("")
        with pytest.raises(ValueError, match="more than the 512"):
            generator("a" * 600)


class TestFillMask:
    def test_one_and_several_masks(self, checkpoint):
        fill = pipeline("fill-mask", model=str(checkpoint))
        model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
        tokenizer = build_tiny_tokenizer()
        text = "a<|mdm_mask|>c"
        with torch.no_grad():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits[0, 1].softmax(-1)
        best = fill(text)[0]
        assert best["token"] == int(probabilities.argmax())
        assert best["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert len(fill("a<|mdm_mask|>c<|mdm_mask|>")) == 2
