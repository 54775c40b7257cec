"""What `generate` promises, whatever the model says."""

import pytest
import torch
from scripted_model import EOS, EOT, MASK, ScriptedModel
from transformers import GenerationConfig, LogitsProcessor, MaxLengthCriteria, StoppingCriteriaList

from llada import DiffusionGenerationConfig, LLaDAModelLM
from llada.generation import preset


PROMPT = torch.tensor([[1, 2]])


@pytest.fixture(scope="module")
def model(request):
    from golden import load_golden

    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


def padded_batch():
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 290, (1, length), generator=generator) for length in (9, 4, 6)]
    batch, attention_mask = torch.full((3, 9), 299), torch.zeros(3, 9, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, 9 - row.shape[1] :] = row
        attention_mask[index, 9 - row.shape[1] :] = 1
    return rows, batch, attention_mask


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps": 7},
        {"block_length": 5, "max_denoising_steps": 3},
        {"cfg_scale": 0.8},
        {"suppress_eos": "confidence"},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 12},
    ],
    ids=str,
)
def test_a_row_does_not_depend_on_its_batch(model, settings):
    rows, batch, attention_mask = padded_batch()
    settings = {"max_new_tokens": 20, "block_length": 10, "return_dict_in_generate": True, **settings}
    together = model.generate(batch, attention_mask=attention_mask, **settings)
    for index, row in enumerate(rows):
        alone = model.generate(row, **settings)
        answer, rest = alone.sequences[0, row.shape[1] :], together.sequences[index, 9:]
        assert torch.equal(rest[: len(answer)], answer)
        assert set(rest[len(answer) :].tolist()) <= {299}
        assert together.tokens_per_forward[index] == alone.tokens_per_forward[0]


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("block_length", [1, 3, 8, 20, None])
@pytest.mark.parametrize("steps", [None, 20, 23, 40])
def test_fills_every_mask_within_its_budget(model, steps, block_length, do_sample):
    rows, batch, attention_mask = padded_batch()
    output = model.generate(
        batch,
        attention_mask=attention_mask,
        max_new_tokens=20,
        block_length=block_length,
        steps=steps,
        do_sample=do_sample,
        return_dict_in_generate=True,
        output_trace=True,
        eos_early_stop=False,
    )
    assert torch.equal(output.sequences[:, :9], batch)
    assert not (output.sequences[:, 9:] == 300).any()
    # a step commits something in every row, so there are never more than tokens or steps
    assert output.num_forwards <= 20
    for trace in output.trace:
        assert sorted(position for event in trace.events for position in event.positions) == list(
            range(len(trace.final) - 20, len(trace.final))
        )
        assert all(event.positions for event in trace.events)


def test_steps_are_shared_out_over_the_blocks(model):
    output = model.generate(
        PROMPT, max_new_tokens=10, block_length=4, steps=7, return_dict_in_generate=True, output_trace=True
    )
    committed = [(event.block, len(event.positions)) for event in output.trace[0].events]
    # 3, 2 and 2 steps for blocks of 4, 4 and 2 tokens
    assert committed == [(0, 2), (0, 1), (0, 1), (1, 2), (1, 2), (2, 1), (2, 1)]
    assert output.num_forwards == 7
    assert output.tokens_per_forward.tolist() == [pytest.approx(10 / 7)]


