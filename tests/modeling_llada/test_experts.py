"""Experts: every back-end against a loop, the published order of additions bit for bit, and gradients."""

import pytest
import torch
from golden import load_golden, rounding
from tiny_models import tiny_llada, tiny_llada2_moe, tiny_llada_moe
from torch.nn.functional import linear, silu
from transformers import AutoModelForMaskedLM

from llada import LLaDAMoEModelLM
from llada.modeling_llada.experts import LLaDAExperts


TINY = {"llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
BACKENDS = ("eager", "batched_mm", "grouped_mm")


def experts_of(name: str, dtype: torch.dtype = torch.float32) -> LLaDAExperts:
    model = TINY[name](num_hidden_layers=3, num_experts=8)
    model.set_experts_implementation("eager")
    return model.model.layers[2].mlp.experts.to(dtype)


def draw_routes(tokens: int = 13, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    hidden = torch.randn(tokens, 32, dtype=torch.float32)
    indices = torch.rand(tokens, 8).topk(3, dim=-1).indices
    return hidden.to(dtype), indices, torch.rand(tokens, 3).to(dtype)


@pytest.mark.parametrize("name", TINY)
def test_the_loop_adds_up_what_experts_answer(name):
    experts, (hidden, indices, weights) = experts_of(name), draw_routes()
    expected = []
    for token, chosen, shares in zip(hidden, indices.tolist(), weights, strict=True):
        gates = [linear(token, experts.gate_up_proj[expert]).split(16) for expert in chosen]
        outputs = [linear(silu(g) * u, experts.down_proj[e]) for (g, u), e in zip(gates, chosen, strict=True)]
        expected.append(sum(output * share for output, share in zip(outputs, shares, strict=True)))
    torch.testing.assert_close(experts(hidden, indices, weights), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_additions_have_the_published_order_and_dtype(name):
    """LLaDA-MoE adds into a bfloat16 sum, expert by expert; LLaDA2 multiplies and adds the slots in float32."""
    experts = experts_of(name, torch.bfloat16)
    hidden, indices, weights = draw_routes(200, torch.bfloat16)
    if name == "llada2_moe":
        weights = torch.rand(200, 3)
    slots = torch.zeros(200, 3, 32, dtype=torch.bfloat16)
    published = torch.zeros(200, 32, dtype=torch.bfloat16)
    for expert in range(8):
        token, slot = torch.where(indices == expert)
        gate, up = linear(hidden[token], experts.gate_up_proj[expert]).split(16, dim=-1)
        output = linear(silu(gate) * up, experts.down_proj[expert])
        slots[token, slot] = output
        published.index_add_(0, token, output * weights[token, slot, None].to(torch.bfloat16))
    in_slots = (slots.float() * weights.float()[..., None]).sum(dim=1).to(torch.bfloat16)
    got = experts(hidden, indices, weights)
    assert got.dtype == torch.bfloat16
    assert not torch.equal(published, in_slots)
    assert torch.equal(got, in_slots if name == "llada2_moe" else published)


@pytest.mark.parametrize("name", TINY)
def test_experts_of_other_devices_are_left_out(name):
    experts, (hidden, indices, weights) = experts_of(name), draw_routes()
    foreign = indices >= 5
    expected = experts(hidden, indices, weights.masked_fill(foreign, 0))
    indices = indices.masked_fill(foreign, 8)
    torch.testing.assert_close(experts(hidden, indices, weights.masked_fill(foreign, 0)), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llada_moe", "llada2_moe"])
def test_every_back_end_gives_the_published_answers(name, attention, backend):
    golden = load_golden(name)
    model = AutoModelForMaskedLM.from_pretrained(
        golden.folder, attn_implementation=attention, experts_implementation=backend
    )
    assert model.config._experts_implementation == backend
    rows = golden.expected["logits.input_ids"]
    # the published answers were computed with sdpa and are 1.5e-5 from exact arithmetic
    close = rounding(golden.logits)
    torch.testing.assert_close(model(rows).logits, golden.logits, **close)
    if name == "llada2_moe":
        blocks = torch.arange(32) // 8
        visible = (blocks[None, :] <= blocks[:, None])[None, None]
        expected = golden.expected["logits.block_causal_8"]
        torch.testing.assert_close(model(rows, attention_mask=visible).logits, expected, **close)
        additive = torch.zeros(2, 1, 32, 32).masked_fill(~visible, -torch.inf)
        torch.testing.assert_close(model(rows, attention_mask=additive).logits, expected, **close)
        torch.testing.assert_close(model(rows, block_length=8).logits, expected, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TINY)
def test_back_ends_agree(name, dtype):
    model = TINY[name]().to(dtype)
    ids = torch.randint(0, 40, (2, 9))
    logits, gradients = {}, {}
    for backend in BACKENDS:
        model.set_experts_implementation(backend)
        model.zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        logits[backend] = output.logits.float()
        gradients[backend] = {key: parameter.grad.float() for key, parameter in model.named_parameters()}
    for backend in BACKENDS[1:]:
        if dtype == torch.float32:
            torch.testing.assert_close(logits[backend], logits["eager"], rtol=0, atol=1e-5)
            for key, gradient in gradients["eager"].items():
                torch.testing.assert_close(gradients[backend][key], gradient, rtol=0, atol=1e-6, msg=key)
        else:
            # roundings of 2^-8, where no other expert is chosen for them
            difference = (logits[backend] - logits["eager"]).abs().flatten(0, 1).amax(-1)
            assert difference.median() < 0.05 * logits["eager"].std()


def test_the_back_end_can_be_chosen_at_any_time():
    golden = load_golden("llada_moe")
    model = AutoModelForMaskedLM.from_pretrained(golden.folder)
    assert model.config._experts_implementation == "grouped_mm"
    rows = golden.expected["logits.input_ids"]
    logits = model(rows).logits
    called = []
    model.model.layers[0].mlp.experts.act_fn.register_forward_hook(lambda *_: called.append(1))
    model(rows)
    assert len(called) == 1
    model.set_experts_implementation("eager")
    assert model.get_experts_implementation() == {"": "eager"}
    torch.testing.assert_close(model(rows).logits, logits, rtol=0, atol=1e-5)
    # once for every expert that anything was sent to
    assert len(called) == 1 + 8
    with pytest.raises(ValueError, match='experts_implementation="nonsense"'):
        model.set_experts_implementation("nonsense")
    with pytest.raises(ValueError, match='experts_implementation="nonsense"'):
        AutoModelForMaskedLM.from_pretrained(golden.folder, experts_implementation="nonsense")
    # a model without experts has none to choose
    assert tiny_llada().get_experts_implementation() == {"": "eager"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TINY)
def test_gradients_are_the_same_in_evaluation_mode(name, backend):
    """The published LLaDA2 gives experts none then: its inference path runs without gradients."""
    model = TINY[name](num_hidden_layers=3)
    model.set_experts_implementation(backend)
    ids = torch.randint(0, 40, (4, 9))

    def gradients(mode: bool) -> dict[str, torch.Tensor]:
        model.train(mode).zero_grad()
        model(ids, labels=ids).loss.backward()
        return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}

    training, evaluation = gradients(True), gradients(False)
    for key, gradient in training.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(evaluation[key], gradient, rtol=0, atol=1e-7, msg=key)


def test_gradients_are_those_of_finite_differences():
    model = tiny_llada_moe(num_hidden_layers=1).double()
    model.set_experts_implementation("eager")
    ids = torch.randint(0, 40, (2, 6))
    model(ids, labels=ids).loss.backward()
    layer = model.model.layers[0].mlp
    for parameter in (layer.experts.gate_up_proj, layer.experts.down_proj, layer.gate.weight):
        direction = torch.randn_like(parameter)
        losses = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                losses.append(model(ids, labels=ids).loss.double())
                parameter.sub_(direction, alpha=step)
        slope = (losses[0] - losses[1]) / 2e-4
        assert slope.item() == pytest.approx((parameter.grad * direction).sum().item(), rel=2e-2, abs=1e-4)


def test_fresh_experts_have_the_configured_spread():
    model = LLaDAMoEModelLM(tiny_llada_moe(hidden_size=128, moe_intermediate_size=64, initializer_range=0.07).config)
    for name, parameter in model.named_parameters():
        if "experts" in name or "gate" in name:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.01, name
