"""Losses that a model computes for a few positions at a time against those of all logits."""

import pytest
import torch
from golden import load_golden
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

from benchmarks.training import peak_bytes
from llada.modeling_llada import token_losses


FAMILIES = {
    "llada": tiny_llada,
    "tied": lambda: tiny_llada(tie_word_embeddings=True),
    "illada": tiny_illada,
    "llada_moe": tiny_llada_moe,
    "llada2_moe": tiny_llada2_moe,
}
ROWS, LENGTH, MASK = 3, 8, 40


@pytest.fixture(params=FAMILIES)
def model(request):
    model = FAMILIES[request.param]()
    if "sparse" in model.config.mlp_layer_types:
        # the default multiplies no float64
        model.set_experts_implementation("eager")
    return model.double().train()


@pytest.fixture
def batch():
    """Noisy tokens, labels, the mask (15 positions, or three and a half chunks of four) and weights of the losses."""
    targets = torch.randint(0, 40, (ROWS, LENGTH))
    masked = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    masked[0, 3:], masked[1], masked[2, 4:6] = True, True, True
    assert masked.sum() == 15
    return targets.masked_fill(masked, MASK), targets, masked, torch.rand(ROWS, LENGTH, dtype=torch.float64)


def _of_all_logits(model, ids, targets, masked, **kwargs):
    logits = model(ids, **kwargs).logits
    losses = cross_entropy(logits.double().transpose(1, 2), targets, reduction="none") * masked
    return losses, (logits.argmax(-1) == targets) & masked


def _gradients(model, losses, weights):
    model.zero_grad(set_to_none=True)
    (losses * weights).sum().backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


def _weighted(model, ids, targets, masked, weights, **kwargs):
    return model(ids, labels=targets, logits_to_keep=masked, token_losses=True, loss_weights=weights, **kwargs)


def _assert_equal_to_all_logits(model, batch):
    ids, targets, masked, weights = batch
    # the last hidden state of all positions, whose gradient is that of the head's input
    states = []
    norm = next(module for name, module in model.named_modules() if name.endswith("model.norm"))

    def keep(module, inputs, output):
        states.append(output)
        if output.requires_grad:
            output.retain_grad()

    handle = norm.register_forward_hook(keep)
    expected, answers = _of_all_logits(model, ids, targets, masked)
    expected_gradients = _gradients(model, expected, weights)
    # without weights that are known before, and with them
    for known in (None, weights / 3):
        output = _weighted(model, ids, targets, masked, known)
        differentiable = (output.token_losses, weights) if known is None else (output.loss, torch.full((), 3.0))
        gradients = _gradients(model, *differentiable)
        torch.testing.assert_close(output.token_losses, expected, rtol=0, atol=1e-6)
        assert torch.equal(output.correct, answers)
        assert gradients.keys() == expected_gradients.keys() and len(gradients) > 2
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(states.pop().grad, states[0].grad, rtol=0, atol=1e-6)
    handle.remove()
    assert not output.token_losses.requires_grad
    torch.testing.assert_close(output.loss * 3, (expected * weights).sum(), rtol=0, atol=1e-6)
    assert len(states) == 1 and states[0].grad.abs().max() > 1e-3
    return gradients


def test_losses_and_gradients_are_those_of_all_logits(model, batch, monkeypatch):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    # LLaDA2 computes logits in float32 in any case
    exact = type("ExactConfig", (type(model.config),), {"float32_logits": False})
    model.config.__class__ = exact
    gradients = _assert_equal_to_all_logits(model, batch)
    head = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    assert gradients[head].abs().max() > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_of_head_and_layers(batch, monkeypatch, dropout):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    settings = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, lora_dropout=dropout)
    model = get_peft_model(tiny_llada().double(), settings, autocast_adapter_dtype=False)
    if not dropout:
        gradients = _assert_equal_to_all_logits(model, batch)
        assert any("lm_head.lora_B" in name for name in gradients) and all("lora" in name for name in gradients)
        return
    # what is computed again drops the same: a step along the gradient changes the loss as the gradient says
    ids, targets, masked, weights = batch
    weight = next(tensor for name, tensor in model.named_parameters() if "lm_head.lora_B" in name)

    def loss(is_known):
        torch.manual_seed(5)
        if is_known:
            return _weighted(model, ids, targets, masked, weights).loss
        output = model(ids, labels=targets, logits_to_keep=masked, token_losses=True)
        return (output.token_losses * weights).sum()

    for is_known in (False, True):
        model.zero_grad()
        loss(is_known).backward()
        direction = torch.randn_like(weight)
        expected, step = (weight.grad * direction).sum(), 1e-6
        with torch.no_grad():
            weight.add_(step * direction)
            above = loss(is_known)
            weight.sub_(2 * step * direction)
            torch.testing.assert_close((above - loss(is_known)) / (2 * step), expected, rtol=1e-5, atol=1e-6)
            weight.add_(step * direction)


