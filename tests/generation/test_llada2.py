"""LLaDA2.0 and 2.1: blocks, thresholds, token editing and the exact cache."""

import gc
import json

import pytest
import torch
from golden import FIXTURES, load_golden
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from llada import LLaDA2MoeModelLM
from llada.generation import preset
from llada.generation.forwards.canvas_cache import CanvasCache


CASES = json.loads((FIXTURES / "llada2_moe" / "cases.json").read_text(encoding="utf-8"))
TOKENS = {"eos_token_id": 299, "mask_token_id": 300}


@pytest.fixture(scope="module")
def golden():
    return load_golden("llada2_moe")


@pytest.fixture(scope="module")
def model(golden):
    return LLaDA2MoeModelLM.from_pretrained(golden.folder).eval()


@pytest.mark.parametrize("kv_cache", ["block", None])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_stored_answers(model, golden, case, kv_cache):
    settings = {"max_new_tokens": case["gen_length"], "block_length": case["block_length"], **TOKENS}
    if case["reference"] == "llada2.0":
        config = preset("llada2", max_denoising_steps=case["steps_per_block"], threshold=case["threshold"], **settings)
    else:
        config = preset(
            "llada2.1-quality",
            threshold=case["threshold"],
            editing_threshold=case["editing_threshold"],
            max_post_steps=case["max_post_steps"],
            **settings,
        )
    prompt = golden.expected[f"generate.{case['name']}.prompt"]
    expected = golden.expected[f"generate.{case['name']}.new_tokens"]
    output = model.generate(prompt, config, kv_cache=kv_cache, return_dict_in_generate=True)
    new_tokens = output.sequences[:, prompt.shape[1] :]
    assert torch.equal(new_tokens[:, : expected.shape[1]], expected)
    # nothing after the end of text
    assert (new_tokens[:, expected.shape[1] :] == 299).all()
    # not even a pass to store a finished block
    assert output.num_forwards <= case["forwards"]


def ragged_batch(lengths=(13, 4, 8)):
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(0, 290, (1, length), generator=generator) for length in lengths]
    width = max(lengths)
    batch, attention_mask = torch.full((len(rows), width), 299), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, width - row.shape[1] :], attention_mask[index, width - row.shape[1] :] = row, 1
    return rows, batch, attention_mask


@pytest.mark.parametrize("kv_cache", ["block", None])
@pytest.mark.parametrize("name", ["llada2", "llada2.1-quality", "llada2.1-speed"])
def test_a_row_does_not_depend_on_its_batch(model, name, kv_cache):
    # texts of different length have their blocks at different places of the batch
    rows, batch, attention_mask = ragged_batch()
    config = preset(name, max_new_tokens=21, block_length=8, threshold=0.2, eos_early_stop=False, **TOKENS)
    config.max_denoising_steps = 8 if name == "llada2" else None
    together = model.generate(batch, config, attention_mask=attention_mask, kv_cache=kv_cache)
    assert together.shape == (3, 13 + 21)
    for index, row in enumerate(rows):
        alone = model.generate(row, config, kv_cache=kv_cache)
        assert torch.equal(together[index, 13:], alone[0, row.shape[1] :])
        assert torch.equal(together[index, : 13 - row.shape[1]], batch[index, : 13 - row.shape[1]])


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
def test_cached_logits_are_those_without_a_cache(model, cfg_scale):
    prompt = torch.randint(0, 290, (2, 11))
    settings = {"max_new_tokens": 24, "block_length": 8, "threshold": 0.3, "cfg_scale": cfg_scale, **TOKENS}
    traces = {}
    for kv_cache in ("block", None):
        output = model.generate(prompt, kv_cache=kv_cache, output_trace=True, **settings)
        traces[kv_cache] = output.trace
    for cached, plain in zip(traces["block"], traces[None], strict=True):
        assert cached.final == plain.final
        assert cached.step_of == plain.step_of
        assert cached.confidence == pytest.approx(plain.confidence, abs=1e-5)


