"""Masks of every form, on every attention back-end that runs here."""

import pytest
import torch
from golden import load_golden, rounding
from naive_llada import naive_logits
from safetensors.torch import load_file
from tiny_models import tiny_illada, tiny_llada
from torch.nn.attention.flex_attention import create_block_mask

from llada import ILLaDAForCausalLM, LLaDAModelLM
from llada.modeling_llada.attention_masks import expand_attention_mask


BACKENDS = ["eager", "sdpa", "flex_attention"]
LENGTH = 10
CLOSE = {"rtol": 0, "atol": 1e-5}


pytestmark = pytest.mark.usefixtures("interpret_flex_attention")


def on(backend: str, **overrides) -> LLaDAModelLM:
    model = tiny_llada(**overrides).requires_grad_(False)
    model.set_attn_implementation(backend)
    return model


def ids(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 40, (batch, LENGTH))


def pairs(batch: int = 2) -> torch.Tensor:
    """For every query the keys it may see, at random, itself among them."""
    return (torch.rand(batch, LENGTH, LENGTH) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)


def additive(visible: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, float("-inf"))


def naive(model: LLaDAModelLM, rows: torch.Tensor, visible: torch.Tensor, tmp_path) -> torch.Tensor:
    model.save_pretrained(tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), model.config.to_dict()
    return torch.stack([naive_logits(tensors, config, row, mask) for row, mask in zip(rows, visible, strict=True)])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llada", "illada"])
def test_published_answers_with_padding_on_either_side(name, backend):
    golden = load_golden(name)
    model_class = {"llada": LLaDAModelLM, "illada": ILLaDAForCausalLM}[name]
    model = model_class.from_pretrained(golden.folder, attn_implementation=backend)
    assert model.config._attn_implementation == backend
    rows, mask = golden.expected["logits.input_ids"], golden.expected["logits.attention_mask"]
    # rows without padding, padded on the left and, for LLaDA, on the right
    assert (mask[:, 0] == 0).any() and (mask[:, -1] == 0).any() == (name == "llada")
    full, masked = golden.logits, golden.expected["logits.masked"]
    close = rounding(full)
    for given in (mask, mask.bool(), mask.float()):
        torch.testing.assert_close(model(rows, attention_mask=given).logits, masked, **close)
    torch.testing.assert_close(model(rows).logits, full, **close)
    torch.testing.assert_close(model(rows, attention_mask=torch.ones_like(mask)).logits, full, **close)


@pytest.mark.parametrize("name", ["llada", "illada"])
def test_eager_and_sdpa_are_the_same_function(name):
    golden = load_golden(name)
    model_class = {"llada": LLaDAModelLM, "illada": ILLaDAForCausalLM}[name]
    rows, mask = golden.expected["logits.input_ids"], golden.expected["logits.attention_mask"]
    logits = []
    for backend in ("eager", "sdpa"):
        model = model_class.from_pretrained(golden.folder, attn_implementation=backend, dtype=torch.float64)
        logits.append(model(rows, attention_mask=mask).logits)
    # the softmax of eager attention and the norms are float32
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(backend, side):
    model, rows = on(backend), ids()
    mask = torch.ones_like(rows)
    tokens = slice(3, None) if side == "left" else slice(None, -3)
    padding = slice(None, 3) if side == "left" else slice(-3, None)
    mask[1, padding] = 0
    logits = model(rows, attention_mask=mask).logits
    torch.testing.assert_close(logits[1, tokens], model(rows[1:, tokens]).logits[0], **CLOSE)
    torch.testing.assert_close(logits[0], model(rows[:1]).logits[0], **CLOSE)
    # what stands under the padding does not matter
    other = rows.clone()
    other[1, padding] = 7
    torch.testing.assert_close(model(other, attention_mask=mask).logits[1, tokens], logits[1, tokens])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["bool", "long", "additive", "3-D", "3-D additive", "one for all rows"])