def test_gradients_reach_the_head_alone(batch, monkeypatch):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, masked, weights = batch
    model = tiny_llada().double().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    expected = _gradients(model, _of_all_logits(model, ids, targets, masked)[0], weights)
    losses = model(ids, labels=targets, logits_to_keep=masked, token_losses=True).token_losses
    torch.testing.assert_close(_gradients(model, losses, weights), expected, rtol=0, atol=1e-6)
    loss = _weighted(model, ids, targets, masked, weights).loss
    torch.testing.assert_close(_gradients(model, loss, torch.ones(())), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("trained", ["all", "layers"])
def test_logits_are_computed_once_where_weights_are_known(batch, monkeypatch, trained):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, masked, weights = batch
    model = tiny_llada().double().train()
    model.lm_head.requires_grad_(trained == "all")
    calls, hooked = [], []
    model.lm_head.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    if trained == "all":
        model.lm_head.weight.register_hook(lambda gradient: hooked.append(gradient) or 2 * gradient)
    expected = _gradients(model, _of_all_logits(model, ids, targets, masked)[0], weights)
    del calls[:], hooked[:]
    gradients = _gradients(model, _weighted(model, ids, targets, masked, weights).loss, torch.ones(()))
    assert calls == [4, 4, 4, 3] and len(hooked) == (trained == "all")
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)
    # nothing is kept for a gradient that nobody wants
    with torch.no_grad():
        assert not _weighted(model, ids, targets, masked, weights).loss.requires_grad


@pytest.mark.parametrize("kind", ["subclass", "float16", "entropies"])
def test_weights_change_nothing_where_the_gradient_has_to_wait(batch, monkeypatch, kind):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, masked, weights = batch
    model, settings = tiny_llada(), {}
    weights = weights.float()
    if kind == "subclass":
        weight = torch.nn.Parameter(model.lm_head.weight.data.as_subclass(type("Sharded", (torch.Tensor,), {})))
        model.lm_head.weight = weight
        assert type(weight) is not torch.nn.Parameter
    elif kind == "entropies":
        settings["entropy_temperature"] = 1.0
    calls = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    with torch.autocast("cpu", torch.float16, enabled=kind == "float16"):
        losses = model(ids, labels=targets, logits_to_keep=masked, token_losses=True, **settings).token_losses
        expected = _gradients(model, losses, weights)
        del calls[:]
        output = _weighted(model, ids, targets, masked, weights, **settings)
    gradients = _gradients(model, output.loss, torch.ones(()))
    # three chunks of four are computed once more
    assert calls[:4] == [4, 4, 4, 3] and sorted(calls[4:]) == [4, 4, 4]
    torch.testing.assert_close(gradients, expected)
    assert not output.token_losses.requires_grad


def test_known_weights_in_bfloat16(batch, monkeypatch):
    """Half of the weights, and mixed precision."""
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, masked, weights = batch
    weights = weights.float()
    for model, is_mixed in ((tiny_llada().bfloat16(), False), (tiny_llada(), True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            losses = model(ids, labels=targets, logits_to_keep=masked, token_losses=True).token_losses
            output = _weighted(model, ids, targets, masked, weights)
        expected = _gradients(model, losses, weights)
        gradients = _gradients(model, output.loss, torch.ones(()))
        assert output.loss.dtype == torch.float32 and {one.dtype for one in gradients.values()} == {model.dtype}
        torch.testing.assert_close(output.loss, (losses * weights).sum())
        torch.testing.assert_close(gradients, expected, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_any_number_of_masks(batch, monkeypatch, count):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, _, weights = batch
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked.view(-1)[5 : 5 + count] = True
    model = tiny_llada().double()
    losses = model(ids, labels=targets, logits_to_keep=masked, token_losses=True).token_losses
    expected, _ = _of_all_logits(model, ids, targets, masked)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-6)
    loss = _weighted(model, ids, targets, masked, weights).loss
    torch.testing.assert_close(loss, (losses * weights).sum(), rtol=0, atol=1e-6)
    # every weight has a gradient, for which data parallelism waits
    assert len(_gradients(model, losses, weights)) == len(list(model.parameters()))
    assert len(_gradients(model, loss, torch.ones(()))) == len(list(model.parameters()))


def test_positions_without_a_label_are_not_scored(batch):
    ids, targets, masked, _ = batch
    model = tiny_llada()
    output = model(ids, labels=targets.masked_fill(ids != MASK, -100), logits_to_keep=masked | True, token_losses=True)
    expected = model(ids, labels=targets, logits_to_keep=masked, token_losses=True)
    torch.testing.assert_close(output.token_losses, expected.token_losses)
    assert torch.equal(output.correct, expected.correct)


def test_labels_of_the_first_positions_alone(model, batch):
    ids, targets, masked, weights = batch
    masked[:, 5:] = False
    widths = []
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))
    # the last layer leaves the others out, unless its router is a witness for all
    for records_routers in {False, "sparse" in model.config.mlp_layer_types}:
        settings = {"token_losses": True, "output_router_logits": records_routers}
        whole = model(ids, labels=targets, logits_to_keep=masked, **settings)
        expected = _gradients(model, whole.token_losses, weights)
        first = model(ids, labels=targets[:, :5], logits_to_keep=masked[:, :5], **settings)
        torch.testing.assert_close(first.token_losses, whole.token_losses[:, :5], rtol=0, atol=1e-9)
        torch.testing.assert_close(_gradients(model, first.token_losses, weights[:, :5]), expected, rtol=0, atol=1e-9)
        assert widths[-2:] == [LENGTH, LENGTH if records_routers else 5]
        if records_routers:
            torch.testing.assert_close(first.aux_loss, whole.aux_loss)


