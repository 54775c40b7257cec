"""The forward process against closed forms, enumeration and the published losses."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM

from llada.modeling_llada.masked_diffusion import (
    MASK_SCHEDULES,
    ForwardProcess,
    MaskSchedule,
    masked_cross_entropy,
    noise_generator,
    reduce_loss,
    sample_times,
)
from llada.modeling_llada.token_losses import chunked_cross_entropy


MASK = 300


@pytest.fixture(scope="module")
def model(golden_llada):
    return AutoModelForMaskedLM.from_pretrained(golden_llada.folder).eval()


def _published_loss(model, expected, maskable, normalization):
    input_ids, masked, p_mask = expected["loss.input_ids"], expected["loss.masked"], expected["loss.p_mask"]
    masked = masked & maskable
    with torch.no_grad():
        losses, _ = masked_cross_entropy(model, input_ids.masked_fill(masked, MASK), masked, input_ids)
    return reduce_loss(losses.sum(1) / p_mask, maskable.sum(1), normalization)


def test_pretraining_loss_is_the_published_one(model, golden_llada):
    expected = golden_llada.expected
    loss = _published_loss(model, expected, torch.ones_like(expected["loss.masked"]), "token")
    torch.testing.assert_close(loss.double(), expected["loss.pretraining"], atol=1e-5, rtol=1e-5)


def test_fine_tuning_loss_is_the_published_one(model, golden_llada):
    expected = golden_llada.expected
    positions = torch.arange(expected["loss.input_ids"].shape[1])
    response = positions >= expected["loss.prompt_lengths"][:, None]
    loss = _published_loss(model, expected, response, "sequence")
    torch.testing.assert_close(loss.double(), expected["loss.sft"], atol=1e-5, rtol=1e-5)


def _estimates(process, length, difficulty, rows=100_000):
    """The bound estimated row by row for a model whose cross entropy depends on the share of masked tokens only."""
    input_ids = torch.zeros(rows, length, dtype=torch.long)
    batch = process(input_ids, torch.ones_like(input_ids, dtype=torch.bool), noise_generator("closed form"))
    counts = batch.masked.sum(1)
    estimates = batch.weight * counts * difficulty(counts / length)
    return estimates.view(2, rows).mean(0) if process.complementary_masks else estimates


DIFFICULTIES = {"linear": lambda s: 0.5 + s, "convex": lambda s: 2 * s**3, "concave": lambda s: s**0.3}


@pytest.mark.parametrize("length", [1, 3, 12])
@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=DIFFICULTIES)
@pytest.mark.parametrize("complementary", [False, True], ids=["alone", "complementary"])
@pytest.mark.parametrize("mask_sampling", ["bernoulli", "exact"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_estimator_of_the_bound_is_unbiased(schedule, mask_sampling, complementary, difficulty, length):
    process = ForwardProcess(
        MASK, mask_sampling=mask_sampling, mask_schedule=schedule, complementary_masks=complementary, mask_eps=1e-6
    )
    estimates = _estimates(process, length, difficulty)
    bound = sum(difficulty(torch.tensor(k / length)) for k in range(1, length + 1))
    standard_error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - bound) < 5 * standard_error + 1e-3 * bound


def _expected(process, length, difficulty):
    """What an estimator gives on average, in closed form over the masks and on a fine grid over the ratios."""
    input_ids = torch.zeros(100_000, length, dtype=torch.long)
    batch = process(input_ids, torch.ones_like(input_ids, dtype=torch.bool), noise_generator("grid"))
    ratio, weight = batch.ratio.double(), batch.weight.double()
    # of a masked token, beside k of the other tokens that are masked independently
    losses = sum(
        math.comb(length - 1, k) * ratio**k * (1 - ratio) ** (length - 1 - k) * difficulty((k + 1) / length)
        for k in range(length)
    )
    return (weight * length * ratio * losses).mean().item()


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=DIFFICULTIES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_smallest_probability_does_not_bias_pairs(schedule, difficulty):
    bound = sum(difficulty(k / 8) for k in range(1, 9))
    for mask_eps in (0.0, 1e-3, 1e-2):
        settings = {"mask_schedule": schedule, "ratio_sampling": "low_discrepancy", "mask_eps": mask_eps}
        pair = _expected(ForwardProcess(MASK, complementary_masks=True, **settings), 8, difficulty)
        assert pair == pytest.approx(bound, rel=5e-4)
        # the published probability is larger throughout, and so is the bound, whatever the schedule is
        alone = _expected(ForwardProcess(MASK, **settings), 8, difficulty)
        assert bound * (1 - 2e-5) < alone < bound * (1 + 1.1 * mask_eps + 2e-5)


def test_a_schedule_of_the_user_is_unbiased():
    squared = MaskSchedule(ratio=lambda t: t**2, time=lambda p: p.sqrt(), density=lambda p: 0.5 / p.sqrt())
    estimates = _estimates(ForwardProcess(MASK, mask_schedule=squared, mask_eps=1e-6), 12, DIFFICULTIES["linear"])
    assert abs(estimates.mean() - 12.5) < 5 * estimates.std() / len(estimates) ** 0.5


def test_exact_counts_lower_the_variance():
    spread = {
        name: _estimates(ForwardProcess(MASK, **settings), 12, DIFFICULTIES["linear"]).std()
        for name, settings in {
            "bernoulli": {},
            "exact": {"mask_sampling": "exact"},
            "exact pair": {"mask_sampling": "exact", "complementary_masks": True},
        }.items()
    }
    assert spread["exact pair"] < 0.5 * spread["exact"] < 0.5 * spread["bernoulli"]


@pytest.mark.parametrize("schedule", MASK_SCHEDULES.values(), ids=MASK_SCHEDULES)
def test_schedules_are_consistent(schedule):
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64).requires_grad_()
    ratios = schedule.ratio(times)
    torch.testing.assert_close(schedule.time(ratios), times)
    (slope,) = torch.autograd.grad(ratios.sum(), times)
    torch.testing.assert_close(schedule.density(ratios), 1 / slope)


def _mask(rows=64, length=16, **settings):
    input_ids = torch.arange(rows * length).view(rows, length) % MASK
    maskable = torch.arange(length)[None].expand(rows, -1) >= (torch.arange(rows) % (length + 1))[:, None]
    return input_ids, maskable, ForwardProcess(MASK, **settings)(input_ids, maskable, noise_generator(1))


SETTINGS = {
    "default": {},
    "exact": {"mask_sampling": "exact"},
    "complementary": {"complementary_masks": True},
    "exact complementary": {"mask_sampling": "exact", "complementary_masks": True},
    "cosine": {"mask_schedule": "cosine"},
    "exact cosine": {"mask_sampling": "exact", "mask_schedule": "cosine", "complementary_masks": True},
    "no eps": {"mask_eps": 0.0, "complementary_masks": True},
    "band": {"min_mask_ratio": 0.3, "max_mask_ratio": 0.8},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_only_maskable_tokens_are_masked_and_weights_are_finite(settings):
    # rows with 16 down to 0 maskable tokens
    input_ids, maskable, batch = _mask(**settings)
    copies = 2 if settings.get("complementary_masks") else 1
    clean, allowed = input_ids.repeat(copies, 1), maskable.repeat(copies, 1)
    assert not (batch.masked & ~allowed).any() and batch.masked.any()
    assert torch.equal(batch.input_ids, torch.where(batch.masked, MASK, clean))
    assert batch.weight.isfinite().all() and (batch.weight >= 0).all()
    assert ((0 <= batch.ratio) & (batch.ratio <= 1)).all()
    losses = torch.rand(batch.masked.shape) * batch.masked
    for normalization in ("sequence", "token", "batch"):
        assert reduce_loss(losses.sum(1) * batch.weight, allowed.sum(1), normalization).isfinite()


def test_exact_masking_masks_the_drawn_share_and_at_least_one_token():
    _, maskable, batch = _mask(mask_sampling="exact")
    lengths, counts = maskable.sum(1), batch.masked.sum(1)
    torch.testing.assert_close(counts / lengths.clamp(min=1), batch.ratio)
    assert (counts[lengths > 0] > 0).all()
    torch.testing.assert_close(batch.weight[lengths > 0], (lengths / counts)[lengths > 0])


def test_every_exact_mask_is_equally_likely():
    input_ids = torch.zeros(60_000, 4, dtype=torch.long)
    process = ForwardProcess(MASK, mask_sampling="exact")
    batch = process(input_ids, torch.ones_like(input_ids, dtype=torch.bool), noise_generator(0))
    codes, counts = (batch.masked * torch.tensor([1, 2, 4, 8])).sum(1).unique(return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        expected = len(input_ids) / 4 / math.comb(4, code.bit_count())
        assert abs(count - expected) < 5 * expected**0.5


def test_a_row_and_its_complement_mask_every_token_once():
    _, maskable, batch = _mask(complementary_masks=True)
    first, second = batch.masked.chunk(2)
    assert torch.equal(first ^ second, maskable)
    torch.testing.assert_close(batch.ratio.chunk(2)[0] + batch.ratio.chunk(2)[1], torch.ones(64))


def test_the_band_limits_the_ratio():
    for schedule in MASK_SCHEDULES:
        _, _, batch = _mask(rows=1000, min_mask_ratio=0.3, max_mask_ratio=0.8, mask_schedule=schedule, mask_eps=0.0)
        assert 0.3 <= batch.ratio.min() < 0.33 and 0.77 < batch.ratio.max() <= 0.8


def test_the_smallest_probability_is_eps():
    _, _, batch = _mask(rows=5000, mask_eps=0.2)
    assert 0.2 <= batch.ratio.min() < 0.21 and 0.99 < batch.ratio.max() <= 1


def test_some_visible_tokens_are_replaced_and_all_are_scored():
    settings = {"complementary_masks": True, "mask_eps": 0.0}
    input_ids, maskable, batch = _mask(rows=400, length=8, edit_ratio=0.25, vocab_size=320, **settings)
    clean, allowed = input_ids.repeat(2, 1), maskable.repeat(2, 1)
    plain = _mask(rows=400, length=8, **settings)[2]
    assert torch.equal(batch.masked, plain.masked) and torch.equal(batch.weight, plain.weight)
    assert torch.equal(batch.scored, allowed) and torch.equal(plain.scored, plain.masked)
    assert torch.equal(batch.input_ids == MASK, batch.masked)
    replaced = (batch.input_ids != clean) & ~batch.masked
    assert not (replaced & ~allowed).any()
    visible = (allowed & ~batch.masked).sum()
    assert abs(replaced.sum() - 0.25 * visible) < 5 * (0.25 * 0.75 * visible) ** 0.5
    _, _, batch = _mask(rows=400, length=8, edit_ratio=0.0, **settings)
    assert torch.equal(batch.input_ids, plain.input_ids) and torch.equal(batch.scored, allowed)


def test_every_wrong_token_is_equally_likely():
    input_ids = torch.tensor([[1, 3, 4]]).repeat(6000, 1)
    # wrong tokens may be those that the labels do not have, although the input does
    labels = torch.tensor([[1, 0, 4]]).repeat(6000, 1)
    process = ForwardProcess(2, max_mask_ratio=1e-6, mask_eps=0.0, edit_ratio=1.0, vocab_size=5)
    batch = process(input_ids, input_ids > 0, noise_generator(1), labels=labels)
    for column, wrong in enumerate(({0, 3, 4}, {1, 3, 4}, {0, 1, 3})):
        counts = batch.input_ids[:, column].bincount(minlength=5)
        assert set(counts.nonzero().flatten().tolist()) == wrong
        assert all(abs(counts[token] - 2000) < 5 * (6000 * 2 / 9) ** 0.5 for token in wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edit_ratio": -0.1}, "edit_ratio=-0.1.*leave it out"),
        ({"edit_ratio": 0.1}, "edit_ratio=0.1.*vocab_size=None"),
        ({"edit_ratio": 0.1, "vocab_size": 2}, "vocab_size=2.*3 at least"),
    ],
)
def test_editing_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ForwardProcess(0, **settings)


def test_uniform_weights_are_one():
    assert torch.equal(_mask(loss_weighting="uniform", complementary_masks=True)[2].weight, torch.ones(128))


@pytest.mark.parametrize("sampling", ["stratified", "low_discrepancy"])
def test_the_parts_of_a_batch_share_the_strata(sampling):
    parts = [
        sample_times(4, sampling, noise_generator("mine", part), noise_generator("ours"), offset=4 * part, total=16)
        for part in range(4)
    ]
    times = torch.cat(parts).sort().values
    grid = (times * 16).floor().long() if sampling == "stratified" else ((times - times[0]) * 16).round().long()
    assert grid.tolist() == list(range(16))


def test_no_row_of_a_stratified_batch_is_always_the_least_masked():
    first = torch.stack([sample_times(8, "stratified", noise_generator(step))[0] for step in range(2000)])
    assert abs(first.mean() - 0.5) < 5 * (1 / 12 / 2000) ** 0.5 and first.min() < 0.01 and first.max() > 0.99


def test_unknown_time_sampling_is_refused():
    with pytest.raises(ValueError, match="sampling='antithetic'.*'low_discrepancy'"):
        sample_times(4, "antithetic", noise_generator(0))


def test_noise_is_a_function_of_its_key():
    def draw(*key):
        return torch.rand(4, generator=noise_generator(*key)).tolist()

    state = torch.get_rng_state()
    assert draw(0, "train", 3, 1, 0) == draw(0, "train", 3, 1, 0)
    keys = [(0, "train", 3, 1, 0), (1, "train", 3, 1, 0), (0, "eval", 3, 1, 0), (0, "train", 4, 1, 0)]
    keys += [(0, "train", 3, 0, 0), (0, "train", 3, 1, 1), (0, "train", 31, 0)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert torch.equal(torch.get_rng_state(), state)


def _linear_model(vocab_size=11):
    weight = torch.randn(vocab_size, vocab_size, requires_grad=True)

    def model(input_ids, labels, logits_to_keep, token_losses, scale=1.0):
        assert token_losses
        head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        head.weight = torch.nn.Parameter(torch.eye(vocab_size))
        return chunked_cross_entropy(head, scale * weight[input_ids], labels, logits_to_keep)

    return weight, model


def test_cross_entropy_stands_where_the_masks_are():
    weight, model = _linear_model()
    targets = torch.randint(0, 10, (3, 5))
    masked = torch.rand(3, 5) < 0.5
    noisy = targets.masked_fill(masked, 10)
    losses, correct = masked_cross_entropy(model, noisy, masked, targets, scale=2.0)
    logits = 2 * weight[noisy]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * masked
    torch.testing.assert_close(losses, expected)
    assert torch.equal(correct, (logits.argmax(-1) == targets) & masked)


def test_no_masks_give_a_differentiable_zero():
    weight, model = _linear_model()
    ids = torch.ones(2, 3).long()
    losses, correct = masked_cross_entropy(model, ids, torch.zeros(2, 3, dtype=torch.bool), ids)
    losses.sum().backward()
    assert losses.sum() == 0 and not correct.any() and torch.equal(weight.grad, torch.zeros_like(weight))


def test_reductions():
    row_losses, lengths = torch.tensor([6.0, 8.0, 0.0]), torch.tensor([2, 4, 0])
    assert reduce_loss(row_losses, lengths, "sequence") == pytest.approx((3 + 2) / 3)
    assert reduce_loss(row_losses, lengths, "token") == pytest.approx(14 / 6)
    assert reduce_loss(row_losses, lengths, "batch") == pytest.approx(14 / 3)
    assert reduce_loss(row_losses, lengths, "sequence", num_items=10) == pytest.approx(0.5)
    assert reduce_loss(row_losses, lengths, "token", num_items=torch.tensor(28)) == pytest.approx(0.5)
    assert reduce_loss(row_losses, lengths, "masked") == pytest.approx(14 / 6)
    # one scored token of a row and its complement
    assert reduce_loss(row_losses, lengths, "masked", num_items=torch.tensor(0.5)) == pytest.approx(28)
    assert reduce_loss(row_losses * 0, lengths * 0, "token") == 0
    with pytest.raises(ValueError, match="normalization='mean'"):
        reduce_loss(row_losses, lengths, "mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_sampling": "gauss"}, "mask_sampling='gauss'"),
        ({"ratio_sampling": "antithetic"}, "ratio_sampling='antithetic'"),
        ({"loss_weighting": "sqrt"}, "loss_weighting='sqrt'"),
        ({"mask_schedule": "sine"}, "mask_schedule='sine'.*cosine"),
        ({"min_mask_ratio": 0.8, "max_mask_ratio": 0.3}, r"limited to \[0.8, 0.3\]"),
        ({"max_mask_ratio": 1.5}, r"limited to \[0.0, 1.5\]"),
        ({"mask_eps": 0.5}, "mask_eps=0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ForwardProcess(MASK, **settings)
