"""Every estimator against sums written out, and what a result must not depend on."""

import math
from itertools import combinations, permutations

import pytest
import torch
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe

from llada.modeling_llada.mask_plans import ESTIMATORS


MASK = 40
PROMPT, ANSWER = [3, 17, 5, 9], [8, 30, 2, 11]
EXACT = ("exact", "left_to_right", "right_to_left", "pseudo")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return tiny_llada()


class Naive:
    """Log-probabilities read off full logits, one canvas at a time."""

    def __init__(self, model, prompt, answer, cfg_scale=0.0, block_length=None):
        self.model, self.prompt, self.answer = model, prompt, answer
        self.cfg_scale, self.block_length = cfg_scale, block_length

    @torch.no_grad()
    def __call__(self, place: int, hidden: tuple[int, ...], begin: int = 0, end: int | None = None) -> float:
        """Of the token at `place` of the answer, with what is `hidden` masked, on a canvas that is cut at `end`."""
        answer = [MASK if i in hidden else token for i, token in enumerate(self.answer)][:end]
        given = {} if self.block_length is None else {"block_length": self.block_length}
        logits = self.model(torch.tensor([self.prompt + answer]), **given).logits[0, len(self.prompt) + place].double()
        if self.cfg_scale:
            hidden_prompt = [MASK] * len(self.prompt)
            without = self.model(torch.tensor([hidden_prompt + answer]), **given).logits
            without = without[0, len(self.prompt) + place].double()
            logits = without + (self.cfg_scale + 1) * (logits - without)
        return float(logits.log_softmax(0)[self.answer[place]])

    def chain(self, order: tuple[int, ...], end: int | None = None) -> float:
        return sum(self(place, order[step:], end=end) for step, place in enumerate(order))

    def bound(self, places: tuple[int, ...], end: int | None = None) -> float:
        total = 0.0
        for k in range(1, len(places) + 1):
            masks = list(combinations(places, k))
            total += sum(self(i, mask, end=end) for mask in masks for i in mask) / k / len(masks)
        return total


def expected(naive: Naive, estimator: str) -> float:
    places = tuple(range(len(naive.answer)))
    if estimator == "exact":
        return naive.bound(places)
    if estimator == "pseudo":
        return sum(naive(place, (place,)) for place in places)
    return naive.chain(places if estimator == "left_to_right" else places[::-1])


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("estimator", EXACT)
def test_sums_that_are_written_out(model, estimator, cfg_scale):
    scores = model.log_likelihood(PROMPT, ANSWER, estimator=estimator, cfg_scale=cfg_scale)
    value = expected(Naive(model, PROMPT, ANSWER, cfg_scale), estimator)
    assert float(scores.log_likelihood) == pytest.approx(value, rel=1e-5)
    assert float(scores.standard_error) == 0 and scores.num_tokens.tolist() == [4]
    assert float(scores.token_log_likelihoods[0].sum()) == pytest.approx(float(scores.log_likelihood), rel=1e-12)
    assert scores.num_rows == (15 if estimator == "exact" else 4) * (2 if cfg_scale else 1)


@pytest.mark.parametrize("make", [tiny_illada, tiny_llada_moe])
def test_other_families(make):
    torch.manual_seed(2)
    model = make()
    for estimator in EXACT:
        scores = model.log_likelihood([PROMPT, PROMPT[:1]], [ANSWER, ANSWER[:3]], estimator=estimator)
        values = [expected(Naive(model, PROMPT[:n], ANSWER[:m]), estimator) for n, m in ((4, 4), (1, 3))]
        assert scores.log_likelihood.tolist() == pytest.approx(values, rel=1e-5)


def test_the_bound_is_the_mean_over_orders(model):
    naive = Naive(model, PROMPT, ANSWER)
    orders = [naive.chain(order) for order in permutations(range(4))]
    bound = model.log_likelihood(PROMPT, ANSWER, estimator="exact").log_likelihood
    assert float(bound) == pytest.approx(sum(orders) / 24, rel=1e-5)


def test_the_surest_order(model):
    naive, hidden, value = Naive(model, PROMPT, ANSWER), (0, 1, 2, 3), 0.0
    while hidden:
        score, place = max((naive(place, hidden), place) for place in hidden)
        value += score
        hidden = tuple(i for i in hidden if i != place)
    for cfg_scale in (0.0, 0.5):
        scores = model.log_likelihood(PROMPT, ANSWER, estimator="confidence", cfg_scale=cfg_scale)
        if not cfg_scale:
            assert float(scores.log_likelihood) == pytest.approx(value, rel=1e-5)
        assert scores.num_rows == (8 if cfg_scale else 4)


