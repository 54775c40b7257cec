"""What models record of their routers, and the losses that keep the load of experts even."""

import math

import pytest
import torch
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from llada.modeling_llada.router_losses import (
    MoeMaskedLMOutput,
    expert_usage,
    load_balancing_loss,
    router_aux_loss,
    router_z_loss,
)


TINY = {"llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}
IDS = torch.arange(18).view(2, 9)
PADDING = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])


@pytest.mark.parametrize("name", TINY)
def test_recording(name):
    model = TINY[name](num_hidden_layers=3)
    plain = model(IDS)
    assert type(plain) is MaskedLMOutput
    output = model(IDS, output_router_logits=True)
    assert isinstance(output, MoeMaskedLMOutput)
    assert torch.equal(output.logits, plain.logits)
    assert output.loss is None
    layers = [layer for layer in model.model.layers if layer.is_sparse]
    assert len(output.router_logits) == len(output.router_indices) == len(layers) == (3 if name == "llada_moe" else 2)
    seen = []
    layers[1].mlp.register_forward_hook(lambda module, args, _: seen.append(module.gate(args[0])))
    model(IDS)
    logits, _, indices = seen[0]
    assert torch.equal(output.router_logits[1], logits)
    assert torch.equal(output.router_indices[1], indices)
    # in the order of fields, too
    assert torch.equal(model(IDS, output_router_logits=True, return_dict=False)[0], plain.logits)
    # the backbone records the same
    assert torch.equal(model.model(IDS, output_router_logits=True).router_logits[1], logits)
    # and a configuration can ask for it
    model.config.output_router_logits = True
    assert torch.equal(model(IDS).router_logits[1], logits)
    assert type(model(IDS, output_router_logits=False)) is MaskedLMOutput


def test_recording_with_hidden_states():
    output = tiny_llada_moe()(IDS, output_router_logits=True, output_hidden_states=True)
    assert len(output.hidden_states) == 3 and len(output.router_logits) == 2


@pytest.mark.parametrize("model", [tiny_llada, tiny_illada, lambda: tiny_llada2_moe(num_hidden_layers=1)])
def test_models_without_experts_have_no_routers(model):
    model = model()
    with pytest.raises(ValueError, match="`output_router_logits=True`, but no layer of this model has experts"):
        model(IDS, output_router_logits=True)
    assert type(model(IDS)) is MaskedLMOutput


@pytest.mark.parametrize("masked", [False, True])
def test_load_balancing_is_that_of_transformers(masked):
    """Layer by layer: transformers counts the experts of all layers together."""
    logits = torch.randn(3, 18, 6)
    indices = logits.topk(3, dim=-1).indices
    mask = PADDING if masked else None
    is_token = PADDING.bool() if masked else None
    each = [load_balancing_loss_func((layer,), 6, 3, mask) for layer in logits]
    got = load_balancing_loss(tuple(logits), tuple(indices), is_token=is_token)
    torch.testing.assert_close(got, torch.stack(each).mean())


def test_even_load_costs_the_number_of_experts_per_token():
    indices = torch.tensor([[0, 1], [2, 3], [4, 5]])
    for score_function in ("softmax", "sigmoid"):
        loss = load_balancing_loss((torch.randn(3, 1).expand(3, 6),), (indices,), score_function)
        assert loss.item() == pytest.approx(2)
    # one expert for all, and sure of it
    certain = torch.tensor([[20.0, 0, 0, 0, 0, 0]]).expand(3, -1)
    assert load_balancing_loss((certain,), (torch.zeros(3, 1).long(),)).item() == pytest.approx(6, rel=1e-4)


def test_sigmoid_probabilities_are_divided_by_their_sum():
    logits, indices = torch.randn(4, 6), torch.tensor([[0, 1], [0, 2], [0, 3], [4, 5]])
    probabilities = [[1 / (1 + math.exp(-x)) for x in row] for row in logits.tolist()]
    shares = [3 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4]
    expected = 0.0
    for row in probabilities:
        expected += 6 * sum(share * p / sum(row) for share, p in zip(shares, row, strict=True)) / 4
    assert load_balancing_loss((logits,), (indices,), "sigmoid").item() == pytest.approx(expected, rel=1e-5)


def test_z_loss():
    logits = torch.randn(2, 18, 6)
    squares = [math.log(sum(math.exp(x) for x in row)) ** 2 for layer in logits.tolist() for row in layer]
    assert router_z_loss(tuple(logits)).item() == pytest.approx(sum(squares) / 36, rel=1e-5)
    kept = [square for square, keep in zip(squares, PADDING.flatten().tolist() * 2, strict=True) if keep]
    got = router_z_loss(tuple(logits), PADDING.bool())
    assert got.item() == pytest.approx(sum(kept) / 28, rel=1e-5)
    assert router_z_loss((logits[0].to(torch.bfloat16),)).dtype == torch.float32


def test_nothing_but_padding_costs_nothing():
    logits, nothing = (torch.randn(18, 6),), torch.zeros(2, 9, dtype=torch.bool)
    indices = (logits[0].topk(2).indices,)
    assert router_z_loss(logits, nothing) == 0
    assert load_balancing_loss(logits, indices, is_token=nothing) == 0
    assert (expert_usage(indices, 6, nothing) == 0).all()


