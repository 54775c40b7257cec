"""The bound on the likelihood against the published figures, and its noise against the batch."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from llada.modeling_llada.likelihood_bound import bound_masks, content_keys, enumerate_masks, likelihood_bound
from llada.modeling_llada.masked_diffusion import masked_cross_entropy


MASK = 300


@pytest.fixture(scope="module")
def scored(golden_llada):
    """The published likelihood question: ids, what is scored, and a score function in float64."""
    prompt, answer = golden_llada.expected["likelihood.prompt"], golden_llada.expected["likelihood.answer"]
    input_ids = torch.cat([prompt, answer])[None]
    maskable = torch.arange(input_ids.shape[1])[None] >= len(prompt)
    model = AutoModelForMaskedLM.from_pretrained(golden_llada.folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def score(noisy_ids, masked):
        return masked_cross_entropy(model, noisy_ids, masked, input_ids.expand_as(noisy_ids))[0]

    return input_ids, maskable, score


def test_enumerated_bound_is_the_published_one(scored, golden_llada):
    input_ids, maskable, score = scored
    masks, weights = enumerate_masks(int(maskable.sum()))
    masked = torch.zeros(len(masks), input_ids.shape[1], dtype=torch.bool)
    masked[:, maskable[0]] = masks
    losses = score(input_ids.expand(len(masks), -1).masked_fill(masked, MASK), masked)
    bound = -(weights * losses.sum(1)).sum()
    torch.testing.assert_close(bound, golden_llada.expected["likelihood.elbo_enumerated"], atol=1e-5, rtol=1e-6)


def test_drawn_bound_approaches_the_published_one(scored, golden_llada):
    input_ids, maskable, score = scored
    estimate = -likelihood_bound(score, input_ids, maskable, MASK, num_draws=512).sum()
    assert abs(estimate - golden_llada.expected["likelihood.elbo_enumerated"]) < 0.5
    assert torch.equal(-likelihood_bound(score, input_ids, maskable, MASK, num_draws=512).sum(), estimate)


def test_enumerated_masks_are_every_mask_once():
    masks, weights = enumerate_masks(4)
    assert len({tuple(row) for row in masks.tolist()}) == 15 and masks.any(1).all()
    # each of the L positions is scored with total weight sum over k of (k/L) / k = 1
    torch.testing.assert_close((masks * weights[:, None]).sum(0), torch.ones(4, dtype=torch.float64))


def test_content_keys_ignore_padding_and_neighbours():
    alone = content_keys(torch.tensor([[5, 6, 7]]))[0]
    padded = torch.tensor([[5, 6, 7, 9, 9], [9, 9, 5, 6, 7], [1, 2, 3, 4, 5]])
    left, right, other = content_keys(padded, torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))
    assert alone == left == right != other


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_content_keys_ignore_the_type_of_the_ids(dtype):
    input_ids = torch.tensor([[5, 6, 7], [0, 200, 1]])
    assert content_keys(input_ids.to(dtype)) == content_keys(input_ids)


@pytest.mark.parametrize("pad", [(0, 3), (3, 0), (1, 2)], ids=str)
def test_an_estimate_does_not_depend_on_padding(pad):
    """With the keys that it gives itself."""
    input_ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    maskable = torch.arange(8)[None] >= 3
    table = torch.rand(8, 10, generator=torch.Generator().manual_seed(0))

    def score_from(start):
        # what a token costs depends on what else is masked
        def score(noisy_ids, masked):
            costs = torch.zeros(masked.shape)
            costs[:, start : start + 8] = table[torch.arange(8), noisy_ids[0, start : start + 8] % 10]
            return costs * masked * masked.sum()

        return score

    alone = likelihood_bound(score_from(0), input_ids, maskable, 0, num_draws=5)
    padded_ids = torch.nn.functional.pad(input_ids, pad, value=7)
    padded = likelihood_bound(score_from(pad[0]), padded_ids, torch.nn.functional.pad(maskable, pad), 0, num_draws=5)
    assert torch.equal(padded[:, pad[0] : pad[0] + 8], alone)
    assert not torch.equal(likelihood_bound(score_from(0), input_ids, maskable, 0, num_draws=5, seed=1), alone)


def test_bound_masks_do_not_depend_on_the_batch():
    maskable = torch.tensor([[False, True, True, True, False, False]])
    wide = torch.tensor([[True] * 8, [False, False, False, False, True, True, True, False]])
    alone = list(bound_masks(maskable, 5, ["key"]))
    batched = list(bound_masks(wide, 5, ["other", "key"]))
    for (mask, weight), (masks, weights) in zip(alone, batched, strict=True):
        assert torch.equal(mask[0, 1:4], masks[1, 4:7]) and weight[0] == weights[1]
        assert not (mask & ~maskable).any() and not (masks & ~wide).any()


def test_bound_masks_are_stratified_over_the_draws():
    maskable = torch.ones(3, 8, dtype=torch.bool)
    counts = torch.stack([mask.sum(1) for mask, _ in bound_masks(maskable, 8, ["a", "b", "c"])])
    assert torch.equal(counts.sort(dim=0).values, torch.arange(1, 9)[:, None].expand(8, 3))


@pytest.mark.parametrize(
    ("num_draws", "row_keys", "message"), [(0, ["a"], "num_draws=0"), (1, ["a", "b"], "2 `row_keys` for 1 rows")]
)
def test_bound_masks_refuse_what_cannot_be_drawn(num_draws, row_keys, message):
    with pytest.raises(ValueError, match=message):
        list(bound_masks(torch.ones(1, 3, dtype=torch.bool), num_draws, row_keys))


def test_bound_of_rows_without_a_scored_token_is_zero():
    contributions = likelihood_bound(
        lambda ids, masked: masked.float(), torch.ones(2, 3).long(), torch.tensor([[True] * 3, [False] * 3]), MASK, 4
    )
    assert contributions[1].tolist() == [0, 0, 0] and contributions[0].sum() == 3