def test_the_cache_is_on_by_default_and_computes_the_block_only(model):
    lengths = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompt = torch.randint(0, 290, (1, 11))
    settings = {"max_new_tokens": 13, "block_length": 8, "max_denoising_steps": 2, "eos_early_stop": False, **TOKENS}
    model.generate(prompt, threshold=1.0, **settings)
    # the prompt with the first block, then the block; each next block once with the one before it
    assert lengths == [16, 8, 16, 8]
    lengths.clear()
    model.generate(prompt, threshold=1.0, kv_cache=None, **settings)
    assert lengths == [16, 16, 24, 24]
    hook.remove()


class TestContinuing:
    settings = {"max_new_tokens": 12, "block_length": 8, "threshold": 0.5, "eos_early_stop": False, **TOKENS}

    def count(self, model, call):
        lengths = []
        hook = model.model.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        output = call()
        hook.remove()
        return output, lengths

    @pytest.mark.parametrize("rows", [1, 2])
    def test_a_conversation_goes_on_from_the_returned_cache(self, model, rows):
        prompt = torch.randint(0, 290, (rows, 17))
        first = model.generate(prompt, return_dict_in_generate=True, **self.settings)
        second = torch.cat([first.sequences, torch.randint(0, 290, (rows, 6))], dim=1)
        fresh, computed = self.count(model, lambda: model.generate(second, **self.settings))
        continued, continued_computed = self.count(
            model, lambda: model.generate(second, cache=first.cache, **self.settings)
        )
        assert torch.equal(continued, fresh)
        # 29 tokens, of which three blocks are finished
        assert computed[0] - continued_computed[0] == 24
        assert computed[1:] == continued_computed[1:]

    def test_a_text_that_was_changed_is_computed_from_there(self, model):
        prompt = torch.randint(0, 290, (1, 17))
        first = model.generate(prompt, return_dict_in_generate=True, **self.settings)
        second = first.sequences.clone()
        second[0, 9] = (second[0, 9] + 1) % 290
        fresh, computed = self.count(model, lambda: model.generate(second, **self.settings))
        continued, continued_computed = self.count(
            model, lambda: model.generate(second, cache=first.cache, **self.settings)
        )
        assert torch.equal(continued, fresh)
        assert computed[0] - continued_computed[0] == 8

    @pytest.mark.parametrize("guidance", [0.0, 0.5])
    @pytest.mark.parametrize("paddings", [(0, 0, 0), (0, 3, 6)])
    def test_rows_that_ended_early_come_back(self, model, paddings, guidance):
        """They have left the batch, and the cache of the batch holds as much of them as was final."""
        torch.manual_seed(0)
        settings = self.settings | {"max_new_tokens": 32, "eos_early_stop": True, "pad_token_id": 7}
        settings |= {"cfg_scale": guidance, "return_dict_in_generate": True}
        ends = [9, 22, 99]

        class Ends(LogitsProcessor):
            def __call__(self, input_ids, scores):
                # asked for one position, of one row or of several as long
                for text, row in zip(input_ids, scores, strict=True):
                    number = int(text[0])
                    row[299] = 1e3 if len(text) == ends[number] + 17 - paddings[number] else -torch.inf
                return scores

        prompt, mask = torch.randint(0, 290, (3, 17)), torch.ones(3, 17, dtype=torch.long)
        for row, padding in enumerate(paddings):
            prompt[row, padding], mask[row, :padding] = row, 0
        processors = LogitsProcessorList([Ends()])
        first = model.generate(prompt, attention_mask=mask, logits_processor=processors, **settings)
        assert [int((row == 299).nonzero()[0]) for row in first.sequences[:2, 17:]] == ends[:2]
        second = torch.cat([first.sequences, torch.randint(0, 290, (3, 6))], dim=1)
        second_mask = torch.nn.functional.pad(mask, (0, second.shape[1] - 17), value=1)
        fresh, computed = self.count(model, lambda: model.generate(second, attention_mask=second_mask, **settings))
        continued, fewer = self.count(
            model, lambda: model.generate(second, attention_mask=second_mask, cache=first.cache, **settings)
        )
        assert torch.equal(continued.sequences, fresh.sequences)
        assert fewer[0] < computed[0] or guidance
        # and once more, from a cache that began with a cache
        third = torch.cat([continued.sequences, torch.randint(0, 290, (3, 6))], dim=1)
        third_mask = torch.nn.functional.pad(mask, (0, third.shape[1] - 17), value=1)
        more = {"attention_mask": third_mask, **settings}
        assert torch.equal(
            model.generate(third, cache=continued.cache, **more).sequences, model.generate(third, **more).sequences
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"block_length": 4}, "made with `block_length` 8, and this call has 4"),
            ({"cfg_scale": 0.5}, r"made with `cfg_scale` 0\.0, and this call has 0\.5"),
            ({"mask_token_id": 301}, "made with `mask_token_id` 300, and this call has 301"),
        ],
        ids=str,
    )
    def test_what_a_cache_was_made_with_is_compared(self, model, change, message):
        first = model.generate(torch.randint(0, 290, (1, 17)), return_dict_in_generate=True, **self.settings)
        with pytest.raises(ValueError, match=message):
            model.generate(first.sequences, cache=first.cache, **self.settings | change)

    def test_another_model_or_dtype_is_refused(self, golden):
        models = [LLaDA2MoeModelLM.from_pretrained(golden.folder).eval() for _ in range(2)]
        prompt = torch.randint(0, 290, (1, 17))
        first = models[0].generate(prompt, return_dict_in_generate=True, **self.settings)
        with pytest.raises(ValueError, match="`model` LLaDA2MoeModelLM '.*' at 0x.* this call has LLaDA2MoeModelLM"):
            models[1].generate(first.sequences, cache=first.cache, **self.settings)
        with pytest.raises(ValueError, match=r"`dtype` torch\.float32, and this call has torch\.float64"):
            models[0].double().generate(first.sequences, cache=first.cache, **self.settings)
        other = models[1].generate(prompt, return_dict_in_generate=True, **self.settings)
        del models[1]
        gc.collect()
        with pytest.raises(ValueError, match="`model` one that is gone"):
            models[0].float().generate(prompt, cache=other.cache, **self.settings)

    @pytest.mark.parametrize("other", [DynamicCache(), CanvasCache(torch.arange(4)[None]), {}])
    def test_what_no_call_returned_is_refused(self, model, other):
        with pytest.raises(ValueError, match="that no call of `generate` returned; pass `output.cache`"):
            model.generate(torch.tensor([[1, 2]]), cache=other, **self.settings)

    def test_a_change_inside_a_block_of_a_padded_row(self, model):
        """Blocks begin where the text of a row does: a token changes keys and values before it."""
        prompt, mask = torch.randint(0, 290, (2, 17)), torch.ones(2, 17, dtype=torch.long)
        mask[1, :3] = 0
        first = model.generate(prompt, attention_mask=mask, return_dict_in_generate=True, **self.settings)
        second = first.sequences.clone()
        # the second row has blocks at 3, 11 and 19
        second[1, 17] = (second[1, 17] + 1) % 290
        mask = torch.nn.functional.pad(mask, (0, 12), value=1)
        fresh, continued = (
            model.generate(second, attention_mask=mask, cache=cache, output_trace=True, **self.settings)
            for cache in (None, first.cache)
        )
        assert torch.equal(continued.sequences, fresh.sequences)
        for left, right in zip(fresh.trace, continued.trace, strict=True):
            assert left.confidence == pytest.approx(right.confidence, abs=1e-4)

    def test_infill_goes_on_too(self, model):
        prompt = torch.randint(0, 290, (1, 17))
        first = model.generate(prompt, return_dict_in_generate=True, **self.settings)
        canvas = torch.cat([first.sequences, torch.full((1, 7), 300)], dim=1)
        fresh, computed = self.count(model, lambda: model.infill(canvas, **self.settings))
        continued, fewer = self.count(model, lambda: model.infill(canvas, cache=first.cache, **self.settings))
        assert torch.equal(continued, fresh) and fewer[0] < computed[0]

    def test_another_batch_is_refused(self, model):
        prompt = torch.randint(0, 290, (2, 17))
        first = model.generate(prompt, return_dict_in_generate=True, **self.settings)
        with pytest.raises(ValueError, match="holds 2 rows and the batch 1"):
            model.generate(first.sequences[:1], cache=first.cache, **self.settings)
        mask = torch.ones_like(first.sequences)
        mask[0, 0] = 0
        with pytest.raises(ValueError, match="padded differently"):
            model.generate(first.sequences, attention_mask=mask, cache=first.cache, **self.settings)

    def test_the_older_name_of_the_cache_works(self, model):
        prompt = torch.randint(0, 290, (1, 17))
        first = model.generate(prompt, return_dict_in_generate=True, **self.settings)
        assert first.past_key_values is first.cache is first["cache"]
        fresh, computed = self.count(model, lambda: model.generate(first.sequences, **self.settings))
        continued, continued_computed = self.count(
            model, lambda: model.generate(first.sequences, past_key_values=first.past_key_values, **self.settings)
        )
        assert torch.equal(continued, fresh)
        assert computed[0] - continued_computed[0] == 24
        with pytest.raises(ValueError, match="`past_key_values` is its older name"):
            model.generate(first.sequences, cache=first.cache, past_key_values=first.cache, **self.settings)


