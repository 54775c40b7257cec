"""Logits made from the position before: the same weights without the shift, and its logits moved by one, agree."""

import pytest
import torch
from reference_sampler import reference_sample
from tiny_models import as_block_causal, tiny_illada
from transformers.modeling_outputs import MaskedLMOutput

from llada import ILLaDAForCausalLM
from llada.generation.forwards.canvas_cache import CanvasCache


LENGTH = 12


@pytest.fixture
def model():
    return tiny_illada(right_shift_logits=True)


@pytest.fixture
def ids():
    return torch.randint(0, 40, (2, LENGTH))


def unshifted(model, *args, **kwargs):
    """The logits of the same weights without the shift."""
    model.config.right_shift_logits = False
    try:
        return model(*args, **kwargs).logits
    finally:
        model.config.right_shift_logits = True


def moved(logits):
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


@torch.no_grad()
def test_logits_come_from_the_position_before(model, ids):
    expected = moved(unshifted(model, ids))
    assert torch.allclose(model(ids).logits, expected, atol=1e-6)
    assert not torch.allclose(model(ids).logits, unshifted(model, ids), atol=1e-2)
    assert torch.allclose(model(ids, logits_to_keep=3).logits, expected[:, -3:], atol=1e-6)
    wanted = torch.rand(2, LENGTH) < 0.4
    wanted[:, 0] = True
    assert torch.allclose(model(ids, logits_to_keep=wanted).logits, expected[wanted], atol=1e-6)
    counts = wanted.sum(1).tolist()
    kept = model(ids, logits_to_keep=wanted, num_logits_to_keep=counts).logits
    assert torch.allclose(kept, expected[wanted], atol=1e-6)
    losses = model(ids, labels=ids, logits_to_keep=wanted, token_losses=True).token_losses
    by_hand = torch.nn.functional.cross_entropy(expected[wanted], ids[wanted], reduction="none")
    assert torch.allclose(losses[wanted], by_hand, atol=1e-5)


@torch.no_grad()
def test_texts_begin_after_padding_and_where_positions_do(model, ids):
    alone = model(ids[:1, 5:]).logits
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :5] = 0
    assert torch.allclose(model(ids, attention_mask=mask).logits[:1, 5:], alone, atol=1e-5)
    # two documents in a row
    documents = (torch.arange(LENGTH) >= 5).expand(2, -1)
    position_ids = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)]).unsqueeze(0)
    packed = model(
        ids, position_ids=position_ids, attention_mask=documents[:, :, None] == documents[:, None, :]
    ).logits
    assert torch.allclose(packed[:1, 5:], alone, atol=1e-5)


@torch.no_grad()
def test_parts_of_a_canvas_know_the_position_before(model, ids):
    expected = model(ids).logits
    cache = CanvasCache(torch.arange(LENGTH).expand(2, -1))
    whole = model(ids, past_key_values=cache, cache_position=torch.arange(LENGTH)).logits
    assert torch.allclose(whole, expected, atol=1e-6)
    for places in (torch.arange(4, 9), torch.tensor([2, 3, 7])):
        part = model(ids[:, places], past_key_values=cache, cache_position=places).logits
        assert torch.allclose(part, expected[:, places], atol=1e-5)


def test_errors_are_those_of_the_backbone(model, ids):
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model()
    with pytest.raises(ValueError, match="belong together"):
        model(ids, past_key_values=CanvasCache(torch.arange(LENGTH).expand(2, -1)))


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 0.7}], ids=["plain", "guided"])
def test_sampling_is_that_of_the_moved_logits(model, ids, settings):
    def move(canvas, attention_mask):
        return MaskedLMOutput(logits=moved(unshifted(model, canvas)))

    options = {"block_length": 4, "steps": 8, **settings}
    expected = reference_sample(move, ids[:, :5], gen_length=8, mask_token_id=40, **options)
    options |= {"remasking": "low_confidence", "temperature": 0.0, "eos_token_id": None}
    assert torch.equal(model.generate(ids[:, :5], max_new_tokens=8, **options), expected)


@pytest.mark.parametrize("kv_cache", ["prefix", "dual", "vicinity", "delayed"])
def test_caches_change_nothing_where_they_are_fresh(model, ids, kv_cache):
    # the first step of a block computes everything
    options = {"max_new_tokens": 8, "block_length": 4, "steps": 2, "eos_token_id": None}
    prompt = ids[:1, :5]
    assert torch.equal(model.generate(prompt, kv_cache=kv_cache, **options), model.generate(prompt, **options))
    # and with more steps, too, every mask is decided
    answer = model.generate(prompt, kv_cache=kv_cache, **options | {"steps": 8})
    assert (answer != 40).all()


def test_the_cache_of_finished_blocks_is_exact(model):
    model = as_block_causal(model)
    prompts = torch.randint(0, 40, (2, 6))
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 14, "block_length": 4, "steps": 14, "eos_token_id": None}
    cached = model.generate(prompts, **options)
    assert torch.equal(cached, model.generate(prompts, **options | {"use_cache": False}))


def test_the_flag_is_saved(model, tmp_path, ids):
    model.save_pretrained(tmp_path)
    again = ILLaDAForCausalLM.from_pretrained(tmp_path)
    assert again.config.right_shift_logits
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