@pytest.mark.parametrize("mask", [None, PADDING, PADDING.bool()[:, None, None, :].expand(2, 1, 9, 9)])
@pytest.mark.parametrize("name", TINY)
def test_the_loss_of_labels_has_both(name, mask):
    model = TINY[name](router_aux_loss_coef=0.3, router_z_loss_coef=0.02)
    arguments = {"labels": IDS, "attention_mask": mask}
    output = model(IDS, output_router_logits=True, **arguments)
    # what does not see itself is padding
    is_token = None if mask is None else PADDING.bool()
    function = "sigmoid" if name == "llada2_moe" else "softmax"
    balance = load_balancing_loss(output.router_logits, output.router_indices, function, is_token)
    expected = 0.3 * balance + 0.02 * router_z_loss(output.router_logits, is_token)
    torch.testing.assert_close(output.aux_loss, expected)
    torch.testing.assert_close(output.loss, model(IDS, **arguments).loss + expected)
    again = router_aux_loss(model.config, output.router_logits, output.router_indices, is_token)
    torch.testing.assert_close(again, expected)


def test_published_weights():
    assert (tiny_llada_moe().config.router_aux_loss_coef, tiny_llada_moe().config.router_z_loss_coef) == (0.01, 0.001)
    # the bias of its routers balances LLaDA2
    assert tiny_llada2_moe()(IDS, output_router_logits=True).aux_loss == 0


def test_padding_does_not_count():
    model = tiny_llada_moe()
    rows = IDS.clone()
    output = model(rows, attention_mask=PADDING, output_router_logits=True)
    rows[1, :4] = 7
    other = model(rows, attention_mask=PADDING, output_router_logits=True)
    torch.testing.assert_close(other.aux_loss, output.aux_loss)
    assert not torch.equal(other.router_logits[0], output.router_logits[0])


@pytest.mark.parametrize("name", TINY)
def test_the_loss_evens_the_load(name):
    """Descending it alone lets experts be used that were not."""
    model = TINY[name](num_hidden_layers=2, num_experts=8, num_experts_per_tok=2, router_aux_loss_coef=1.0)
    ids = torch.randint(0, 40, (8, 9))
    (gate,) = [layer.mlp.gate for layer in model.model.layers if layer.is_sparse][-1:]
    with torch.no_grad():
        # a router that sends everything to two experts
        gate.weight.zero_()
        gate.weight[:2] = 3 * torch.randn(32).sign()
        gate.weight[:2] *= torch.tensor([[1.0], [-1.0]])
        for bias in gate.buffers():
            bias.zero_()

    def unevenness() -> float:
        usage = expert_usage(model(ids, output_router_logits=True).router_indices, 8)[-1].float()
        return (usage / usage.sum()).max().item()

    before = unevenness()
    optimizer = torch.optim.Adam([gate.weight], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        model(ids, output_router_logits=True).aux_loss.backward()
        optimizer.step()
    assert unevenness() < 0.6 * before


def test_usage_and_coverage():
    indices = (torch.tensor([[0, 1], [0, 2], [0, 1]]), torch.tensor([[3, 2], [1, 0], [3, 2]]))
    usage = expert_usage(indices, 5)
    assert usage.tolist() == [[3, 2, 1, 0, 0], [1, 1, 2, 2, 0]]
    torch.testing.assert_close((usage > 0).float().mean(dim=-1), torch.tensor([0.6, 0.8]))
    is_token = torch.tensor([[True, False, True]])
    assert expert_usage(indices, 5, is_token).tolist() == [[2, 2, 0, 0, 0], [0, 0, 2, 2, 0]]
    model = tiny_llada2_moe(num_hidden_layers=3)
    output = model(IDS, attention_mask=PADDING, output_router_logits=True)
    usage = expert_usage(output.router_indices, 8, PADDING.bool())
    assert usage.shape == (2, 8) and usage.sum(dim=1).tolist() == [14 * 3] * 2


class TestGradientCheckpointing:
    def gradients(self, model) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(IDS, labels=IDS, output_router_logits=True).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    @pytest.mark.parametrize("name", TINY)
    def test_the_gradient_of_routers_is_kept(self, name):
        model = TINY[name](router_aux_loss_coef=0.5, router_z_loss_coef=0.5).train()
        plain = self.gradients(model)
        model.activation_checkpointing_enable({"use_reentrant": False})
        for key, gradient in self.gradients(model).items():
            torch.testing.assert_close(gradient, plain[key], rtol=0, atol=1e-6, msg=key)

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_a_form_that_loses_it_is_refused(self):
        model = tiny_llada_moe().train()
        model.activation_checkpointing_enable({"use_reentrant": True})
        with pytest.raises(ValueError, match=r'reaches no weight.*"use_reentrant": False'):
            model(IDS, labels=IDS, output_router_logits=True)
        # nothing is lost where nothing is trained, or nothing asked for
        model.eval()
        assert model(IDS, labels=IDS, output_router_logits=True).aux_loss > 0
        model.train()
        model(IDS, labels=IDS).loss.backward()
        with torch.no_grad():
            assert model(IDS, labels=IDS, output_router_logits=True).aux_loss > 0
