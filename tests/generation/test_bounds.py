"""Lengths and ids that do not fit are refused before anything is made of them; and the cache in training mode."""

import pytest
import torch
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe

from benchmarks.counters import DispatchCounter


@pytest.mark.parametrize("length", [25_000_000, 10**9, 2**31 - 1])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threshold": 0.9, "initial_length": 4},
        {"threshold": 0.9, "initial_length": 4, "expand_threshold": 0.5},
        {"rng_compat": "llada", "eos_early_stop": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
def test_lengths_are_checked_before_memory(name, settings, length):
    model, prompt = tiny_llada(num_hidden_layers=1), torch.tensor([[1, 2, 3]])
    message = rf"The canvas has {length + 3 * (name == 'max_new_tokens')} positions, more"
    with DispatchCounter() as counter, pytest.raises(ValueError, match=message):
        model.generate(prompt, **{name: length}, **settings)
    assert counter.peak_bytes < 1000


def test_whole_blocks_are_checked_before_memory():
    model = tiny_llada2_moe()
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, block_length=61).shape == (1, 7)
    with pytest.raises(ValueError, match="has 1000000000 positions in whole blocks of 1000000000, more than the 64"):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, block_length=10**9)


def test_padding_takes_no_room():
    model, prompt, mask = tiny_llada(), torch.full((1, 70), 42), torch.zeros(1, 70, dtype=torch.long)
    mask[0, 60:] = 1
    assert model.generate(prompt, attention_mask=mask, max_new_tokens=54).shape == (1, 124)
    with pytest.raises(ValueError, match="has 65 positions, more than the 64"):
        model.generate(prompt, attention_mask=mask, max_new_tokens=55)
    with pytest.raises(ValueError, match="has 70 positions, more than the 64"):
        model.infill(torch.full((1, 70), 40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": 48}, r"`mask_token_id` is \[48\], and the vocabulary has the ids 0 to 47"),
        ({"pad_token_id": 10**6}, r"`pad_token_id` is \[1000000\], and the vocabulary"),
        ({"eos_token_id": [42, -1]}, r"`eos_token_id` is \[42, -1\], and the vocabulary"),
        ({"delete_token_id": 3, "split_token_id": 99}, r"`split_token_id` is \[99\], and the vocabulary"),
        ({"pad_token_id": 40}, "`pad_token_id` and `mask_token_id` are both 40"),
        ({"eos_token_id": 40}, "`eos_token_id` and `mask_token_id` are both 40"),
        ({"inputs": torch.tensor([[1, 48]])}, "`input_ids` holds ids from 1 to 48, and the vocabulary has the ids 0"),
        ({"inputs": torch.tensor([[-100, 3]])}, "`input_ids` holds ids from -100 to 3"),
    ],
    ids=str,
)
def test_ids_are_of_the_vocabulary(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_llada(num_hidden_layers=1).generate(**{"inputs": torch.tensor([[1]])} | settings)


@pytest.mark.parametrize("build", [tiny_llada, tiny_illada, tiny_llada_moe, tiny_llada2_moe])
def test_gradient_checkpointing_leaves_the_cache(build):
    """In training mode transformers drops the cache of a layer that does not say it can be computed again."""
    torch.manual_seed(3)
    model = build()
    settings = {"max_new_tokens": 12, "block_length": 4}
    if not model.config.block_causal:
        settings["kv_cache"] = "dual"
    expected = model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), **settings)
    model.activation_checkpointing_enable()
    model.train()
    assert torch.equal(model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), **settings), expected)
