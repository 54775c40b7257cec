"""Block diffusion: its mask, its loss, and the published figures of both."""

import json
from functools import partial

import pytest
import torch
from golden import FIXTURES, rounding
from safetensors.torch import load_file
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations import flex_attention as flex_integration

from llada import LLaDA2MoeModelLM
from llada.modeling_llada.noisy_and_clean import block_diffusion_mask, lay_out_noisy_and_clean
from llada.modeling_llada.packed_documents import count_tokens_before
from llada.trainers.block_diffusion import block_diffusion_loss


FOLDER = FIXTURES / "llada2_moe"
MASK = 40


@pytest.fixture(scope="module")
def published():
    """The figures of dFactory's fine-tuning: tensors, and what is no tensor."""
    return load_file(FOLDER / "block_sft.safetensors"), json.loads((FOLDER / "block_sft.json").read_text())


@pytest.fixture(params=["sdpa", "eager", "flex_attention"])
def backend(request, monkeypatch):
    # uncompiled, or it takes a C++ compiler and seconds
    monkeypatch.setattr(flex_integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    return request.param


def draw(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, the same with masks, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (batch, length), generator=generator)
    masked = torch.rand(batch, length, generator=generator) < 0.5
    masked[:, -1] = True
    return ids, ids.masked_fill(masked, MASK), ids.masked_fill(~masked, -100)


@torch.no_grad()
def one_block_at_a_time(model, ids, noisy, labels, block_length) -> torch.Tensor:
    """Cross entropy per token as generation computes it: a noisy block behind clean ones, with their attention."""
    losses = torch.zeros(ids.shape)
    for start in range(0, ids.shape[1], block_length):
        end = min(start + block_length, ids.shape[1])
        text = torch.cat([ids[:, :start], noisy[:, start:end]], dim=1)
        logits = model(text, block_length=block_length).logits[:, start:end]
        losses[:, start:end] = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, start:end], reduction="none"
        )
    return losses


def test_the_published_mask(published):
    tensors, settings = published
    mask = block_diffusion_mask(torch.ones(1, 32, dtype=torch.bool), settings["block_size"])
    assert torch.equal(mask[0, 0], tensors["visible"])


def test_the_published_loss(published, backend):
    tensors, settings = published
    length = settings["block_size"]
    model = LLaDA2MoeModelLM.from_pretrained(FOLDER, attn_implementation=backend)
    ids, noisy, labels = (tensors[name] for name in ("input_ids", "noisy_input_ids", "labels"))
    seen = lay_out_noisy_and_clean(model.config, noisy, ids, length)
    with torch.no_grad():
        logits = model(**seen).logits[:, :32]
        scored = labels != -100
        losses = model(**seen, labels=labels, logits_to_keep=scored, token_losses=True).token_losses
    torch.testing.assert_close(logits, tensors["logits_noisy_half"], **rounding(tensors["logits_noisy_half"]))
    torch.testing.assert_close(losses, tensors["token_ce"], **rounding(tensors["token_ce"]))

    # flex attention has no backward pass on a CPU
    with torch.set_grad_enabled(backend != "flex_attention"):
        loss = block_diffusion_loss(model.train(), ids, noisy, labels, length)
    assert loss.item() == pytest.approx(settings["loss"], abs=1e-5)
    if not loss.requires_grad:
        return
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert norm == pytest.approx(settings["grad_norm"], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_llada, partial(tiny_llada2_moe, expert_capacity=4, block_size=4)])
@pytest.mark.parametrize(("length", "side"), [(11, "right"), (8, "left")])
def test_every_block_is_predicted_as_generation_does(build, length, side):
    """Rows alone and padded: padding sees, votes and counts for nothing."""
    torch.manual_seed(0)
    model = build()
    ids, noisy, labels = draw(2, length)
    expected = one_block_at_a_time(model, ids, noisy, labels, 4)

    def losses(ids, noisy, labels, mask=None):
        seen = lay_out_noisy_and_clean(model.config, noisy, ids, 4, mask)
        return model(**seen, labels=labels, logits_to_keep=labels != -100, token_losses=True).token_losses

    torch.testing.assert_close(losses(ids, noisy, labels), expected, rtol=0, atol=1e-5)
    pads = (3, 0) if side == "left" else (0, 3)
    mask = torch.nn.functional.pad(torch.ones_like(ids), pads)
    padded = [torch.nn.functional.pad(values, pads, value=value) for values, value in ((ids, 7), (noisy, 7))]
    found = losses(*padded, torch.nn.functional.pad(labels, pads, value=-100), mask)[mask.bool()].view_as(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_documents_of_a_row_are_as_if_alone(backend):
    torch.manual_seed(0)
    model = tiny_llada2_moe(expert_capacity=4, block_size=4)
    model.set_attn_implementation(backend)
    documents = [draw(1, length, seed) for seed, length in enumerate((7, 5, 9))]
    ids, noisy, labels = (torch.cat(parts, dim=1) for parts in zip(*documents, strict=True))
    alone = [block_diffusion_loss(model, *(part[k] for k in (0, 1, 2)), block_length=4) for part in documents]
    counts = [(part[2] != -100).sum() for part in documents]
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    # padding behind, which belongs to no document
    numbers = torch.tensor([[0] * 7 + [1] * 5 + [2] * 9 + [-1] * 3])
    padded = [torch.nn.functional.pad(values, (0, 3), value=value) for values, value in
              ((ids, 7), (noisy, 7), (labels, -100))]  # fmt: skip
    loss = block_diffusion_loss(model, *padded, 4, attention_mask=(numbers >= 0).long(), document_ids=numbers)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_positions_count_tokens_of_a_document():
    is_token = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0]]).bool()
    assert count_tokens_before(is_token).tolist() == [[0, 0, 1, 2, 3, 3, 4, 5]]
    # padding between two documents may belong to either, or to none
    for of_padding in (1, 2, 3):
        documents = torch.tensor([[1, 1, 1, 1, of_padding, 2, 2, 2]])
        positions = count_tokens_before(is_token, documents)
        assert positions[is_token].tolist() == [0, 1, 2, 0, 1]


def test_nothing_scored_is_no_loss():
    model = tiny_llada().train()
    ids, noisy, _ = draw(2, 6)
    loss = block_diffusion_loss(model, ids, noisy, torch.full_like(ids, -100), 3)
    loss.backward()
    assert loss.item() == 0


def test_refusals():
    model = tiny_llada()
    ids, noisy, labels = draw(2, 6)
    with pytest.raises(ValueError, match=r"`block_length=0` is no length of blocks; write 1 or more"):
        block_diffusion_loss(model, ids, noisy, labels, 0)
    with pytest.raises(ValueError, match=r"`noisy_ids` has shape \(2, 5\) and the text has \(2, 6\)"):
        block_diffusion_loss(model, ids, noisy[:, 1:], labels, 2)
    with pytest.raises(ValueError, match=r"`document_ids` has shape \(6,\)"):
        block_diffusion_loss(model, ids, noisy, labels, 2, document_ids=torch.zeros(6))
    shifted = tiny_illada(right_shift_logits=True)
    with pytest.raises(ValueError, match="predicts a token from the position before it"):
        block_diffusion_loss(shifted, ids, noisy, labels, 2)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="knows no mask per query position, which block diffusion needs"):
        block_diffusion_loss(model, ids, noisy, labels, 2)