def test_masks_per_query_position(backend, form, tmp_path):
    model, rows, visible = on(backend), ids(), pairs()
    if backend == "flex_attention" and "additive" in form:
        with pytest.raises(ValueError, match="crashes on a CPU where a mask is added"):
            model(rows, attention_mask=additive(visible))
        return
    if form == "one for all rows":
        visible = visible[:1].expand(2, -1, -1)
    mask = {
        "bool": lambda: visible[:, None],
        "long": lambda: visible[:, None].long(),
        "additive": lambda: additive(visible)[:, None],
        "3-D": lambda: visible,
        "3-D additive": lambda: additive(visible),
        "one for all rows": lambda: visible[:1, None],
    }[form]()
    logits = model(rows, attention_mask=mask).logits
    torch.testing.assert_close(logits, naive(model, rows, visible, tmp_path), **CLOSE)
    assert (logits - model(rows).logits).abs().max() > 0.1


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_masks_per_head(backend):
    model, rows, visible = on(backend, num_hidden_layers=1), ids(), pairs()
    by_head = torch.stack((visible, ~visible | torch.eye(LENGTH, dtype=torch.bool)), dim=1).repeat(1, 2, 1, 1)
    seen = model(rows, attention_mask=by_head).logits
    torch.testing.assert_close(seen, model(rows, attention_mask=additive(by_head)).logits, **CLOSE)
    # head 0 and 2 see `visible`, 1 and 3 the rest: what remains of a head that is switched off is the mask of its own
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.o_proj.weight.view(32, 4, 8)
        weight[:, 1::2] = 0
    torch.testing.assert_close(
        model(rows, attention_mask=by_head).logits, model(rows, attention_mask=visible).logits, **CLOSE
    )
    assert (seen - model(rows, attention_mask=by_head).logits).abs().max() > 0.01


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_additive_masks_weigh(backend, tmp_path):
    """A bias other than 0 and -inf is added to the scores."""
    model, rows = on(backend), ids()
    bias = torch.randn(2, 1, LENGTH, LENGTH)
    logits = model(rows, attention_mask=bias).logits
    reference = on("eager")
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits, reference(rows, attention_mask=bias).logits, **CLOSE)
    # a constant added to all scores of a query changes nothing
    torch.testing.assert_close(model(rows, attention_mask=bias + torch.randn(2, 1, LENGTH, 1)).logits, logits, **CLOSE)
    assert (logits - model(rows).logits).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["bool", "-inf", "lowest float32", "2-D"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_position_that_sees_nothing_spoils_no_other(backend, form, dtype):
    model, rows, visible = on(backend).to(dtype), ids(), pairs()
    if form == "2-D":
        mask = torch.ones_like(rows)
        mask[1] = 0
        others = torch.tensor([[True], [False]]).expand(2, LENGTH)
    else:
        # position 3 sees nothing and is not seen, as padding in a mask made of pairs
        visible[:, 3] = visible[:, :, 3] = False
        mask = {
            "bool": visible,
            "-inf": additive(visible),
            "lowest float32": additive(visible).clamp(min=torch.finfo(torch.float32).min),
        }[form]
        others = torch.arange(LENGTH).expand(2, -1) != 3
    logits = model(rows, attention_mask=mask).logits
    assert logits.isfinite().all()
    # what stands at a position that nobody sees reaches nobody
    changed = torch.where(others, rows, 5)
    assert torch.equal(model(changed, attention_mask=mask).logits[others], logits[others])


def test_padding_hides_like_a_mask_of_pairs():
    rows, mask = ids(), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :4] = 0
    for backend in BACKENDS:
        model = on(backend)
        square = mask.bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
        torch.testing.assert_close(
            model(rows, attention_mask=mask).logits, model(rows, attention_mask=square).logits, **CLOSE
        )


def test_every_position_sees_every_other():
    for model in (tiny_llada(), tiny_illada()):
        for backend in ("eager", "sdpa"):
            model.set_attn_implementation(backend)
            embeds = model.get_input_embeddings()(ids(1)).detach().requires_grad_()
            for position in (0, LENGTH - 1):
                (gradient,) = torch.autograd.grad(model(inputs_embeds=embeds).logits[0, position].sum(), embeds)
                assert (gradient.abs().sum(-1) > 0).all()


def test_flex_attention_gets_no_tensor():
    """Compiled for a CPU, one that is added to the scores ends the process."""
    model, rows, seen = on("flex_attention"), ids(), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
    padded = torch.ones(2, LENGTH, dtype=torch.long)
    padded[0, :3] = 0
    for given in ({"attention_mask": pairs()}, {"block_length": 4}, {"attention_mask": padded, "block_length": 4}):
        model(rows, **given)
    assert len(seen) == 6 and {type(mask).__name__ for mask in seen} == {"BlockMask"}


def test_block_mask():
    model, rows = on("flex_attention"), ids()
    block_mask = create_block_mask(lambda b, h, q, k: k // 5 <= q // 5, 2, None, LENGTH, LENGTH, device="cpu")
    visible = torch.arange(LENGTH)[None, :] // 5 <= torch.arange(LENGTH)[:, None] // 5
    logits = model(rows, attention_mask=block_mask).logits
    torch.testing.assert_close(logits, model(rows, attention_mask=visible[None, None]).logits, **CLOSE)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="BlockMask, which 'sdpa' attention cannot read; call `model.set_attn_impl"):
        model(rows, attention_mask=block_mask)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "shape",
    [(3, 10), (2, 9), (1, 10), (10,), (2, 9, 10), (2, 10, 9), (3, 10, 10), (2, 3, 10, 10), (3, 1, 10, 10), (1,) * 5],
    ids=str,
)
def test_masks_of_the_wrong_shape_are_refused(shape, backend):
    with pytest.raises(ValueError, match=rf"`attention_mask` has shape \({', '.join(map(str, shape))},?\)"):
        on(backend)(ids(), attention_mask=torch.ones(shape, dtype=torch.bool))


def test_masks_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match="`attention_mask` is a list; give a tensor"):
        on("sdpa")(ids(), attention_mask=[[1] * LENGTH] * 2)


def test_masks_a_back_end_cannot_honour_are_refused():
    with pytest.raises(ValueError, match="Flex attention takes one mask for all heads"):
        on("flex_attention")(ids(), attention_mask=torch.ones(2, 4, LENGTH, LENGTH, dtype=torch.bool))
    config = tiny_llada().config
    config._attn_implementation = "flash_attention_2"
    embeds, positions = torch.zeros(2, LENGTH, 32), torch.arange(LENGTH).unsqueeze(0)
    with pytest.raises(ValueError, match=r"'flash_attention_2' attention knows no mask per.*\(2, 10, 10\).*sdpa"):
        expand_attention_mask(config, pairs(), embeds, positions)
    with pytest.raises(ValueError, match="'flash_attention_2' attention knows no mask per query.*sdpa"):
        expand_attention_mask(config, None, embeds, positions, block_length=4)
    # and padding goes to it as it is
    assert expand_attention_mask(config, None, embeds, positions) is None
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, 0] = 0
    assert torch.equal(expand_attention_mask(config, mask, embeds, positions).bool(), mask.bool())