class TestEditing:
    def test_prompt_tokens_are_never_edited(self, model):
        prompt = torch.randint(0, 290, (1, 13))
        config = preset("llada2.1-speed", max_new_tokens=16, block_length=8, **TOKENS)
        output = model.generate(prompt, config, output_trace=True)
        assert torch.equal(output.sequences[:, :13], prompt)
        changed = [position for event in output.trace[0].events for position in event.positions]
        assert min(changed) == 13
        # some position was written more than once
        assert len(changed) > len(set(changed))

    @pytest.mark.parametrize("max_post_steps", [0, 3])
    def test_it_ends(self, model, max_post_steps):
        prompt = torch.randint(0, 290, (1, 8))
        output = model.generate(
            prompt,
            max_new_tokens=8,
            block_length=8,
            threshold=0.1,
            editing_threshold=0.0,
            max_post_steps=max_post_steps,
            return_dict_in_generate=True,
            **TOKENS,
        )
        assert output.num_forwards <= 8 + max_post_steps
        assert not (output.sequences == 300).any()

    def test_off_by_none(self, model):
        prompt = torch.randint(0, 290, (1, 8))
        settings = {"max_new_tokens": 16, "block_length": 8, "threshold": 0.3, **TOKENS}
        plain = model.generate(prompt, **settings)
        assert torch.equal(model.generate(prompt, editing_threshold=None, **settings), plain)
        # what no proposal can exceed
        assert torch.equal(model.generate(prompt, editing_threshold=1.0, **settings), plain)


class TestInfill:
    def test_text_in_a_later_block_cannot_be_seen(self, model):
        canvas = torch.tensor([[1, 2, 300, 4, 5, 6, 7, 8]])
        with pytest.raises(ValueError, match="does not see what follows a block of 4 positions"):
            model.infill(canvas, block_length=4, **TOKENS)
        filled = model.infill(canvas, block_length=8, **TOKENS)
        assert torch.equal(filled[canvas != 300], canvas[canvas != 300])
        assert filled[0, 2] != 300

    def test_a_tail_is_what_generate_fills(self, model):
        prompt = torch.randint(0, 290, (1, 9))
        canvas = torch.cat([prompt, torch.full((1, 7), 300)], dim=1)
        settings = {"block_length": 8, "threshold": 0.4, **TOKENS}
        assert torch.equal(model.infill(canvas, **settings), model.generate(prompt, max_new_tokens=7, **settings))


def test_refusals(model):
    with pytest.raises(ValueError, match='block-causal attention; use "block", which is exact'):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=8, kv_cache="dual", **TOKENS)
    with pytest.raises(ValueError, match="continues a block-causal cache"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=8, kv_cache=None, cache=object(), **TOKENS)
