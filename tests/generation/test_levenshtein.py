"""LLaDA2.2's editing: hand-worked examples of the rule, and what holds for every text."""

import pytest
import torch
from scripted_model import EOS, MASK, ScriptedModel
from tiny_models import as_block_causal

from llada import DiffusionGenerationConfig
from llada.generation import preset
from llada.generation.canvas import Canvas
from llada.generation.proposal import Proposal
from llada.generation.regions import Region
from llada.generation.rules.editing import TokenEditing
from llada.generation.rules.levenshtein import LevenshteinEditing


DELETE, SPLIT = 26, 27
CONTROLS = {"delete_token_id": DELETE, "split_token_id": SPLIT}


def step(text, proposed, confidence=None, prompt_length=2, rule=None, committed=(), eligible=None):
    """One step of the rule on a block after a prompt. `committed` are the masks that the threshold commits."""
    tokens = torch.tensor([text])
    frozen = torch.zeros_like(tokens, dtype=torch.bool)
    frozen[:, :prompt_length] = True
    canvas = Canvas(tokens, frozen, MASK)
    canvas.masked = ~frozen & (tokens == MASK)
    (block,) = Region(Canvas(tokens.masked_fill(~frozen, MASK), frozen, MASK))
    rule = rule or LevenshteinEditing(0.5, 16, DELETE, SPLIT)
    if not hasattr(rule, "open"):
        rule.begin(canvas, block)
    rule.watched(canvas, block)
    index = torch.arange(prompt_length, len(text))
    logits = torch.zeros(len(index), 32)
    logits[torch.arange(len(index)), torch.tensor(proposed)] = 5.0
    logits[:, 9] = 4.0
    probability = torch.tensor(confidence or [0.9] * len(index))
    proposal = Proposal(
        index, tokens.shape, logits, torch.tensor(proposed), probability, probability, eligible=canvas.masked
    )
    chosen = torch.zeros_like(canvas.masked)
    chosen[:, list(committed)] = True
    positions, after = rule.revise(proposal, chosen, canvas, block)
    assert torch.equal(positions, after != tokens)
    return after[0].tolist()


class TestByHand:
    def test_delete_moves_the_rest_to_the_left(self):
        assert step([1, 2, 3, 4, 5, 6], [3, DELETE, 5, 6]) == [1, 2, 3, 5, 6, MASK]

    def test_split_opens_a_place_before_the_token(self):
        assert step([1, 2, 3, 4, 5, 6], [3, SPLIT, 5, 6]) == [1, 2, 3, MASK, 4, 5]

    def test_both_at_once(self):
        assert step([1, 2, 3, 4, 5, 6], [SPLIT, DELETE, 5, 6]) == [1, 2, MASK, 3, 5, 6]
        assert step([1, 2, 3, 4, 5, 6], [DELETE, 4, SPLIT, 6]) == [1, 2, 4, MASK, 5, 6]

    def test_everything_deleted_or_split(self):
        assert step([1, 2, 3, 4, 5], [DELETE] * 3) == [1, 2, MASK, MASK, MASK]
        assert step([1, 2, 3, 4, 5], [SPLIT] * 3) == [1, 2, MASK, 3, MASK]

    def test_substitution_happens_in_the_same_step(self):
        assert step([1, 2, 3, 4, 5, 6], [7, DELETE, 8, 6]) == [1, 2, 7, 8, 6, MASK]

    def test_only_what_is_sure(self):
        assert step([1, 2, 3, 4, 5], [7, DELETE, SPLIT], confidence=[0.5, 0.4, 0.3]) == [1, 2, 3, 4, 5]

    def test_a_step_fills_one_more_than_it_opens(self):
        # the threshold committed nothing; one split opens one place, so the two surest of three masks are filled
        confidence = [0.9, 0.2, 0.4, 0.3]
        assert step([1, 2, 3, MASK, MASK, MASK], [SPLIT, 11, 12, 13], confidence) == [1, 2, MASK, 3, MASK, 12]
        # without opening, what the threshold says
        after = step([1, 2, 3, MASK, MASK, MASK], [3, 11, 12, 13], confidence, committed=[4])
        assert after == [1, 2, 3, MASK, 12, MASK]

    def test_the_prompt_stays(self):
        assert step([1, 2, 3, 4], [DELETE, DELETE], prompt_length=2)[:2] == [1, 2]

    def test_a_return_to_an_earlier_state_writes_something_new(self):
        rule = LevenshteinEditing(0.5, 16, DELETE, SPLIT)
        assert step([1, 2, 3, 4], [7, 8], rule=rule) == [1, 2, 7, 8]
        # back to 3, 4: the less sure one takes its best token that it has not held, 9
        assert step([1, 2, 7, 8], [3, 4], confidence=[0.8, 0.7], rule=rule) == [1, 2, 3, 9]


