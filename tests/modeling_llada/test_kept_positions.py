"""The last layer and the head compute what is wanted and nothing else, with the result of computing everything."""

from itertools import product

import pytest
import torch
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from torch import nn

from llada.generation.forwards.canvas_cache import CanvasCache
from llada.modeling_llada.kept_positions import apply_head, take_positions, take_queries


LENGTH = 12
# flex attention is not compiled
pytestmark = pytest.mark.usefixtures("interpret_flex_attention")
TINY = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}


@pytest.fixture(params=TINY)
def model(request):
    torch.manual_seed(0)
    return TINY[request.param]().eval()


@pytest.fixture
def ids(model):
    return torch.randint(0, 40, (3, LENGTH))


def masks() -> dict[str, torch.Tensor | None]:
    padded = torch.ones(3, LENGTH, dtype=torch.long)
    padded[0, :4] = padded[2, :1] = 0
    by_query = torch.rand(3, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.7
    return {
        "no mask": None,
        "padded": padded,
        "by query": by_query | torch.eye(LENGTH, dtype=torch.bool),
        "by query, for all": by_query[:1] | torch.eye(LENGTH, dtype=torch.bool),
        "by query and head": (by_query | torch.eye(LENGTH, dtype=torch.bool)).expand(-1, 4, -1, -1),
    }


class Widths:
    """How many positions the feed-forward of each layer was given."""

    def __init__(self, backbone: nn.Module):
        self.seen: list[int] = []
        for layer in backbone.layers:
            layer.mlp.register_forward_pre_hook(lambda module, inputs: self.seen.append(inputs[0].shape[1]))


# flex attention takes one mask for all heads
CASES = [
    (implementation, mask)
    for implementation, mask in product(("sdpa", "eager", "flex_attention"), masks())
    if (implementation, mask) != ("flex_attention", "by query and head")
]


@torch.no_grad()
@pytest.mark.parametrize(("implementation", "mask"), CASES)
def test_kept_positions_have_the_states_of_a_full_pass(model, ids, implementation, mask):
    attention_mask = masks()[mask]
    model.set_attn_implementation(implementation)
    backbone = model.model
    positions = torch.stack([torch.randperm(LENGTH)[:5] for _ in range(3)])
    expected = take_positions(backbone(ids, attention_mask=attention_mask).last_hidden_state, positions)
    widths = Widths(backbone)
    states = backbone(ids, attention_mask=attention_mask, positions_to_keep=positions).last_hidden_state
    assert states.shape == (3, 5, model.config.hidden_size)
    assert torch.allclose(states, expected, atol=1e-5)
    # flex attention has objects for masks, which are not cut
    is_cut = implementation != "flex_attention"
    assert widths.seen == [LENGTH] * (len(backbone.layers) - 1) + [5 if is_cut else LENGTH]


@torch.no_grad()
def test_kept_positions_of_a_part_of_a_canvas(model, ids):
    padded = masks()["padded"]
    cache = CanvasCache((padded.cumsum(1) - 1).clamp(min=0))
    settings = {"attention_mask": padded, "block_length": 4, "past_key_values": cache}
    model.model(ids, cache_position=torch.arange(LENGTH), **settings)
    part, positions = torch.arange(4, 8), torch.tensor([[3, 0], [1, 2], [2, 3]])
    expected = take_positions(model.model(ids[:, part], cache_position=part, **settings).last_hidden_state, positions)
    keys = [key.clone() for key in cache.keys]
    ids[:, 5] += 1
    model.model(ids[:, part], cache_position=part, **settings)
    ids[:, 5] -= 1
    states = model.model(ids[:, part], cache_position=part, positions_to_keep=positions, **settings).last_hidden_state
    assert torch.allclose(states, expected, atol=1e-5)
    # keys are of all positions, also in the last layer
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(cache.keys, keys, strict=True))


@torch.no_grad()
def test_experts_that_a_block_shares_see_the_whole_block():
    torch.manual_seed(0)
    model = tiny_llada2_moe(expert_capacity=3, block_size=4).eval()
    ids, positions = torch.randint(0, 40, (2, LENGTH)), torch.tensor([[5, 1, 8], [0, 11, 2]])
    expected = take_positions(model.model(ids).last_hidden_state, positions)
    widths = Widths(model.model)
    states = model.model(ids, positions_to_keep=positions).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
    assert set(widths.seen) == {LENGTH}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llada_moe", "llada2_moe"])
def test_sampling_records_no_routers(name):
    """A checkpoint whose training recorded them writes what it would write otherwise."""
    torch.manual_seed(0)
    model = TINY[name]().eval()
    ids, padded = torch.randint(0, 40, (3, LENGTH)), masks()["padded"]
    settings = {"attention_mask": padded, "max_new_tokens": 8, "block_length": 4}
    expected = model.generate(ids, **settings)
    model.config.output_router_logits = True
    assert torch.equal(model.generate(ids, **settings), expected)
    wanted = torch.ones(3, LENGTH, dtype=torch.bool)
    assert model(ids, logits_to_keep=wanted).router_logits is not None
    with pytest.raises(ValueError, match="`output_router_logits=True` is about all positions"):
        model(ids, logits_to_keep=wanted, num_logits_to_keep=[LENGTH] * 3, output_router_logits=True)


@torch.no_grad()
@pytest.mark.parametrize("counts", [[2, 5, 0], [4, 4, 4], [0, 0, 1], [12, 3, 7]])
def test_logits_of_known_numbers_of_cells(model, ids, counts):
    wanted = torch.zeros(3, LENGTH, dtype=torch.bool)
    for row, count in enumerate(counts):
        wanted[row, torch.randperm(LENGTH)[:count]] = True
    full = model(ids).logits
    logits = model(ids, logits_to_keep=wanted, num_logits_to_keep=counts).logits
    assert logits.shape == (sum(counts), model.config.vocab_size)
    assert torch.allclose(logits, full[wanted], atol=1e-5)
    # larger numbers, as a compiled step has: what is wanted comes first
    more = model(ids, logits_to_keep=wanted, num_logits_to_keep=[max(counts)] * 3).logits
    assert more.shape[0] == 3 * max(counts)
    assert torch.allclose(more[: sum(counts)], full[wanted], atol=1e-5)


def test_masks_for_all_queries_are_not_cut():
    positions = torch.tensor([[1, 0]])
    for_all = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    assert take_queries(for_all, positions) is for_all


@pytest.mark.parametrize("number", range(1, 20))
def test_few_rows_are_filled_up(number):
    head, seen = nn.Linear(8, 30), []
    head.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    states = torch.randn(number, 8)
    logits = apply_head(head, states)
    assert logits.shape == (number, 30)
    assert torch.allclose(logits, head(states), atol=1e-6)
    assert seen[0] == (16 if 6 < number < 16 else number)
