"""Surrogates of log π against sums over all masks, all answers, and the paths that a sampler took."""

import math
from itertools import product

import pytest
import torch
from tiny_models import tiny_llada

from llada.modeling_llada.likelihood_bound import enumerate_masks
from llada.trainers.policy_estimates import (
    block_elbo,
    coupled_logps,
    diffu_grpo_logps,
    elbo,
    evidence_bounds,
    left_to_right_logps,
    trajectory_logps,
    trajectory_views,
)


MASK = 40
PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])
COMPLETION = torch.tensor([[7, 8, 9, 10], [11, 12, 42, 42]])
COMPLETION_MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_llada()


def noisy(masked: torch.Tensor) -> torch.Tensor:
    """Views `[batch, views, prompt + answer]` for masks `[batch, views, answer]`."""
    prompt = PROMPT.unsqueeze(1).expand(-1, masked.shape[1], -1)
    return torch.cat([prompt, COMPLETION.unsqueeze(1).masked_fill(masked, MASK)], dim=2)


@torch.no_grad()
def plain(model, views: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the answer in every view, from all logits."""
    logits = torch.stack([model(row).logits[:, -4:] for row in views.unbind(1)], dim=1)
    targets = COMPLETION.unsqueeze(1).expand(-1, views.shape[1], -1).unsqueeze(3)
    return (logits / temperature).log_softmax(dim=3).gather(3, targets).squeeze(3)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_views_are_scored_as_all_logits_say(model, temperature) -> None:
    full = torch.ones(2, 1, 4, dtype=torch.bool)
    first = torch.tensor([[[1, 0, 1, 0]], [[0, 0, 1, 1]]]).bool()
    views = noisy(torch.cat([full, first, ~first], dim=1))
    logps = plain(model, views, temperature)
    ratio = torch.tensor([0.3, 0.6])
    weighted = torch.where(first[:, 0], logps[:, 1] / ratio[:, None], logps[:, 2] / (1 - ratio[:, None]))

    torch.testing.assert_close(diffu_grpo_logps(model, views[:, 0], COMPLETION, temperature=temperature), logps[:, 0])
    torch.testing.assert_close(
        coupled_logps(model, views, COMPLETION, ratio, temperature=temperature), (logps[:, 0] + weighted) / 2
    )


@pytest.mark.parametrize("complement", [True, False])
def test_the_mean_of_all_draws_is_the_bound(model, complement) -> None:
    # the second answer ends after three tokens: what follows is neither scored nor counted
    masks, weights = enumerate_masks(4)
    exact, drawn = [], []
    for row, length in enumerate((4, 3)):
        inside = ~masks[:, length:].any(dim=1)
        rows = masks[inside].unsqueeze(0).expand(2, -1, -1)
        of_length = enumerate_masks(length)[1].float()
        exact.append((of_length * (plain(model, noisy(rows)) * rows).sum(dim=2)[row]).sum())
        empty = torch.zeros_like(rows[:, :1])
        views = torch.cat([empty, rows], dim=1)
        counts = views[row].sum(dim=1)
        probability = torch.tensor([1 / math.comb(length, k) / (length + 1) for k in counts.tolist()])
        estimates = torch.stack(
            [
                elbo(
                    model,
                    noisy(views[:, [draw]]),
                    COMPLETION,
                    (counts[draw] / (length + 1)).expand(2, 1),
                    completion_mask=COMPLETION_MASK,
                    complement=complement,
                )[row]
                for draw in range(len(counts))
            ]
        )
        assert probability.sum() == pytest.approx(1)
        drawn.append((probability * estimates).sum())

    torch.testing.assert_close(torch.stack(drawn), torch.stack(exact), rtol=1e-5, atol=1e-4)
    # several draws are averaged
    both = noisy(masks[[2, 6]].unsqueeze(0).expand(2, -1, -1))
    ratio = torch.tensor([[1.0, 2.0]]).expand(2, -1) / 5
    alone = [elbo(model, both[:, [n]], COMPLETION, ratio[:, [n]], complement=complement) for n in (0, 1)]
    torch.testing.assert_close(elbo(model, both, COMPLETION, ratio, complement=complement), sum(alone) / 2)


def test_bounds_enclose_a_token_that_stands_alone(model) -> None:
    one = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]])
    views = noisy(torch.ones(2, 2, 4, dtype=torch.bool))
    lower, upper = evidence_bounds(model, views, COMPLETION, one, beta=1.5)
    logps = plain(model, views)[:, 0, 0]
    torch.testing.assert_close(lower, logps)
    torch.testing.assert_close(upper, logps)


def test_bounds_are_what_their_formulas_say(model) -> None:
    masked = torch.tensor([[[1, 0, 1, 0], [1, 1, 0, 0]], [[0, 1, 1, 1], [1, 1, 1, 1]]]).bool()
    logps = plain(model, noisy(masked))
    lower, upper = evidence_bounds(model, noisy(masked), COMPLETION, COMPLETION_MASK, beta=2.0)
    for row in range(2):
        inside = COMPLETION_MASK[row].bool()
        chosen = masked[row] & inside
        draws = [logps[row, draw][chosen[draw]].mean() for draw in range(2)]
        tokens = []
        for token in chosen.any(dim=0).nonzero().flatten().tolist():
            powers = [
                float(chosen[draw, token]) * logps[row, draw, token].exp() ** 2 / (chosen[draw].sum() / inside.sum())
                for draw in range(2)
            ]
            tokens.append(torch.log(sum(powers) / 2) / 2)
        torch.testing.assert_close(lower[row], sum(draws) / 2)
        torch.testing.assert_close(upper[row], torch.stack(tokens).mean())


def test_upper_bound_of_an_impossible_token_is_finite() -> None:
    torch.manual_seed(0)
    model = tiny_llada()
    with torch.no_grad():
        model.lm_head.weight.mul_(400)
    views = noisy(torch.ones(2, 2, 4, dtype=torch.bool))
    lower, upper = evidence_bounds(model, views, COMPLETION, COMPLETION_MASK, beta=1.5)
    assert lower.min() < -110, "its power is 0 in float32"
    torch.testing.assert_close(upper, lower, msg="all draws are alike, and the whole answer is masked")
    upper.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_answers_written_from_the_left_share_all_probability() -> None:
    torch.manual_seed(1)
    model = tiny_llada(vocab_size=6, mask_token_id=5, eos_token_id=4, pad_token_id=4, bos_token_id=3)
    answers = torch.tensor(list(product(range(5), repeat=3)))
    prompts = torch.tensor([[1, 2]]).expand(len(answers), -1)
    logps = left_to_right_logps(model, prompts, answers)
    assert logps.sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    # some positions at a time
    parts = [left_to_right_logps(model, prompts, answers, torch.tensor([[n]]).expand(125, -1)) for n in range(3)]
    torch.testing.assert_close(sum(parts), logps)
    assert (parts[0][:, 1:] == 0).all()


@torch.no_grad()
def block_by_block(model, masked: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities `[batch, answer]` as they are where each block of two is written behind clean ones."""
    clean, noisy_ids, logps = torch.cat([PROMPT, COMPLETION], dim=1), noisy(masked.unsqueeze(1))[:, 0], []
    for start in range(0, 7, 2):
        text = torch.cat([clean[:, :start], noisy_ids[:, start : start + 2]], dim=1)
        logits = model(text, block_length=2).logits[:, start:] / temperature
        logps.append(logits.log_softmax(2).gather(2, clean[:, start : start + 2].unsqueeze(2)).squeeze(2))
    return torch.cat(logps, dim=1)[:, 3:]


@pytest.mark.parametrize(("temperature", "padding"), [(1.0, 0), (0.7, 2)])
def test_the_mean_of_all_draws_is_the_bound_of_blocks(model, temperature, padding) -> None:
    # behind three tokens of a prompt, blocks of two hold one, two and one token of the answer; the second ends in two
    choices = [torch.tensor([[1]]), torch.tensor([[1, 0], [0, 1], [1, 1]]), torch.tensor([[0], [1]])]
    masks = torch.tensor([[*a, *b, *c] for a, b, c in product(*(rows.tolist() for rows in choices))]).bool()
    completion_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    exact = torch.zeros(2)
    for masked in masks:
        logps = block_by_block(model, masked.expand(2, -1), temperature)
        # a block of L is summed over its masks with weight 1 / (k * binomial(L, k)), and each mask of it stands
        # beside six, two or three of the other blocks
        number = masked[1:3].sum()
        pair = (logps[:, 1:3] * masked[1:3]).sum(dim=1) / (2 if number == 1 else 1) / number
        exact += logps[:, 0] / 6 + pair / 2 + (logps[:, 3] * masked[3] / 3) * completion_mask[:, 3]
    # of the middle block, one mask at either place has probability 1/4, two have 1/2; the last block is scored or not
    probability = torch.tensor([(0.25 if masked[1:3].sum() == 1 else 0.5) for masked in masks]) * masks[:, 3]
    views = torch.nn.functional.pad(noisy(masks.unsqueeze(0).expand(2, -1, -1)), (padding, 0), value=42)
    visible = torch.nn.functional.pad(torch.ones(2, 7, dtype=torch.long), (padding, 0))
    shared = {"attention_mask": visible} if padding else {}
    estimates = torch.stack(
        [
            block_elbo(model, views[:, [n]], COMPLETION, 2, completion_mask, temperature=temperature, **shared)
            for n in range(len(masks))
        ]
    )
    torch.testing.assert_close((probability[:, None] * estimates).sum(dim=0), exact, rtol=1e-5, atol=1e-4)
    both = block_elbo(model, views[:, :2], COMPLETION, 2, completion_mask, temperature=temperature, **shared)
    torch.testing.assert_close(both, (estimates[0] + estimates[1]) / 2)


def test_blocks_of_one_token_are_written_from_the_left(model) -> None:
    views = noisy(torch.ones(2, 1, 4, dtype=torch.bool))
    logps = block_elbo(model, views, COMPLETION, 1)
    with torch.no_grad():
        rows = [torch.cat([PROMPT, COMPLETION[:, :n], torch.full((2, 1), MASK)], dim=1) for n in range(4)]
        single = [model(row, block_length=1).logits[:, -1].log_softmax(1) for row in rows]
    expected = sum(one.gather(1, COMPLETION[:, [n]]).squeeze(1) for n, one in enumerate(single))
    torch.testing.assert_close(logps, expected)
    logps.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 5}, {"temperature": 1.0, "top_p": 0.6}], ids=str
)
def test_paths_of_the_sampler_are_scored_as_it_drew_them(model, settings) -> None:
    torch.manual_seed(3)
    prompts = torch.tensor([[1, 2, 3], [42, 4, 5]])
    attention_mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    output = model.generate(
        prompts,
        attention_mask=attention_mask,
        max_new_tokens=8,
        block_length=8,
        steps=4,
        output_trace=True,
        return_dict_in_generate=True,
        eos_token_id=47,
        **settings,
    )
    answers = output.sequences[:, 3:]
    step_of = torch.tensor([trace.step_of[-8:] for trace in output.trace])
    visible = torch.cat([attention_mask, torch.ones_like(answers)], dim=1)
    steps = torch.arange(4).expand(2, -1)
    views, committed = trajectory_views(prompts, answers, step_of, steps, MASK)
    logps = trajectory_logps(model, views, answers, committed, attention_mask=visible, **settings)

    expected = torch.zeros_like(logps)
    for row, trace in enumerate(output.trace):
        for before, event in zip(trace.frames(), trace.events, strict=False):
            with torch.no_grad():
                logits = model(torch.tensor([before])).logits[0].double() / settings["temperature"]
            for position, token in zip(event.positions, event.tokens, strict=True):
                scores = logits[position].clone()
                scores[MASK] = -torch.inf
                ranked = scores.argsort(descending=True)
                kept = ranked[: settings.get("top_k", 48)]
                if "top_p" in settings:
                    before_it = scores[ranked].softmax(0).cumsum(0) - scores[ranked].softmax(0)
                    kept = ranked[before_it < settings["top_p"]]
                assert token in kept
                place = position - len(before) + 8
                expected[row, place] = scores[token] - scores[kept].logsumexp(0)
    assert len(output.trace[0].events) == 4 and (step_of >= 0).all()
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)