def writing(script):
    model = ScriptedModel(script)
    as_block_causal(model)
    model.generation_config = DiffusionGenerationConfig().with_defaults(model.config)
    return model


def settings(**overrides):
    return preset("llada2.2", kv_cache=None, eos_token_id=EOS, **{"block_length": 6, **CONTROLS, **overrides})


class TestGenerate:
    def test_an_unwanted_token_is_deleted_and_the_text_completed(self):
        target = [11, 12, 13, 14]

        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            for number, row in enumerate(canvas.tolist()):
                text = row[2:]
                # the first draft repeats a word
                draft = [11, 12, 12, 13, 14][: len(text)] if MASK in text and 20 not in text else target
                for offset, token in enumerate(text):
                    want = draft[offset] if offset < len(draft) else 15
                    if offset == 2 and text[1] == 12 and token == 12:
                        want = DELETE
                    logits[number, 2 + offset, want] = 9.0
            return logits

        output = writing(script).generate(torch.tensor([[1, 2]]), settings(max_new_tokens=4), output_trace=True)
        assert output.sequences.tolist() == [[1, 2, 11, 12, 13, 14]]
        assert any(MASK in event.tokens for event in output.trace[0].events)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("block_length", [4, 8])
    def test_it_ends_without_masks_or_control_tokens(self, seed, block_length, monkeypatch):
        monkeypatch.setattr("llada.generation.rules.levenshtein.MAX_STEPS_PER_BLOCK", 40)
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(64, 32, 32, generator=generator) * 2
        table[..., DELETE] += 2.5
        table[..., SPLIT] += 2.5

        def script(canvas):
            # depends on the position and on the token there
            positions = torch.arange(canvas.shape[1])
            return table[positions, canvas % 32]

        model = writing(script)
        prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
        config = settings(max_new_tokens=13, block_length=block_length, eos_early_stop=False)
        output = model.generate(prompt, config, return_dict_in_generate=True)
        assert output.sequences.shape == (2, 16)
        assert torch.equal(output.sequences[:, :3], prompt)
        assert not torch.isin(output.sequences, torch.tensor([MASK, DELETE, SPLIT])).any()
        # rows do not meet
        for row in range(2):
            assert torch.equal(model.generate(prompt[row : row + 1], config)[0], output.sequences[row])

    def test_a_block_that_never_settles_is_filled_in_the_end(self, monkeypatch):
        monkeypatch.setattr("llada.generation.rules.levenshtein.MAX_STEPS_PER_BLOCK", 20)

        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., 11], logits[..., DELETE] = 5.0, 9.0
            return logits

        model = writing(script)
        sequences = model.generate(torch.tensor([[1, 2]]), settings(max_new_tokens=4))
        assert sequences.tolist() == [[1, 2, 11, 11, 11, 11]]
        assert 20 <= len(model.calls) <= 26

    def test_without_control_tokens_it_is_token_editing(self):
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(64, 32, 32, generator=generator)
        table[..., [DELETE, SPLIT]] = -9.0
        # a proposal depends on what is masked only, so it settles
        model = writing(lambda canvas: table[torch.arange(canvas.shape[1]), (canvas == MASK).long()])
        prompt = torch.tensor([[1, 2]])
        config = settings(max_new_tokens=16)
        plain = model.generate(prompt, config, delete_token_id=None, split_token_id=None)
        assert torch.equal(model.generate(prompt, config), plain)

    def test_control_tokens_are_not_written_without_editing_either(self):
        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            logits[..., DELETE], logits[..., SPLIT], logits[..., 7] = 9.0, 8.0, 7.0
            return logits

        config = settings(max_new_tokens=4, editing_threshold=None)
        assert writing(script).generate(torch.tensor([[1, 2]]), config).tolist() == [[1, 2, 7, 7, 7, 7]]


def test_refusals():
    with pytest.raises(ValueError, match="belong together"):
        DiffusionGenerationConfig(delete_token_id=3)
    model = writing(lambda canvas: torch.zeros(*canvas.shape, 32))
    with pytest.raises(ValueError, match="which would move it"):
        model.infill(torch.tensor([[1, MASK, 3]]), settings())
    filled = model.infill(torch.tensor([[1, MASK, 3]]), settings(), delete_token_id=None, split_token_id=None)
    assert filled[0, 2] == 3
    assert isinstance(LevenshteinEditing(0.5, 1, DELETE, SPLIT), TokenEditing)
