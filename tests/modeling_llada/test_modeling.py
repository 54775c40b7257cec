"""What the models compute: against a second implementation, and every argument of `forward`."""

import json
import math

import pytest
import torch
from naive_llada import as_llada_tensors, naive_logits, naive_rotation
from naive_moe import naive_moe_logits
from safetensors.torch import load_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from llada import ILLaDAModel, LLaDA2MoeModel, LLaDAModel, LLaDAModelLM, LLaDAMoEModel
from llada.modeling_llada import attention


LENGTH = 9
BACKBONES = {
    "llada": LLaDAModel,
    "illada": ILLaDAModel,
    "lladamoe": LLaDAMoEModel,
    "llada2_moe": LLaDA2MoeModel,
}
TINY = {"llada": tiny_llada, "illada": tiny_illada, "llada_moe": tiny_llada_moe, "llada2_moe": tiny_llada2_moe}


@pytest.fixture(params=TINY)
def model(request) -> LLaDAModelLM:
    return TINY[request.param]()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 40, (2, LENGTH))


def naive(model: LLaDAModelLM, rows: torch.Tensor, folder) -> torch.Tensor:
    """The answers of the second implementation on what `model` saves."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "num_experts" in settings:
        if settings["tie_word_embeddings"]:
            tensors["lm_head.weight"] = model.lm_head.weight
        return torch.stack([naive_moe_logits(tensors, settings, row) for row in rows])
    if settings["model_type"] == "illada":
        tensors = as_llada_tensors(tensors)
        names = {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_model": "hidden_size"}
        settings |= {name: settings[standard] for name, standard in names.items()}
        settings |= {"n_layers": settings["num_hidden_layers"], "rope_full_precision": False}
    if settings.get("weight_tying"):
        tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"]
    return torch.stack([naive_logits(tensors, settings, row) for row in rows])


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "num_hidden_layers": 3},
        {"hidden_size": 48, "intermediate_size": 20, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_theta": 100.0},
        {"rms_norm_eps": 0.1, "vocab_size": 61},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_a_second_implementation_gives_the_same_logits(name, settings, ids, tmp_path):
    model = TINY[name](**({"tie_word_embeddings": True} if name == "illada" else {}) | settings)
    logits = model(ids).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, naive(model, ids, tmp_path), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "full_precision"),
    [("llada", {}, True), ("llada", {"rope_full_precision": False}, False), ("illada", {}, False)],
    ids=["llada", "llada without full precision", "illada"],
)
def test_rotation_has_the_published_precision(name, settings, full_precision, monkeypatch, ids):
    """In bfloat16 LLaDA rotates in float32 and iLLaDA in bfloat16, bit for bit."""
    model = TINY[name](**settings).to(torch.bfloat16)
    model.set_attn_implementation("eager")
    seen = []
    eager = attention.eager_attention_forward

    def spy(module, query, key, *args, **kwargs):
        seen.append((query, key))
        return eager(module, query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "eager_attention_forward", spy)
    model(ids)
    layer = model.model.layers[0]
    normed = layer.input_layernorm(model.model.embed_tokens(ids))
    for rotated, projection in zip(seen[0], (layer.self_attn.q_proj, layer.self_attn.k_proj), strict=True):
        states = projection(normed).view(2, LENGTH, -1, 8).transpose(1, 2)
        assert rotated.dtype == torch.bfloat16
        assert torch.equal(rotated, naive_rotation(states, 500000.0, full_precision))
        assert not torch.equal(rotated, naive_rotation(states, 500000.0, not full_precision))


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_follows_the_second_implementation(name, ids, tmp_path):
    model = TINY[name]().to(torch.bfloat16)
    logits = model(ids).logits
    expected = naive(model, ids, tmp_path)
    assert logits.dtype == expected.dtype == (torch.float32 if name == "llada2_moe" else torch.bfloat16)
    # a few roundings of 2^-8 on logits of this size
    assert (logits.float() - expected.float()).abs().mean() < 0.02 * expected.float().std()


def test_norms_are_computed_in_float32():
    norm = attention.LLaDARMSNorm(64, eps=1e-5).to(torch.bfloat16)
    hidden = 300 * torch.randn(1, 64).to(torch.bfloat16)
    exact = hidden.double()
    exact = exact / (exact.square().mean() + 1e-5).sqrt()
    assert torch.equal(norm(hidden), exact.to(torch.bfloat16))
    # rounded before it is scaled, and after
    torch.nn.init.uniform_(norm.weight)
    assert torch.equal(norm(hidden), (norm.weight * exact.to(torch.bfloat16)).to(torch.bfloat16))
    assert not torch.equal(norm(hidden), (norm.weight.double() * exact).to(torch.bfloat16))
    torch.nn.init.ones_(norm.weight)
    assert torch.equal(norm.to(torch.float32)(torch.zeros(1, 64)), torch.zeros(1, 64))
    assert repr(norm) == "LLaDARMSNorm((64,), eps=1e-05)"


def test_outputs(model, ids):
    output = model(ids)
    assert isinstance(output, MaskedLMOutput)
    assert output.logits.shape == (2, LENGTH, 48)
    assert (output.loss, output.hidden_states, output.attentions) == (None, None, None)
    assert torch.equal(model(ids, return_dict=False)[0], output.logits)
    assert type(model.model) is BACKBONES[model.config.model_type]
    backbone = model.model(ids)
    assert isinstance(backbone, BaseModelOutput)
    assert torch.equal(model.lm_head(backbone.last_hidden_state), output.logits)


def test_logits_are_not_shifted(model, ids):
    """The position whose token is swapped is the one whose logits move most."""
    embeds = model.get_input_embeddings()
    with torch.no_grad():
        # layers that add nothing leave the embedding alone: logits of a position are those of its own token
        for name, parameter in model.model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    logits = model(ids).logits
    torch.testing.assert_close(logits, model.lm_head(model.model.norm(embeds(ids))))


@pytest.mark.parametrize(
    "keep",
    [0, 1, 4, LENGTH + 5, torch.tensor([2, 0, 8]), torch.tensor([[2, 0], [8, 8]]), "mask", torch.arange(LENGTH) > 5],
    ids=["all", "last", "last 4", "more than there are", "1-D", "2-D", "mask", "1-D mask"],
)
def test_logits_to_keep(model, ids, keep):
    everything = model(ids).logits
    labels = torch.randint(0, 48, ids.shape)
    labels[0, 2] = labels[1, 8] = -100
    labels[1, 0] = 7
    if isinstance(keep, str):
        keep = torch.rand(ids.shape) < 0.5
    if isinstance(keep, int):
        expected, kept = (everything[:, -keep:], labels[:, -keep:]) if keep else (everything, labels)
    elif keep.ndim == 1:
        expected, kept = everything[:, keep], labels[:, keep]
    elif keep.dtype == torch.bool:
        expected, kept = everything[keep], labels[keep]
    else:
        expected = torch.stack([everything[row, keep[row]] for row in range(2)])
        kept = torch.stack([labels[row, keep[row]] for row in range(2)])
    output = model(ids, labels=labels, logits_to_keep=keep)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-6)
    counted = kept != -100
    log_probabilities = expected[counted].log_softmax(-1)
    loss = -log_probabilities.gather(-1, kept[counted][:, None]).mean()
    torch.testing.assert_close(output.loss, loss)


def test_the_head_sees_only_what_is_kept(model, ids):
    rows = []
    model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].numel() // args[0].shape[-1]))
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[0, 3] = mask[1, 5] = mask[1, 6] = True
    for keep, number in ((0, 18), (2, 4), (torch.tensor([1]), 2), (mask, 3)):
        model(ids, logits_to_keep=keep)
        assert rows.pop() == number


def test_nothing_kept_is_an_empty_tensor(model, ids):
    nothing = torch.zeros(ids.shape, dtype=torch.bool)
    assert model(ids, logits_to_keep=nothing).logits.shape == (0, 48)
    assert model(ids, logits_to_keep=torch.tensor([], dtype=torch.long)).logits.shape == (2, 0, 48)


def test_labels_give_the_unshifted_loss(model, ids):
    labels = torch.randint(0, 48, ids.shape)
    labels[0] = -100
    labels[1, 4:] = -100
    output = model(ids, labels=labels)
    total = -sum(output.logits[1, i].log_softmax(-1)[labels[1, i]] for i in range(4))
    torch.testing.assert_close(output.loss, total / 4)
    torch.testing.assert_close(model(ids, labels=labels, return_dict=False)[0], total / 4)
    for number in (7, torch.tensor(7)):
        torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=number).loss, total / 7)


def test_a_model_that_knows_nothing_loses_the_log_of_the_vocabulary(model, ids):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(48), abs=1e-6)


def test_the_loss_is_float32_in_half_precision(model, ids):
    model.to(torch.bfloat16)
    output = model(ids, labels=ids)
    assert output.loss.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), ids.flatten())
    torch.testing.assert_close(output.loss, expected)


def test_embeddings_instead_of_ids(model, ids):
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_positions(model, ids):
    plain = model(ids).logits
    positions = torch.arange(LENGTH)
    for given in (positions[None], positions.expand(2, -1), positions.expand(2, -1) + 20):
        # relative: where the text begins does not matter
        torch.testing.assert_close(model(ids, position_ids=given).logits, plain, rtol=0, atol=1e-5)
    # positions, not places, make the order
    order = torch.randperm(LENGTH)
    shuffled = model(ids[:, order], position_ids=order[None]).logits
    torch.testing.assert_close(shuffled, plain[:, order], rtol=0, atol=1e-5)
    assert (model(ids[:, order]).logits - plain[:, order]).abs().max() > 0.1
    # every row has its own
    rows = torch.stack((positions, 2 * positions))
    both = model(ids, position_ids=rows).logits
    torch.testing.assert_close(both[0], plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:], model(ids[1:], position_ids=rows[1:]).logits, rtol=0, atol=1e-5)
    assert (both[1] - plain[1]).abs().max() > 0.1


def test_rows_do_not_see_each_other(model, ids):
    torch.testing.assert_close(model(ids).logits[1], model(ids[1:]).logits[0], rtol=0, atol=1e-5)


def test_hidden_states(model, ids):
    for output in (model(ids, output_hidden_states=True), model.model(ids, output_hidden_states=True)):
        assert len(output.hidden_states) == 3
        assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), model(ids).logits)
    layer = model.model.layers[0]
    positions = torch.arange(LENGTH)[None]
    expected = layer(output.hidden_states[0], model.model.rotary_emb(output.hidden_states[0], positions))
    torch.testing.assert_close(output.hidden_states[1], expected)
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3


def test_attentions(model, ids):
    model.set_attn_implementation("eager")
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    output = model(ids, attention_mask=mask, output_attentions=True)
    assert [weights.shape for weights in output.attentions] == [(2, 4, LENGTH, LENGTH)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, LENGTH))
        assert (weights[1, ..., :3] == 0).all() and (weights[0] > 0).all()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("llada", "attention_dropout"),
        ("llada", "embedding_dropout"),
        ("llada", "residual_dropout"),
        ("illada", "attention_dropout"),
        ("illada", "resid_pdrop"),
    ],
)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_dropout_drops_in_training_only(name, field, backend, ids):
    model = TINY[name](**{field: 0.5})
    model.set_attn_implementation(backend)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.01
    plain = TINY[name]().train()
    plain.set_attn_implementation(backend)
    assert torch.equal(plain(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("field", ["embedding_dropout", "residual_dropout"])
def test_dropout_has_the_configured_rate(field):
    model = tiny_llada(**{field: 0.25}, hidden_size=512, num_hidden_layers=1).train()
    seen = []
    dropout = model.model.dropout if field == "embedding_dropout" else model.model.layers[0].dropout
    dropout.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(torch.arange(40)[None])
    # of the embedding once, of attention and of the feed-forward layer
    assert len(seen) == (1 if field == "embedding_dropout" else 2)
    for before, after in seen:
        assert (after == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        torch.testing.assert_close(after[after != 0], before[after != 0] / 0.75)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model, ids, use_reentrant, masked):
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    kwargs = {"attention_mask": mask} if masked else {}
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(ids, labels=ids, **kwargs).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients()
    # once forward, once for the gradient
    assert len(calls) == 2
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-7, msg=name)


def test_gradient_checkpointing_repeats_dropout(ids):
    model = tiny_llada(residual_dropout=0.5, attention_dropout=0.5).train()

    def gradient() -> torch.Tensor:
        torch.manual_seed(3)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return model.model.embed_tokens.weight.grad.clone()

    plain = gradient()
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "Give either `input_ids` or `inputs_embeds`, and not both"),
        ({"input_ids": "ids", "inputs_embeds": torch.zeros(2, LENGTH, 32)}, "Give either `input_ids`"),
        ({"input_ids": "ids", "past_key_values": object()}, "`past_key_values` is a object"),
        (
            {"input_ids": "ids", "attention_bias": torch.zeros(1)},
            "`attention_bias` is not supported; pass it as a 4-D",
        ),
        ({"input_ids": "ids", "position_ids": torch.arange(LENGTH)}, rf"`position_ids` has shape \({LENGTH},\); give"),
        ({"input_ids": "ids", "position_ids": torch.zeros(3, LENGTH, dtype=torch.long)}, "`position_ids` has shape"),
        ({"input_ids": "ids", "position_ids": torch.arange(4)[None]}, "`position_ids` has shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(model, ids, kwargs, message):
    kwargs = {name: ids if value is ids or isinstance(value, str) else value for name, value in kwargs.items()}
    for module in (model, model.model):
        with pytest.raises(ValueError, match=message):
            module(**kwargs)


def test_null_arguments_of_other_models_are_welcome(model, ids):
    null = {"past_key_values": None, "attention_bias": None, "use_cache": False}
    assert torch.equal(model(ids, **null).logits, model(ids).logits)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rope_scaling(scaling):
    long = torch.randint(0, 40, (1, 80))
    plain = tiny_llada()
    scaled = tiny_llada(rope_scaling=scaling)
    scaled.load_state_dict(plain.state_dict())
    difference = (scaled(long).logits - plain(long).logits).abs().max()
    assert difference > 0.01 and scaled(long).logits.isfinite().all()
    # yarn lengthens queries and keys, the others turn them only
    cos, sin = scaled.model.rotary_emb(torch.zeros(1, 80, 32), torch.arange(80)[None])
    length = 1 + 0.1 * math.log(2) if scaling["rope_type"] == "yarn" else 1.0
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, length**2))
    if scaling["rope_type"] == "linear":
        # positions divided by the factor
        halved = plain(long, position_ids=torch.arange(80)[None] / 2).logits
        torch.testing.assert_close(scaled(long).logits, halved, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}], ids=str)
def test_a_stretched_model_generates_longer_texts(scaling):
    prompt = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="102 positions, more than the 64"):
        tiny_llada().generate(prompt, max_new_tokens=100, steps=4)
    model = tiny_llada(rope_scaling=scaling)
    assert model.generate(prompt, max_new_tokens=100, steps=4, eos_early_stop=False).shape == (1, 102)
    with pytest.raises(ValueError, match="129 positions, more than the 128"):
        model.generate(prompt, max_new_tokens=127, steps=4)


def test_fresh_weights_have_the_configured_spread():
    model = LLaDAModelLM(tiny_llada(hidden_size=256, initializer_range=0.07).config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.05), name
    # the padding token is the end of text: its embedding is drawn and trained like every other
    embedding = model.get_input_embeddings()
    assert embedding.padding_idx is None
    pad = model.config.pad_token_id
    assert embedding.weight[pad].abs().max() > 0
    model(torch.full((1, 4), pad), labels=torch.full((1, 4), pad)).loss.backward()
    assert embedding.weight.grad[pad].abs().max() > 0