def test_tokens_outside_of_the_support_have_a_finite_gradient(model) -> None:
    model.zero_grad()
    views = noisy(torch.ones(2, 1, 4, dtype=torch.bool))
    logps = trajectory_logps(model, views, COMPLETION, torch.ones(2, 1, 4, dtype=torch.bool), top_k=1)
    assert logps.isfinite().all() and (logps < 0).all()
    logps.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # where nothing was committed, there is nothing to learn
    step_of = torch.full_like(COMPLETION, -1)
    views, committed = trajectory_views(PROMPT, COMPLETION, step_of, torch.tensor([[-1, 0], [0, 1]]), MASK)
    assert not committed.any() and (views[:, :, 3:] == MASK).all()
    assert trajectory_logps(model, views, COMPLETION, committed).tolist() == [[0] * 4] * 2


def test_padding_before_the_prompt_is_not_seen_and_no_seed_is_set(model) -> None:
    masked = torch.tensor([[[1, 0, 1, 0]], [[0, 1, 1, 1]]]).bool()
    views, ratio = noisy(masked), torch.tensor([[0.4], [0.75]])
    padded = torch.nn.functional.pad(views, (2, 0), value=42)
    visible = torch.nn.functional.pad(torch.ones(2, 7, dtype=torch.long), (2, 0))
    state = torch.get_rng_state()
    expected = elbo(model, views, COMPLETION, ratio, completion_mask=COMPLETION_MASK)
    found = elbo(model, padded, COMPLETION, ratio, completion_mask=COMPLETION_MASK, attention_mask=visible)
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.get_rng_state(), state)