@pytest.mark.parametrize("labels", [torch.ones(2, 5).long(), torch.ones(1, 4).long(), torch.ones(2, 3).long()])
def test_labels_that_do_not_fit_are_refused(labels):
    scored = torch.ones(2, 4, dtype=torch.bool) if labels.shape[1] == 3 else labels.bool()
    with pytest.raises(ValueError, match=r"write both as \(2, 4\), or both shorter, for the first positions"):
        tiny_llada()(torch.ones(2, 4).long(), labels=labels, logits_to_keep=scored, token_losses=True)


def test_softmax_is_taken_in_float32(batch):
    ids, targets, masked, _ = batch
    model = tiny_llada().bfloat16()
    losses = model(ids, labels=targets, logits_to_keep=masked, token_losses=True).token_losses
    assert losses.dtype == torch.float32
    expected, _ = _of_all_logits(model, ids, targets, masked)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropies_and_their_gradients_are_those_of_all_logits(batch, monkeypatch, temperature):
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    ids, targets, masked, weights = batch
    model = tiny_llada().double()
    logits = model(ids).logits / temperature
    expected = torch.distributions.Categorical(logits=logits).entropy() * masked
    expected_gradients = _gradients(model, expected, weights)
    output = model(ids, labels=targets, logits_to_keep=masked, token_losses=True, entropy_temperature=temperature)
    torch.testing.assert_close(output.entropies, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(_gradients(model, output.entropies, weights), expected_gradients, rtol=0, atol=1e-6)
    plain = model(ids, labels=targets, logits_to_keep=masked, token_losses=True)
    assert plain.entropies is None
    torch.testing.assert_close(output.token_losses, plain.token_losses)
    nothing = model(ids, labels=targets, logits_to_keep=masked & False, token_losses=True, entropy_temperature=1.0)
    assert nothing.entropies.shape == ids.shape and not nothing.entropies.any()


def test_certain_predictions_have_a_gradient():
    states = torch.tensor([[[1000.0, -1000.0, 0.0]]], requires_grad=True)
    labels, scored = torch.zeros(1, 1).long(), torch.ones(1, 1, dtype=torch.bool)
    entropies = token_losses.chunked_cross_entropy(torch.nn.Identity(), states, labels, scored, 0.5).entropies
    entropies.sum().backward()
    assert entropies.item() == 0 and torch.equal(states.grad, torch.zeros_like(states))


@pytest.mark.parametrize(
    "arguments",
    [
        {"entropy_temperature": 1.0},
        {"entropy_temperature": 0.0, "token_losses": True},
        {"entropy_temperature": float("nan"), "token_losses": True},
    ],
    ids=["no losses", "zero", "nan"],
)
def test_temperature_of_no_entropy_is_refused(arguments):
    ids = torch.ones(2, 4).long()
    message = f"`entropy_temperature={arguments['entropy_temperature']}` needs `token_losses=True`, and to be above 0"
    with pytest.raises(ValueError, match=message):
        tiny_llada()(ids, labels=ids, logits_to_keep=ids > 0, **arguments)


@pytest.mark.parametrize(
    ("weights", "arguments"),
    [
        (torch.ones(2, 4), {"labels": torch.ones(2, 4).long()}),
        (torch.ones(2, 4), {}),
        (torch.ones(2), {"labels": torch.ones(2, 4).long(), "token_losses": True}),
    ],
    ids=["no losses", "no labels", "shape"],
)
def test_weights_of_no_loss_are_refused(weights, arguments):
    ids = torch.ones(2, 4).long()
    with pytest.raises(ValueError, match=r"`loss_weights` of shape .* needs `token_losses=True` and `labels` of that"):
        tiny_llada()(ids, logits_to_keep=ids > 0, loss_weights=weights, **arguments)


def test_routers_are_recorded_beside_the_losses(batch):
    ids, targets, masked, weights = batch
    model, weights = tiny_llada_moe(router_aux_loss_coef=0.1).train(), weights.float()
    output = model(ids, labels=targets, logits_to_keep=masked, token_losses=True, output_router_logits=True)
    expected = model(ids, output_router_logits=True)
    torch.testing.assert_close(output.aux_loss, expected.aux_loss)
    assert output.aux_loss.requires_grad and len(output.router_logits) == len(expected.router_logits)
    assert output.loss is None and output.logits is None
    loss = _weighted(model, ids, targets, masked, weights, output_router_logits=True).loss
    torch.testing.assert_close(loss, (output.token_losses * weights).sum())


def test_losses_of_a_golden_model():
    golden = load_golden("llada")
    ids, masked = golden.expected["loss.input_ids"], golden.expected["loss.masked"]
    noisy = ids.masked_fill(masked, 300)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder)
    states = model.model(noisy).last_hidden_state
    losses = token_losses.chunked_cross_entropy(model.lm_head, states, ids, masked).token_losses
    output = model(noisy, labels=ids, logits_to_keep=masked, token_losses=True)
    torch.testing.assert_close(output.token_losses, losses)
    # the plain loss of the same labels is their mean
    plain = model(noisy, labels=ids.masked_fill(~masked, -100)).loss
    torch.testing.assert_close(losses.sum() / masked.sum(), plain)


