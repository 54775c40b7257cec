"""Block-causal attention, and computing a part of a canvas with cached keys and values."""

import pytest
import torch

from llada import LLaDAConfig, LLaDAModelLM
from llada.generation.forwards.canvas_cache import CanvasCache


LENGTH, BLOCK = 13, 4


@pytest.fixture(params=["eager", "sdpa", "flex_attention"])
def model(request, interpret_flex_attention):
    config = LLaDAConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=64, initializer_range=0.2, mask_token_id=63, eos_token_id=62, pad_token_id=62,
    )  # fmt: skip
    config._attn_implementation = request.param
    return LLaDAModelLM(config).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 60, (2, LENGTH))


def by_hand(positions):
    blocks = positions // BLOCK
    return blocks[:, None, :] <= blocks[:, :, None]


@torch.no_grad()
def test_blocks_see_themselves_and_what_comes_before(model, ids):
    expected = model(ids, attention_mask=by_hand(torch.arange(LENGTH).expand(2, -1))).logits
    assert torch.allclose(model(ids, block_length=BLOCK).logits, expected, atol=1e-5)
    # what comes after a block does not matter to it
    other = ids.clone()
    other[:, 8:] = 1
    assert torch.allclose(model(other, block_length=BLOCK).logits[:, :8], expected[:, :8], atol=1e-5)
    assert not torch.allclose(model(ids).logits, expected, atol=1e-3)


@torch.no_grad()
def test_a_config_can_ask_for_blocks(model, ids):
    expected = model(ids, block_length=BLOCK).logits
    full = model(ids).logits
    type(model.config).block_size = BLOCK
    try:
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(model(ids, block_length=0).logits, full)
    finally:
        del type(model.config).block_size


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_move_the_blocks(model, ids, side):
    expected = model(ids[:, :10], block_length=BLOCK).logits
    padding = torch.full((2, 3), 62)
    mask = torch.ones(2, 13, dtype=torch.long)
    place = slice(3, 13) if side == "left" else slice(0, 10)
    mask[:, :3] = 0 if side == "left" else 1
    mask[:, 10:] = 1 if side == "left" else 0
    padded = torch.cat([padding, ids[:, :10]] if side == "left" else [ids[:, :10], padding], dim=1)
    assert torch.allclose(model(padded, attention_mask=mask, block_length=BLOCK).logits[:, place], expected, atol=1e-5)
    # positions may be given as well
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = model(padded, attention_mask=mask, position_ids=positions, block_length=BLOCK).logits
    assert torch.allclose(given[:, place], expected, atol=1e-5)


@torch.no_grad()
def test_finished_blocks_never_change(model, ids):
    expected = model(ids, block_length=BLOCK).logits
    cache = CanvasCache(torch.arange(LENGTH).expand(2, -1))
    parts = []
    for start in range(0, LENGTH, BLOCK):
        positions = torch.arange(start, min(start + BLOCK, LENGTH))
        cache.visible = int(positions[-1]) + 1
        part = ids[:, positions]
        # the block is computed with another text first
        model(torch.full_like(part, 63), past_key_values=cache, cache_position=positions, block_length=BLOCK)
        parts.append(model(part, past_key_values=cache, cache_position=positions, block_length=BLOCK).logits)
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5)


@torch.no_grad()
def test_a_part_attends_to_the_whole_canvas(model, ids):
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :2] = 0
    expected = model(ids, attention_mask=mask).logits
    cache = CanvasCache(torch.arange(LENGTH).expand(2, -1))
    everything = torch.arange(LENGTH)
    first = model(ids, attention_mask=mask, past_key_values=cache, cache_position=everything).logits
    assert torch.allclose(first, expected, atol=1e-5)
    # nothing has changed, so computing some positions again gives what they were
    some = torch.tensor([3, 4, 9])
    again = model(ids[:, some], attention_mask=mask, past_key_values=cache, cache_position=some).logits
    assert torch.allclose(again, expected[:, some], atol=1e-5)
    cache.keep_rows(torch.tensor([1]))
    alone = model(ids[1:, some], attention_mask=mask[1:], past_key_values=cache, cache_position=some).logits
    assert torch.allclose(alone, expected[1:, some], atol=1e-5)


def test_refusals(model, ids):
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="DynamicCache, whose keys and values can only grow"):
        model(ids, past_key_values=DynamicCache(), cache_position=torch.arange(LENGTH))
    with pytest.raises(ValueError, match="belong together"):
        model(ids, past_key_values=CanvasCache(torch.arange(LENGTH).expand(2, -1)))
    with pytest.raises(ValueError, match="belong together"):
        model(ids, cache_position=torch.arange(LENGTH))
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 13\)"):
        cache = CanvasCache(torch.arange(LENGTH).expand(2, -1))
        model(
            ids,
            attention_mask=torch.ones(2, 5),
            past_key_values=cache,
            cache_position=torch.arange(LENGTH),
        )


@torch.no_grad()
def test_logits_of_a_known_number_of_cells(model, ids):
    wanted = torch.rand(2, LENGTH) < 0.4
    wanted[0, 2] = True
    logits = model(ids, logits_to_keep=wanted, num_logits_to_keep=wanted.sum(1).tolist()).logits
    assert torch.allclose(logits, model(ids, logits_to_keep=wanted).logits, atol=1e-6)
