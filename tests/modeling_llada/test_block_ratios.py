"""One mask ratio for each block, compared with blocks that are rows."""

import pytest
import torch

from llada.modeling_llada.block_ratios import mask_by_block
from llada.modeling_llada.likelihood_bound import enumerate_masks
from llada.modeling_llada.masked_diffusion import ForwardProcess


MASK, BLOCK = 99, 4
# rows of two documents and padding: the first token of each document, and where its text ends
ROWS = [[(0, 6), (6, 11)], [(0, 12)], [(0, 1), (1, 9)]]
SETTINGS = {
    "bernoulli": {},
    "exact": {"mask_sampling": "exact", "ratio_sampling": "stratified"},
    "complementary": {"mask_sampling": "exact", "complementary_masks": True},
    "editing": {"edit_ratio": 0.5, "vocab_size": 90, "ratio_sampling": "low_discrepancy"},
    "uniform": {"loss_weighting": "uniform", "mask_schedule": "cosine"},
}


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


@pytest.mark.parametrize("pads_left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_block_is_masked_as_a_row(settings, pads_left):
    """Every block written as a row of its own, by hand, with those that a row has less of left empty."""
    process = ForwardProcess(MASK, **settings)
    ids, labels = torch.randint(0, 90, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    maskable = torch.ones(3, 12, dtype=torch.bool)
    maskable[1, :5] = False
    documents, is_token, parts = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12), []
    for row, texts in enumerate(ROWS):
        shift = 12 - texts[-1][1] if pads_left else 0
        blocks = []
        for number, (start, stop) in enumerate(texts):
            documents[row, shift + start : shift + stop] = number
            is_token[row, shift + start : shift + stop] = 1
            blocks += [(row, shift + at, shift + min(at + BLOCK, stop)) for at in range(start, stop, BLOCK)]
        parts.append(blocks)
    maskable &= is_token.bool()
    most = max(map(len, parts))
    parts = [blocks + [(row, 0, 0)] * (most - len(blocks)) for row, blocks in enumerate(parts)]
    parts = [part for blocks in parts for part in blocks]

    folded = [torch.zeros(len(parts), BLOCK, dtype=values.dtype) for values in (ids, maskable)]
    for number, (row, start, stop) in enumerate(parts):
        for whole, values in zip(folded, (ids, maskable), strict=True):
            # as it was, or as nothing that matters
            whole[number, : stop - start] = values[row, start:stop] * maskable[row, start:stop]
    drawn, shared = generators()
    expected = process(*folded, drawn, shared, offset=2 * most, total=7 * most, labels=folded[0])

    drawn, shared = generators()
    found = mask_by_block(
        process, BLOCK, ids, maskable, drawn, shared, 2, 7, labels, attention_mask=is_token, document_ids=documents
    )
    copies = 2 if process.complementary_masks else 1
    assert found.masked.shape == (3 * copies, 12)
    for copy in range(copies):
        seen = torch.zeros(3, 12, dtype=torch.bool)
        for number, (row, start, stop) in enumerate(parts):
            inside = maskable[row, start:stop]
            seen[row, start:stop] = inside
            for name in ("input_ids", "masked", "scored"):
                of_block = getattr(expected, name)[copy * len(parts) + number, : stop - start][inside]
                assert torch.equal(getattr(found, name)[copy * 3 + row, start:stop][inside], of_block), name
            for name in ("weight", "ratio"):
                values = getattr(found, name)[copy * 3 + row, start:stop][inside]
                assert (values == getattr(expected, name)[copy * len(parts) + number]).all(), name
        rest = ~maskable & ~seen
        of_copy = slice(copy * 3, copy * 3 + 3)
        assert torch.equal(found.input_ids[of_copy][rest], ids[rest]) and not found.scored[of_copy][rest].any()


def test_the_loss_bounds_the_text_block_by_block():
    """Its mean over many draws is the sum over the blocks of their bounds, each summed over all masks."""
    cost = torch.tensor([[1.0, 0.3, 0.2, 2.0, 0.1]])

    def losses(masked):
        # of a model whose predictions depend on how much of a block is masked
        shares = torch.cat([masked[:, :2].float().mean(1, True).expand(-1, 2), masked[:, 2:4].float().mean(1, True)
                            .expand(-1, 2), masked[:, 4:].float()], dim=1)  # fmt: skip
        return cost * (1 + shares**2) * masked

    exact = 0.0
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        masks, weights = enumerate_masks(stop - start)
        whole = torch.zeros(len(masks), 5, dtype=torch.bool)
        whole[:, start:stop] = masks
        exact += (weights * losses(whole).sum(1)).sum().item()
    number = 20_000
    ids = torch.zeros(number, 5, dtype=torch.long)
    process = ForwardProcess(MASK, mask_sampling="exact", ratio_sampling="stratified")
    batch = mask_by_block(process, 2, ids, torch.ones_like(ids, dtype=torch.bool), torch.Generator().manual_seed(0))
    found = batch.sum_losses(losses(batch.masked), number)
    assert found.mean().item() == pytest.approx(exact, rel=0.01)
    # the ratios of a row do not depend on each other
    ratios = batch.ratio[:, ::2]
    assert ratios.T.corrcoef()[0, 1].abs() < 0.03
    # a block has as many masks as its ratio says
    torch.testing.assert_close(batch.masked[:, :2].float().mean(1), batch.ratio[:, 0])
