"""Losses of policy optimisation against their formulas, and their gradients against exact ones."""

import math

import pytest
import torch

from llada.trainers.policy_losses import approximate_kl, bgpo_loss, gdsd_loss, grpo_loss, spg_loss, wd1_loss


ADVANTAGES = torch.tensor([1.0, -1.0, 0.5])


def test_ratios_are_clipped_on_the_side_that_gains() -> None:
    logps = torch.log(torch.tensor([[1.5, 1.1], [0.5, 1.5], [0.5, 9.0]])).requires_grad_()
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]])
    loss = grpo_loss(logps, torch.zeros(3, 2), ADVANTAGES, mask, epsilon_low=0.2, epsilon_high=0.3)
    # what is not masked: 1.3 (clipped), 1.1; -0.8 (clipped), -1.5; 0.25
    assert loss.item() == pytest.approx(-(1.3 + 1.1 - 0.8 - 1.5 + 0.25) / 5)
    loss.backward()
    torch.testing.assert_close(logps.grad, -torch.tensor([[0, 1.1], [0, -1.5], [0.25, 0]]) / 5)
    # the parts of a batch add up to it if each divides by all tokens
    parts = [
        grpo_loss(logps[[n]], torch.zeros(1, 2), ADVANTAGES[[n]], mask[[n]], 0.2, 0.3, lengths=5) for n in range(3)
    ]
    assert sum(parts).item() == pytest.approx(loss.item())


def test_without_an_old_policy_the_gradient_is_the_plain_one() -> None:
    logps = torch.randn(3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lengths = torch.tensor([2, 4, 5])
    loss = grpo_loss(logps, None, ADVANTAGES, lengths=lengths)
    assert loss.item() == pytest.approx(-ADVANTAGES.mean().item())
    loss.backward()
    torch.testing.assert_close(logps.grad, -ADVANTAGES / lengths / 3)


def test_sequences_diverge_first_and_are_divided_then() -> None:
    logps, reference = torch.tensor([-6.0, -9.0, -3.0]), torch.tensor([-2.0, -10.0, -3.0])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    loss = grpo_loss(logps, logps, 0 * ADVANTAGES, mask, ref_logps=reference, beta=0.5, kl="k2")
    assert loss.item() == pytest.approx(0.5 * (16 / 2 / 2 + 1 / 2 / 3 + 0) / 3)
    moved = grpo_loss(logps + mask.sum(dim=1) * math.log(1.1), logps, ADVANTAGES, lengths=mask.sum(dim=1))
    assert moved.item() == pytest.approx(-1.1 * ADVANTAGES.mean().item(), rel=1e-5)


@pytest.mark.parametrize("kl", ["k1", "k2"])
def test_gradient_of_the_divergence_is_exact_in_expectation(kl) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, -0.3, 0.5], dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    expected = torch.autograd.grad((logps.exp() * (logps - reference)).sum(), logits, retain_graph=True)[0]
    sampled = approximate_kl(logps, reference, kl)
    torch.testing.assert_close(torch.autograd.grad((logps.detach().exp() * sampled).sum(), logits)[0], expected)


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_divergence_is_exact_in_expectation(kl) -> None:
    logps = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64).log_softmax(0)
    reference = torch.tensor([0.1, 0.2, -0.3, 0.5], dtype=torch.float64).log_softmax(0)
    exact = (logps.exp() * (logps - reference)).sum()
    torch.testing.assert_close((logps.exp() * approximate_kl(logps, reference, kl)).sum(), exact)


def test_likelihoods_of_wd1_are_weighted_by_two_softmaxes() -> None:
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -100.0], [-4.0, -5.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    good, bad = ADVANTAGES.softmax(0), (-ADVANTAGES).softmax(0)
    sums = torch.tensor([-3.0, -3.0, -9.0])
    torch.testing.assert_close(wd1_loss(logps, ADVANTAGES, mask), (-good * sums + bad * sums).sum())


def test_the_upper_bound_is_for_answers_that_are_no_good() -> None:
    lower, upper = torch.tensor([-2.0, -3.0, -4.0]), torch.tensor([-1.0, -1.0, -1.0])
    lengths = torch.tensor([1, 2, 3])
    loss = spg_loss(lower, upper, ADVANTAGES, lengths, mix=0.25)
    assert loss.item() == pytest.approx(-(1 * -2 * 1 - 1 * (-0.25 - 2.25) * 2 + 0.5 * -4 * 3) / 6)


def test_bgpo_bounds_the_clipped_objective_and_adds_up_over_draws() -> None:
    old = torch.zeros(3, 2)
    logps = torch.tensor([[-9.0, 0.3], [-9.0, 0.3], [0.1, -0.1]]).requires_grad_()
    loss = bgpo_loss(logps, old, ADVANTAGES, 1)
    expected = [-(1 - 9), -1.2, 0.8, math.exp(0.3), -0.5 * 1.1, -0.5 * 0.9]
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-5)
    draws = [bgpo_loss(logps[:, n], old[:, n], ADVANTAGES, 1) for n in range(2)]
    assert (sum(draws) / 2).item() == pytest.approx(loss.item())
    for n in range(3):
        row = [logps[[n], 1], old[[n], 1], ADVANTAGES[[n]]]
        assert bgpo_loss(*row, 2) >= grpo_loss(*row, lengths=2)
    loss.backward()
    assert logps.grad.isfinite().all()


def test_gdsd_moves_within_its_trust_region() -> None:
    logps = torch.tensor([1e-4, 1.0, -2e-4]).requires_grad_()
    loss = gdsd_loss(logps, torch.zeros(3), ADVANTAGES, torch.tensor([2, 4, 5]), psi=3.0)
    expected = [(1e-4 / 2 - 3) ** 2, (math.log(1 + 4e-4) / 4 + 3) ** 2, (-2e-4 / 5 - 1.5) ** 2]
    assert loss.item() == pytest.approx(sum(expected) / 3)
    loss.backward()
    assert logps.grad[1] == 0 and logps.grad[0] < 0


def test_what_is_missing_is_asked_for() -> None:
    logps = torch.zeros(3)
    with pytest.raises(ValueError, match="`beta=0.1` weights the divergence from a reference; give `ref_logps`"):
        grpo_loss(logps, logps, ADVANTAGES, beta=0.1, lengths=2)
    with pytest.raises(ValueError, match="neither `lengths` nor `mask`; write `lengths=completion_mask.sum"):
        grpo_loss(logps, logps, ADVANTAGES)
    with pytest.raises(ValueError, match="`kl='k4'` is unknown; write 'k1', 'k2' or 'k3'"):
        grpo_loss(logps, logps, ADVANTAGES, lengths=2, beta=0.1, ref_logps=logps, kl="k4")