@pytest.mark.parametrize("estimator", ["monte_carlo", "any_order", "reference"])
def test_draws_find_the_bound_and_their_error(model, estimator):
    """16 tokens cannot be enumerated by few draws; the spread of many estimates is the error that each reports."""
    generator = torch.Generator().manual_seed(5)
    # with as many strata as tokens the authors' counts are uniform
    answer = torch.randint(0, 40, (16,), generator=generator)
    num_draws = 4 if estimator == "any_order" else 64
    runs = [
        model.log_likelihood(PROMPT, answer, estimator=estimator, num_draws=num_draws, seed=seed, batch_size=64)
        for seed in range(24)
    ]
    values = torch.cat([run.log_likelihood for run in runs])
    bound = model.log_likelihood(PROMPT, answer, num_draws=1024, seed=99, batch_size=128)
    assert abs(values.mean() - bound.log_likelihood) < 4 * (values.std() / math.sqrt(24) + bound.standard_error)
    reported = torch.cat([run.standard_error for run in runs]).mean()
    assert 0.5 < reported / values.std() < 2


def test_the_plans_are_unbiased():
    """Weights of all questions about a token sum to one, in expectation: exactly where nothing is drawn."""
    generator = torch.Generator().manual_seed(0)
    for name, (plan, _) in ESTIMATORS.items():
        for length in (1, 2, 5):
            drawn = plan(length, 4096 if name != "any_order" else 512, generator)
            replicates = int(drawn.replicate.max()) + 1
            share = (drawn.scored * drawn.weight[:, None]).sum(dim=0) / replicates
            tolerance = 1e-12 if drawn.is_exact else 0.15
            assert (share - 1).abs().max() < tolerance, (name, length)
            assert (drawn.scored <= drawn.masked).all()
    # drawn where this is cheaper than all masks
    assert not ESTIMATORS["monte_carlo"][0](8, 128, generator).is_exact
    assert ESTIMATORS["monte_carlo"][0](7, 128, generator).is_exact
    # a set of strata holds every count as often as any other
    plan = ESTIMATORS["monte_carlo"][0](16, 64, generator)
    for replicate in range(4):
        assert sorted(plan.masked[plan.replicate == replicate].sum(1).tolist()) == list(range(1, 17))


def test_one_draw_says_that_its_error_is_unknown(model):
    answer = list(range(20))
    assert model.log_likelihood(PROMPT, answer, num_draws=1).standard_error.isnan().all()
    assert model.log_likelihood(PROMPT, answer, num_draws=2).standard_error.isfinite().all()
    # of one token everything is known
    scores = model.log_likelihood(PROMPT, [4])
    assert float(scores.standard_error) == 0 and scores.num_rows == 1


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "confidence"])
@pytest.mark.parametrize("make", [tiny_llada, tiny_llada2_moe])
def test_a_pair_does_not_depend_on_its_batch(make, estimator):
    torch.manual_seed(3)
    model = make()
    prompts, answers = [PROMPT, [1], PROMPT[:2], PROMPT * 3], [ANSWER, [*ANSWER, 4, 6], ANSWER[:1], [7, *ANSWER]]
    draws = {"num_draws": 16} if estimator in ("monte_carlo", "reference", "any_order") else {}
    given = {"estimator": estimator, "cfg_scale": 0.3} | draws
    together = model.log_likelihood(prompts, answers, batch_size=5, **given)
    alone = [model.log_likelihood(*pair, batch_size=64, **given) for pair in zip(prompts, answers, strict=True)]
    for name in ("log_likelihood", "standard_error"):
        values = torch.cat([getattr(scores, name) for scores in alone])
        torch.testing.assert_close(getattr(together, name), values, rtol=1e-5, atol=1e-5, equal_nan=True)
    again = model.log_likelihood(prompts[::-1], answers[::-1], batch_size=3, **given)
    torch.testing.assert_close(again.log_likelihood.flip(0), together.log_likelihood, rtol=1e-5, atol=1e-5)
    if draws:
        others = model.log_likelihood(prompts, answers, seed=1, **given)
        assert not torch.allclose(others.log_likelihood, together.log_likelihood, rtol=1e-5)