def test_blocks_are_finished_in_order(model):
    output = model.generate(PROMPT, max_new_tokens=12, block_length=4, output_trace=True)
    blocks = [{(position - 2) // 4 for position in event.positions} for event in output.trace[0].events]
    assert [block for step in blocks for block in step] == [0] * 4 + [1] * 4 + [2] * 4


def test_the_surest_come_first():
    model = ScriptedModel.writing([11, 12, 13, 14], confidence=[2.0, 4.0, 1.0, 3.0])
    output = model.generate(PROMPT, max_new_tokens=4, output_trace=True)
    assert [event.positions for event in output.trace[0].events] == [[3], [5], [2], [4]]
    probability = torch.tensor([4.0] + [0.0] * 31).softmax(0)[0].item()
    # the mask token keeps its share
    assert output.trace[0].events[0].confidence == [pytest.approx(probability, abs=1e-6)]
    assert output.trace[0].confidence[:2] == [1.0, 1.0]
    assert output.trace[0].step_of == [-1, -1, 2, 0, 3, 1]


def test_random_remasking_is_random_in_order_only():
    model = ScriptedModel.writing([11, 12, 13, 14], confidence=[2.0, 4.0, 1.0, 3.0])
    orders = set()
    for _ in range(20):
        output = model.generate(PROMPT, max_new_tokens=4, remasking="random", output_trace=True)
        assert output.sequences.tolist() == [[1, 2, 11, 12, 13, 14]]
        orders.add(tuple(event.positions[0] for event in output.trace[0].events))
    assert len(orders) > 5


class TestEndOfText:
    def test_stops_where_nothing_undecided_comes_before(self):
        model = ScriptedModel.writing([11, 12, EOS, 14, 15, 16], confidence=[5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
        output = model.generate(PROMPT, max_new_tokens=6, return_dict_in_generate=True)
        assert output.sequences.tolist() == [[1, 2, 11, 12, EOS]]
        assert output.num_forwards == 3
        assert output.tokens_per_forward.tolist() == [1.0]

    def test_waits_for_what_comes_before(self):
        model = ScriptedModel.writing([11, 12, EOS, 14], confidence=[1.0, 2.0, 9.0, 3.0])
        output = model.generate(PROMPT, max_new_tokens=4, return_dict_in_generate=True)
        assert output.sequences.tolist() == [[1, 2, 11, 12, EOS]]
        assert output.num_forwards == 4
        # what was filled in after the end does not count
        assert output.tokens_per_forward.tolist() == [0.75]

    def test_finished_rows_leave_the_batch(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 7] = 3.0
            logits[canvas[:, 0] == 1, 2, EOS] = 9.0
            return logits

        model = ScriptedModel(script)
        output = model.generate(torch.tensor([[1, 2], [3, 2]]), max_new_tokens=3, return_dict_in_generate=True)
        assert output.sequences.tolist() == [[1, 2, EOS, 0, 0], [3, 2, 7, 7, 7]]
        assert model.calls == [(2, 6), (1, 2), (1, 1)]
        assert output.num_forwards == 3
        assert output.tokens_per_forward.tolist() == [1.0, 1.0]

    def test_blocks_after_the_end_are_not_computed(self):
        model = ScriptedModel.writing([11, EOS, 13, 14, 15, 16])
        output = model.generate(PROMPT, max_new_tokens=6, block_length=2, return_dict_in_generate=True)
        assert output.num_forwards == 2
        assert output.sequences.tolist() == [[1, 2, 11, EOS]]

    def test_any_of_several_ids_ends_the_text(self):
        model = ScriptedModel.writing([11, EOT, 13])
        sequences = model.generate(PROMPT, max_new_tokens=3, eos_token_id=[EOS, EOT])
        assert sequences.tolist() == [[1, 2, 11, EOT]]

    def test_can_be_switched_off(self):
        model = ScriptedModel.writing([11, EOS, 13])
        expected = [[1, 2, 11, EOS, 13]]
        assert model.generate(PROMPT, max_new_tokens=3, eos_early_stop=False).tolist() == expected
        assert model.generate(PROMPT, max_new_tokens=3, eos_token_id=None).tolist() == expected

    def test_without_a_padding_token_the_end_is_repeated(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 7] = 3.0
            logits[canvas[:, 0] == 1, 2, EOS] = 9.0
            return logits

        sequences = ScriptedModel(script).generate(torch.tensor([[1, 2], [3, 2]]), max_new_tokens=3, pad_token_id=None)
        assert sequences.tolist() == [[1, 2, EOS, EOS, EOS], [3, 2, 7, 7, 7]]

    def test_an_end_of_text_in_the_prompt_does_not_stop(self):
        model = ScriptedModel.writing([11, 12, 13])
        sequences = model.generate(torch.tensor([[1, EOS]]), max_new_tokens=3)
        assert sequences.tolist() == [[1, EOS, 11, 12, 13]]

    @pytest.mark.parametrize("do_sample", [False, True])
    def test_suppressed_logits_never_propose_it(self, do_sample):
        model = ScriptedModel.writing([EOS, EOT, EOS], confidence=[30.0] * 3)
        sequences = model.generate(
            PROMPT, max_new_tokens=3, suppress_eos="logits", eos_token_id=[EOS, EOT], do_sample=do_sample
        )
        assert not torch.isin(sequences, torch.tensor([EOS, EOT])).any()

    @pytest.mark.parametrize("remasking", ["low_confidence", "random"])
    @pytest.mark.parametrize("do_sample", [False, True])
    def test_suppressed_confidence_commits_it_last(self, do_sample, remasking):
        model = ScriptedModel.writing([11, EOS, 13, EOT], confidence=[20.0, 40.0, 20.0, 30.0])
        output = model.generate(
            PROMPT,
            max_new_tokens=4,
            suppress_eos="confidence",
            eos_token_id=[EOS, EOT],
            do_sample=do_sample,
            remasking=remasking,
            eos_early_stop=False,
            output_trace=True,
        )
        assert output.sequences.tolist() == [[1, 2, 11, EOS, 13, EOT]]
        assert {event.positions[0] for event in output.trace[0].events[:2]} == {2, 4}


class TestSampling:
    def test_draws_from_the_tempered_distribution(self):
        weights = torch.tensor([0.5, 0.3, 0.2]).log()

        def script(canvas):
            logits = torch.full((*canvas.shape, 32), -torch.inf)
            logits[..., 10:13] = weights
            return logits

        model = ScriptedModel(script)
        prompts = PROMPT.expand(4000, 2)
        for temperature in (1.0, 0.5):
            tokens = model.generate(prompts, max_new_tokens=1, do_sample=True, temperature=temperature)[:, 2]
            shares = torch.bincount(tokens - 10, minlength=3) / 4000
            assert torch.allclose(shares, (weights / temperature).softmax(0), atol=0.03)

    def test_temperature_alone_means_sampling_and_zero_means_greedy(self):
        model = ScriptedModel(lambda canvas: torch.zeros(*canvas.shape, 32))
        drawn = {tuple(model.generate(PROMPT, max_new_tokens=4, temperature=1.0).tolist()[0]) for _ in range(5)}
        assert len(drawn) > 1
        model = ScriptedModel.writing([11, 12])
        assert model.generate(PROMPT, max_new_tokens=2, temperature=0).tolist() == [[1, 2, 11, 12]]
        assert model.generate(PROMPT, max_new_tokens=2, temperature=0.0, do_sample=False)[0, 2] == 11

    def test_top_k_and_top_p_limit_the_draw_and_not_the_confidence(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 10], logits[..., 11] = 2.0, 1.9
            return logits

        model = ScriptedModel(script)
        settings = {"max_new_tokens": 8, "do_sample": True, "output_trace": True}
        for limit in ({"top_k": 2}, {"top_p": 0.2}, {"min_p": 0.5}):
            output = model.generate(PROMPT.expand(20, 2), **settings, **limit)
            assert set(output.sequences[:, 2:].flatten().tolist()) <= {10, 11}
            likeliest = torch.tensor([2.0, 1.9] + [0.0] * 30).softmax(0)[0].item()
            assert output.trace[0].events[0].confidence[0] <= likeliest + 1e-6

    def test_returns_several_sequences_per_prompt(self):
        model = ScriptedModel(lambda canvas: torch.zeros(*canvas.shape, 32))
        prompts = torch.tensor([[0, 2], [3, 4]])
        attention_mask = torch.tensor([[0, 1], [1, 1]])
        sequences = model.generate(
            prompts, attention_mask=attention_mask, max_new_tokens=6, do_sample=True, num_return_sequences=3
        )
        assert sequences.shape == (6, 8)
        assert torch.equal(sequences[:, :2], prompts.repeat_interleave(3, dim=0))
        assert len({tuple(row) for row in sequences.tolist()}) == 6

    def test_greedy_gives_one_sequence_only(self):
        with pytest.raises(ValueError, match="num_return_sequences"):
            ScriptedModel.writing([1]).generate(PROMPT, max_new_tokens=1, num_return_sequences=2)


class TestGuidance:
    def test_pushes_away_from_the_text_without_a_prompt(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            with_prompt = canvas[:, 0] == 1
            # token 8 is likely anyway, token 7 because of the prompt
            logits[..., 8] = 3.0
            logits[with_prompt, :, 7] = 2.0
            return logits

        model = ScriptedModel(script)
        assert model.generate(PROMPT, max_new_tokens=2)[0, 2] == 8
        assert model.calls == [(1, 2), (1, 1)]
        # 2 + w * (2 - 0) is more than 3 from w = 0.5 on
        assert model.generate(PROMPT, max_new_tokens=2, cfg_scale=0.4)[0, 2] == 8
        assert model.generate(PROMPT, max_new_tokens=2, cfg_scale=0.6)[0, 2] == 7
        assert model.calls[-2:] == [(2, 4), (2, 2)]

    def test_guidance_scale_is_one_more(self, model):
        settings = {"max_new_tokens": 8, "block_length": 8}
        guided = model.generate(PROMPT, cfg_scale=1.5, **settings)
        assert torch.equal(model.generate(PROMPT, guidance_scale=2.5, **settings), guided)
        assert not torch.equal(model.generate(PROMPT, **settings), guided)


class TestStopping:
    def test_stop_strings(self, model, tiny_tokenizer):
        prompt = tiny_tokenizer("ab", return_tensors="pt").input_ids
        text = tiny_tokenizer("xyz stop zyx").input_ids
        length = len(text)

        def script(canvas):
            logits = torch.zeros(*canvas.shape, 320)
            for offset, token in enumerate(text):
                logits[:, 2 + offset, token] = 9.0
            return logits

        scripted = ScriptedModel(script)
        scripted.config.vocab_size = 320
        for block_length in (4, length):
            sequences = scripted.generate(
                prompt,
                max_new_tokens=length,
                block_length=block_length,
                stop_strings=["stop", "never"],
                tokenizer=tiny_tokenizer,
                mask_token_id=300,
            )
            assert tiny_tokenizer.decode(sequences[0]) == "abxyz stop"

    def test_stop_strings_need_the_tokenizer(self):
        with pytest.raises(ValueError, match="pass `tokenizer=`"):
            ScriptedModel.writing([1]).generate(PROMPT, max_new_tokens=1, stop_strings=["a"])

    def test_custom_criteria_are_asked_at_every_settled_position(self):
        model = ScriptedModel.writing([11, 12, 13, 14])
        criteria = StoppingCriteriaList([MaxLengthCriteria(max_length=4)])
        sequences = model.generate(PROMPT, max_new_tokens=4, stopping_criteria=criteria)
        assert sequences.tolist() == [[1, 2, 11, 12]]

    def test_max_time(self):
        model = ScriptedModel.writing([11, 12, 13, 14])
        sequences = model.generate(PROMPT, max_new_tokens=4, block_length=2, max_time=0.0)
        # the first block is finished, then time is up
        assert sequences.tolist() == [[1, 2, 11, 12]]
        assert len(model.calls) == 2


class TestSettings:
    def test_the_stronger_source_wins(self):
        model = ScriptedModel.writing([11, 12, 13, 14])
        model.generation_config = DiffusionGenerationConfig(max_new_tokens=4, max_denoising_steps=2)
        assert model.generate(PROMPT).shape == (1, 6)
        assert len(model.calls) == 2
        model.generate(PROMPT, DiffusionGenerationConfig(max_new_tokens=3))
        assert len(model.calls) == 4
        # `steps` of a stronger source replaces `max_denoising_steps` of a weaker one
        assert model.generate(PROMPT, DiffusionGenerationConfig(steps=1)).shape == (1, 6)
        assert len(model.calls) == 5
        assert model.generate(PROMPT, DiffusionGenerationConfig(steps=1), max_new_tokens=2).shape == (1, 4)
        assert model.generate(PROMPT, max_length=5).shape == (1, 5)
        assert model.generation_config.max_new_tokens == 4

    def test_a_plain_generation_config_is_understood(self):
        model = ScriptedModel.writing([11, 12, 13])
        assert model.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=2)).shape == (1, 4)

    def test_none_switches_off(self):
        model = ScriptedModel.writing([11, EOS, 13, 14])
        model.generation_config.update(suppress_eos="logits", block_length=1)
        sequences = model.generate(PROMPT, max_new_tokens=4, suppress_eos=None, block_length=None)
        assert sequences.tolist() == [[1, 2, 11, EOS]]

    def test_the_config_is_saved_and_loaded_with_the_checkpoint(self, model, tmp_path):
        original = model.generation_config
        try:
            model.generation_config = preset("llada", max_new_tokens=8, steps=4, block_length=8, temperature=0.5)
            model.save_pretrained(tmp_path)
        finally:
            model.generation_config = original
        loaded = LLaDAModelLM.from_pretrained(tmp_path).generation_config
        assert isinstance(loaded, DiffusionGenerationConfig)
        assert (loaded.max_new_tokens, loaded.steps, loaded.block_length) == (8, 4, 8)
        assert (loaded.do_sample, loaded.temperature, loaded.rng_compat) == (True, 0.5, "llada")
        # what the file leaves open comes from the model and the defaults
        assert (loaded.mask_token_id, loaded.eos_token_id) == (300, 299)
        assert loaded.remasking == "low_confidence"

    def test_a_config_given_on_load_is_completed(self, golden_llada):
        given = DiffusionGenerationConfig(max_denoising_steps=3)
        loaded = LLaDAModelLM.from_pretrained(golden_llada.folder, generation_config=given).generation_config
        assert (loaded.max_denoising_steps, loaded.mask_token_id, loaded.block_length) == (3, 300, 32)

    def test_published_generation_configs_load(self, golden_llada, tmp_path):
        published = LLaDAModelLM.from_pretrained(golden_llada.folder)
        published.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text(
            '{"_from_model_config": true, "bos_token_id": 295, "eos_token_id": 299, "transformers_version": "4.38.2"}'
        )
        loaded = LLaDAModelLM.from_pretrained(tmp_path).generation_config
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.mask_token_id) == (295, 299, 300)
        assert loaded.do_sample is False


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_beams": 2}, "beam search"),
            ({"assistant_model": object()}, "speculative decoding"),
            ({"block_lenght": 4}, "`block_lenght` .write `block_length`"),
            ({"gen_length": 4}, "`gen_length` .write `max_new_tokens`"),
            ({"something": 1}, "Unknown generation setting: `something`"),
            ({"past_key_values": object()}, "continues a block-causal cache"),
            ({"inputs_embeds": torch.zeros(1, 2, 8)}, "input_ids"),
            ({"decoder_input_ids": PROMPT}, "infill"),
            ({"prefix_allowed_tokens_fn": lambda batch, tokens: [1]}, "LogitsProcessor"),
            ({"custom_generate": "me/repo"}, "denoise"),
            ({"token_type_ids": PROMPT}, "model_input_names"),
            ({"synced_gpus": True}, "differs between processes"),
            ({"negative_prompt_ids": PROMPT}, "guidance"),
            ({"position_ids": PROMPT}, "attention_mask"),
            ({"cache_implementation": "static"}, "cache"),
            ({"output_scores": True}, "output_trace"),
            ({"watermarking_config": {}}, "watermarks"),
            ({"steps": 1, "block_length": 2}, "fewer than the 2 blocks"),
            ({"steps": 4, "max_denoising_steps": 2}, "set the same thing"),
            ({"max_new_tokens": 63}, "65 positions, more than the 64"),
            ({"max_length": 2, "max_new_tokens": None}, "no room after a prompt of 2 tokens"),
            ({"attention_mask": torch.tensor([[1, 0]])}, 'padding_side = "left"'),
            ({"attention_mask": torch.tensor([[0, 0]])}, "all padding"),
            ({"attention_mask": torch.tensor([[1, 1, 1]])}, r"\(1, 3\) and `input_ids` \(1, 2\)"),
            ({"input_ids": PROMPT}, "once"),
            ({"suppress_eos": "logits", "eos_token_id": None}, "needs `eos_token_id`"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_says_why_and_what_instead(self, arguments, message):
        model = ScriptedModel.writing([11, 12, 13, 14])
        with pytest.raises(ValueError, match=message):
            model.generate(PROMPT, **{"max_new_tokens": 4, **arguments})
        assert model.calls == []

    @pytest.mark.parametrize("prompt", [None, torch.zeros(1, 0, dtype=torch.long), torch.tensor([1, 2])])
    def test_empty_prompts(self, prompt):
        model = ScriptedModel.writing([11])
        with pytest.raises(ValueError, match="at least one token per row"):
            model.generate(prompt, max_new_tokens=1)
        with pytest.raises(ValueError, match=r"start token \(3\)"):
            model.generate(prompt, max_new_tokens=1, bos_token_id=3)

    def test_masks_in_the_prompt(self):
        with pytest.raises(ValueError, match="call `infill`"):
            ScriptedModel.writing([11]).generate(torch.tensor([[1, MASK]]), max_new_tokens=1)

    def test_a_model_without_a_mask_token(self):
        model = ScriptedModel.writing([11])
        model.config.mask_token_id = model.generation_config.mask_token_id = None
        with pytest.raises(ValueError, match="no mask token"):
            model.generate(PROMPT, max_new_tokens=1)

    def test_continuous_batching(self):
        with pytest.raises(ValueError, match="left-padded"):
            ScriptedModel.writing([11]).generate_batch([[1, 2]])


class NeverSeven(LogitsProcessor):
    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        self.texts.append(input_ids.tolist())
        scores[:, 7] = -torch.inf
        return scores


class TestProcessors:
    def test_custom_processors_see_the_text_on_the_left(self):
        model = ScriptedModel.writing([7, 12], confidence=[3.0, 5.0])
        processor = NeverSeven()
        prompts, attention_mask = torch.tensor([[0, 2], [3, 4]]), torch.tensor([[0, 1], [1, 1]])
        sequences = model.generate(
            prompts, attention_mask=attention_mask, max_new_tokens=2, logits_processor=[processor]
        )
        assert not (sequences == 7).any()
        assert sequences[:, 3].tolist() == [12, 12]
        # first step: both positions of both rows, then what is left; padding is not shown
        assert sorted(processor.texts[:4]) == [[[2]], [[2, MASK]], [[3, 4]], [[3, 4, MASK]]]
        assert processor.texts[4:] == [[[2]], [[3, 4]]]

    def test_repetition_penalty_counts_the_left_context(self):
        model = ScriptedModel.writing([2, 9], confidence=[3.0, 5.0])
        assert model.generate(PROMPT, max_new_tokens=2)[0, 2] == 2
        # 3 / 4 is still the largest, 3 / -1 would not be allowed
        assert model.generate(PROMPT, max_new_tokens=2, repetition_penalty=4.0)[0, 2] == 2

        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 2], logits[..., 9] = 3.0, 2.0
            return logits

        sequences = ScriptedModel(script).generate(PROMPT, max_new_tokens=2, repetition_penalty=2.0, block_length=1)
        assert sequences.tolist() == [[1, 2, 9, 2]]

    def test_n_grams_that_begin_with_a_mask_are_not_banned(self):
        # "mask 12" stands at the right; 12 after another mask must stay possible
        model = ScriptedModel.writing([11, 12, 13, 12], confidence=[1.0, 9.0, 2.0, 8.0])
        sequences = model.generate(PROMPT, max_new_tokens=4, no_repeat_ngram_size=2)
        assert sequences.tolist() == [[1, 2, 11, 12, 13, 12]]

    def test_repeated_n_grams_are_banned(self):
        model = ScriptedModel.writing([11, 1, 2, 14], confidence=[9.0, 8.0, 7.0, 6.0])
        assert model.generate(PROMPT, max_new_tokens=4).tolist() == [[1, 2, 11, 1, 2, 14]]
        assert model.generate(PROMPT, max_new_tokens=4, no_repeat_ngram_size=2)[0, 4] != 2

    def test_minimum_length_holds_per_position(self):
        model = ScriptedModel.writing([EOS, EOS, EOS, EOS], confidence=[9.0] * 4)
        sequences = model.generate(PROMPT, max_new_tokens=4, min_new_tokens=2)
        assert (sequences[0, 2:] == EOS).tolist() == [False, False, True]

    def test_banned_words_and_suppressed_tokens(self):
        model = ScriptedModel.writing([11, 12], confidence=[9.0, 9.0])
        assert model.generate(PROMPT, max_new_tokens=2, suppress_tokens=[11])[0, 2] != 11
        assert model.generate(PROMPT, max_new_tokens=2, bad_words_ids=[[12]])[0, 3] != 12
        sequences = model.generate(PROMPT, max_new_tokens=2, bad_words_ids=[[11, 12]], block_length=1)
        assert sequences[0, 2] == 11
        assert sequences[0, 3] != 12


def test_int32_prompts_are_accepted():
    assert ScriptedModel.writing([11]).generate(PROMPT.int(), max_new_tokens=1).tolist() == [[1, 2, 11]]


def test_nothing_is_differentiated(model):
    assert not model.generate(PROMPT, max_new_tokens=2).requires_grad
    assert model.can_generate()
