"""What models with experts compute beside routing: heads, rotations, masks, dtypes."""

import pytest
import torch
from naive_llada import naive_rotation
from tiny_models import tiny_llada2_moe, tiny_llada_moe

from llada.modeling_llada import attention


TINY = {"llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
LENGTH = 10
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=TINY)
def name(request) -> str:
    return request.param


def ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 40, (rows, LENGTH))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone(name, side, backend, interpret_flex_attention):
    """The published LLaDA-MoE ignores padding, and padding makes the published LLaDA2 causal, token by token."""
    model = TINY[name]()
    model.set_attn_implementation(backend)
    rows, mask = ids(), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, slice(3) if side == "left" else slice(-3, None)] = 0
    tokens = slice(3, None) if side == "left" else slice(None, -3)
    logits = model(rows, attention_mask=mask).logits
    torch.testing.assert_close(logits[1, tokens], model(rows[1:, tokens]).logits[0], **CLOSE)
    torch.testing.assert_close(logits[0], model(rows[:1]).logits[0], **CLOSE)
    # what comes later is seen
    changed = rows.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 40
    assert (model(changed, attention_mask=mask).logits[0, 0] - logits[0, 0]).abs().max() > 1e-4


def test_every_position_sees_every_other(name):
    model = TINY[name]()
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        embeds = model.get_input_embeddings()(ids(1)).detach().requires_grad_()
        for position in (0, LENGTH - 1):
            (gradient,) = torch.autograd.grad(model(inputs_embeds=embeds).logits[0, position].sum(), embeds)
            assert (gradient.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_are_normed_by_head_and_turned_in_part(name, dtype, monkeypatch):
    """In the dtype of the model, bit for bit: the norm, then the rotation, of the first half of a head in LLaDA2."""
    model = TINY[name](head_dim=16).to(dtype)
    model.set_attn_implementation("eager")
    seen = []
    eager = attention.eager_attention_forward

    def spy(module, query, key, *args, **kwargs):
        seen.append((query, key))
        return eager(module, query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "eager_attention_forward", spy)
    rows = ids()
    model(rows)
    layer = model.model.layers[0].self_attn
    normed = model.model.layers[0].input_layernorm(model.model.embed_tokens(rows))
    turning = 8 if name == "llada2_moe" else 16
    for got, projection, norm in zip(seen[0], (layer.q_proj, layer.k_proj), (layer.q_norm, layer.k_norm), strict=True):
        assert norm.weight.shape == (16,)
        states = projection(normed).view(2, LENGTH, -1, 16)
        exact = states.float()
        exact = (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + norm.eps)).to(dtype)
        states = (norm.weight * exact).transpose(1, 2)
        turned = naive_rotation(states[..., :turning], model.config.rope_theta, full_precision=False)
        expected = torch.cat((turned, states[..., turning:]), dim=-1)
        if dtype == torch.bfloat16:
            assert torch.equal(got, expected)
        else:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_logits_of_llada2_are_float32():
    rows = ids()
    for make, dtype in ((tiny_llada2_moe, torch.float32), (tiny_llada_moe, torch.bfloat16)):
        model = make().to(torch.bfloat16)
        output = model(rows, labels=rows)
        assert output.logits.dtype == dtype
        assert torch.equal(output.logits.bfloat16(), model.lm_head(model.model(rows).last_hidden_state))
        assert output.loss.dtype == torch.float32


def test_shared_experts_see_every_token():
    model = tiny_llada2_moe(num_shared_experts=2)
    mlp, hidden = model.model.layers[1].mlp, torch.randn(2, LENGTH, 32)
    both = mlp(hidden)
    shared = mlp.shared_experts(hidden)
    mlp.shared_experts = None
    torch.testing.assert_close(both, mlp(hidden) + shared, **CLOSE)
    assert shared.abs().min(dim=-1).values.max() > 0


def test_layers_without_experts():
    model = tiny_llada_moe(num_hidden_layers=3, moe_layer_freq=[1, 0, 1])
    assert [layer.is_sparse for layer in model.model.layers] == [True, False, True]
    assert model.model.layers[1].mlp.up_proj.out_features == 40
    model = tiny_llada2_moe(num_hidden_layers=3, first_k_dense_replace=2)
    assert [layer.is_sparse for layer in model.model.layers] == [False, False, True]
    assert model(ids(), labels=ids()).loss.isfinite()


def test_scaling_of_routed_experts_counts(name):
    model, other = TINY[name](), TINY[name](routed_scaling_factor=7.0)
    other.load_state_dict(model.state_dict())
    rows = ids()
    assert (model(rows).logits - other(rows).logits).abs().max() > 1e-2


def test_mixed_precision(name):
    model, rows = TINY[name](), ids(8)
    exact = model(rows).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(rows, labels=rows)
        output.loss.backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
    # roundings of 2^-8, where no other expert is chosen for them
    difference = (output.logits.float() - exact).abs().amax(-1).flatten()
    assert difference.median() < 0.1 * exact.std()