@pytest.mark.parametrize("block_length", [1, 4, 8])
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_blocks_are_scored_one_after_the_other(block_length, cfg_scale):
    torch.manual_seed(4)
    model = tiny_llada2_moe()
    prompt, answer = PROMPT + [7, 7], ANSWER + [19]
    naive = Naive(model, prompt, answer, cfg_scale, block_length)
    bound = chain = surest = 0.0
    start = 0
    while start < len(answer):
        end = min(len(answer), (len(prompt) + start) // block_length * block_length + block_length - len(prompt))
        places = tuple(range(start, end))
        bound += naive.bound(places, end)
        chain += naive.chain(places, end)
        while places:
            score, place = max((naive(place, places, end=end), place) for place in places)
            surest += score
            places = tuple(i for i in places if i != place)
        start = end
    given = {"cfg_scale": cfg_scale, "block_length": block_length}
    for estimator, value in (
        ("exact", bound),
        ("monte_carlo", bound),
        ("left_to_right", chain),
        ("confidence", surest),
    ):
        scores = model.log_likelihood(prompt, answer, estimator=estimator, **given)
        assert float(scores.log_likelihood) == pytest.approx(value, rel=1e-5), estimator
        assert float(scores.standard_error) == 0
    # and the length in generation is the default
    model.generation_config.block_length = block_length
    default = model.log_likelihood(prompt, answer, cfg_scale=cfg_scale).log_likelihood
    assert float(default) == pytest.approx(bound, rel=1e-5)


def test_what_stands_for_many(model):
    answers = [ANSWER, ANSWER[:2]]
    one, many = model.log_likelihood(PROMPT, answers), model.log_likelihood([PROMPT] * 2, answers)
    assert torch.equal(one.log_likelihood, many.log_likelihood)
    one, many = model.log_likelihood([PROMPT, []], ANSWER), model.log_likelihood([PROMPT, []], [ANSWER] * 2)
    assert torch.equal(one.log_likelihood, many.log_likelihood)
    rows = torch.tensor([PROMPT, PROMPT]), torch.tensor([ANSWER, ANSWER[::-1]])
    assert model.log_likelihood(*rows).log_likelihood.shape == (2,)


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = torch.get_rng_state()
    scores = model.log_likelihood(PROMPT, ANSWER)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.eval()
    assert not scores.log_likelihood.requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"answer_ids": []}, "Answer 0 has no token"),
        ({"answer_ids": [[1], []]}, "Answer 1 has no token"),
        ({"prompt_ids": [[1], [2], [3]], "answer_ids": [[1], [2]]}, "3 prompts and 2 answers"),
        ({"answer_ids": [48]}, "the id 48, and the vocabulary ends at 47"),
        ({"answer_ids": [-100]}, "the id -100"),
        ({"prompt_ids": [MASK]}, "the mask token, 40"),
        ({"answer_ids": [1] * 61}, "65 tokens, more than the 64.*score_documents"),
        ({"answer_ids": torch.zeros(1, 1, 1)}, r"`answer_ids` has shape \(1, 1, 1\)"),
        ({"answer_ids": [[[1]]]}, "`answer_ids` is nested too deep"),
        ({"estimator": "elbo"}, "`estimator='elbo'` is unknown; write one of"),
        ({"estimator": "exact", "answer_ids": [1] * 17}, r"17 tokens have 2\*\*17 - 1 masks"),
        ({"estimator": "exact", "num_draws": 3}, "`num_draws=3`, but `estimator='exact'` draws nothing"),
        ({"estimator": "confidence", "num_draws": 3}, "draws nothing"),
        ({"num_draws": 0}, "`num_draws=0` gives no estimate"),
        ({"estimator": "reference", "num_draws": 40}, "`num_draws=40` is no multiple of 16"),
        ({"cfg_scale": math.nan}, "`cfg_scale=nan` is no strength"),
        ({"cfg_scale": -1.0}, "`cfg_scale=-1.0` is no strength"),
        ({"batch_size": 0}, "`batch_size=0` computes nothing"),
        ({"block_length": 4}, "`block_length=4`, but this `llada` attends to the whole answer"),
    ],
)
def test_what_cannot_be_scored(model, given, message):
    with pytest.raises(ValueError, match=message):
        model.log_likelihood(**{"prompt_ids": PROMPT, "answer_ids": ANSWER} | given)


def test_a_block_has_a_length():
    with pytest.raises(ValueError, match="`block_length=0` is no length"):
        tiny_llada2_moe().log_likelihood(PROMPT, ANSWER, block_length=0)