@pytest.mark.parametrize(
    "arguments",
    [
        {"logits_to_keep": torch.ones(2, 4, dtype=torch.bool)},
        {"labels": torch.ones(2, 4).long()},
        {"labels": torch.ones(2, 4).long(), "logits_to_keep": torch.arange(3)},
        {
            "labels": torch.ones(2, 4).long(),
            "logits_to_keep": torch.ones(2, 4, dtype=torch.bool),
            "num_logits_to_keep": [4, 4],
        },
    ],
    ids=["no labels", "no mask", "indices", "sampling"],
)
def test_what_is_missing_is_named(arguments):
    with pytest.raises(ValueError, match="`token_losses=True` needs `labels` and a boolean `logits_to_keep`"):
        tiny_llada()(torch.ones(2, 4).long(), token_losses=True, **arguments)


def _peak(model, ids, targets, masked, of_chunks, **kwargs):
    """Most bytes that a training step takes at a time, parameters and their gradients aside."""

    def step():
        if of_chunks == "known":
            losses = _weighted(model, ids, targets, masked, torch.ones(ids.shape)).loss
        elif of_chunks:
            output = model(ids, labels=targets, logits_to_keep=masked, token_losses=True, **kwargs)
            losses = output.token_losses if output.entropies is None else output.token_losses + output.entropies
        else:
            losses = cross_entropy(model(ids).logits.float().transpose(1, 2), targets, reduction="none") * masked
        losses.sum().backward()

    step()
    model.zero_grad(set_to_none=False)
    return peak_bytes(step)


@pytest.mark.parametrize(
    ("of_chunks", "kwargs"),
    [(True, {}), ("known", {}), (True, {"entropy_temperature": 0.5})],
    ids=["losses", "weighted", "and entropies"],
)
def test_peak_memory_does_not_grow_with_the_mask_ratio(of_chunks, kwargs):
    # eight chunks of a vocabulary beside which the layers are small
    model = tiny_llada(vocab_size=8192).train()
    targets = torch.randint(0, 40, (4, 256))
    positions = torch.arange(256)
    peaks = []
    for share in (0.125, 1.0):
        masked = (positions < 256 * share).expand(4, -1)
        peaks.append(_peak(model, targets.masked_fill(masked, MASK), targets, masked, of_chunks, **kwargs))
    assert max(peaks) < 1.2 * min(peaks)
    of_all = _peak(model, targets.masked_fill(masked, MASK), targets, masked, of_chunks=False)
    assert max(peaks) < (0.2 if not kwargs else 0.3) * of_all


def test_a_second_backward_pass_is_no_silent_mistake(batch):
    ids, targets, masked, _ = batch
    losses = tiny_llada()(ids, labels=targets, logits_to_keep=masked, token_losses=True).token_losses
    losses.sum().backward(retain_graph=True)
    # the gradient lies where the probabilities were
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()
    loss = _weighted(tiny_llada(), ids, targets, masked, torch.ones(ids.shape)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="The gradient of this loss was taken before; call the model again"):
        loss.backward()
