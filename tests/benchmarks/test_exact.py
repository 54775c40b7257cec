"""The enumeration of draws against a plain recursion, against sampling, and against the committed table."""

from itertools import permutations

import pytest
import torch

from benchmarks import certificates
from benchmarks.certificates import CASES, DOCUMENT, EOS, MASK, NOT_MEASURED, Bench, draw_model, mean, rules_of
from benchmarks.exact import Enumeration, answers, any_order_likelihood, divergence, total_variation
from llada.generation.rules import RULES


PROMPT = torch.tensor([[0, 1, 0]])
SETTINGS = {"max_new_tokens": 3, "block_length": 3, "confidence_dtype": "float64"}


@pytest.fixture(scope="module")
def model():
    return draw_model(1)


@torch.no_grad()
def predict(model, canvas: tuple[int, ...]) -> torch.Tensor:
    """Probabilities of the words at every position, `(length, 3)`."""
    logits = model(torch.tensor([[*PROMPT[0].tolist(), *canvas]])).logits[0, 3:]
    return logits[:, :MASK].softmax(1)


def recurse(model, canvas: tuple[int, ...], threshold: float) -> dict[tuple[int, ...], float]:
    """All answers with their probabilities: what reaches the threshold is kept, and at least the surest."""
    if EOS in canvas and MASK not in canvas[: canvas.index(EOS)]:
        return {canvas[: canvas.index(EOS)] + (EOS,) * (len(canvas) - canvas.index(EOS)): 1.0}
    masked = [place for place, token in enumerate(canvas) if token == MASK]
    if not masked:
        return {canvas: 1.0}
    probability, result = predict(model, canvas), {}
    with torch.no_grad():
        # confidences are compared with the mask among the tokens
        shares = model(torch.tensor([[*PROMPT[0].tolist(), *canvas]])).logits[0, 3:].softmax(1)
    for drawn in torch.cartesian_prod(*[torch.arange(MASK)] * len(masked)).view(-1, len(masked)).tolist():
        chance, sure = 1.0, {}
        for place, token in zip(masked, drawn, strict=True):
            chance *= float(probability[place, token])
            sure[place] = float(shares[place, token])
        kept = [place for place in masked if sure[place] >= threshold] or [max(sure, key=sure.get)]
        after = list(canvas)
        for place, token in zip(masked, drawn, strict=True):
            after[place] = token if place in kept else MASK
        for answer, share in recurse(model, tuple(after), threshold).items():
            result[answer] = result.get(answer, 0.0) + chance * share
    return result


@pytest.mark.parametrize("threshold", [2.0, 0.5])
def test_a_plain_recursion_finds_the_same_distribution(model, threshold):
    given = {"threshold": threshold} if threshold <= 1 else {}
    found = Enumeration(model, PROMPT, SETTINGS | given)
    expected = recurse(model, (MASK,) * 3, threshold)
    probabilities = torch.tensor([expected.get(tuple(answer), 0.0) for answer in answers(3, 3).tolist()])
    assert total_variation(found.probabilities, probabilities.double()) < 1e-6
    assert float(found.probabilities.sum()) == pytest.approx(1.0, abs=1e-9)
    assert found.forwards < 3 if given else found.forwards > 2


def test_any_order_is_the_mean_over_orders(model):
    found = Enumeration(model, PROMPT, SETTINGS | {"remasking": "random", "eos_token_id": 1, "eos_early_stop": True})
    written = Enumeration(model, PROMPT, SETTINGS | {"remasking": "random"})
    assert total_variation(written.probabilities, written.probabilities) == 0
    assert total_variation(found.probabilities, written.probabilities) > 0.01
    texts = answers(3, 3)
    expected = torch.zeros(len(texts), dtype=torch.double)
    likelihood = torch.zeros(len(texts), dtype=torch.double)
    for number, text in enumerate(texts.tolist()):
        length = text.index(EOS) + 1 if EOS in text else 3
        for order in permutations(range(length)):
            canvas = [MASK] * 3
            for place in order:
                likelihood[number] += predict(model, tuple(canvas))[place, text[place]].log()
                canvas[place] = text[place]
        likelihood[number] /= len(list(permutations(range(length))))
        for order in permutations(range(3)):
            canvas, chance = [MASK] * 3, 1.0
            for place in order:
                chance *= float(predict(model, tuple(canvas))[place, text[place]])
                canvas[place] = text[place]
            answer = text[:length] + [EOS] * (3 - length)
            expected[answer[0] * 9 + answer[1] * 3 + answer[2]] += chance / 6
    assert total_variation(written.probabilities, expected) < 1e-6
    assert torch.allclose(any_order_likelihood(model, PROMPT.expand(27, -1), texts), likelihood)


@pytest.mark.parametrize(
    "rule",
    [
        {"threshold": 0.6, "kl_threshold": 0.05},
        {"block_length": 2, "kv_cache": "dual"},
        {"remasking_temperature": 0.5, "max_denoising_steps": 2},
        {"step_schedule": "bernoulli", "max_denoising_steps": 2},
        {"threshold": 0.5, "verify_threshold": 0.7},
        {"threshold": 0.4, "editing_threshold": 0.4, "max_post_steps": 1},
    ],
    ids=lambda rule: next(iter(rule)),
)
def test_sampling_draws_from_the_same_distribution(model, rule):
    found, number = Enumeration(model, PROMPT, SETTINGS | rule), 4000
    torch.manual_seed(0)
    drawn = model.generate(PROMPT.expand(number, -1), do_sample=True, **SETTINGS | rule)[:, 3:]
    drawn = torch.nn.functional.pad(drawn, (0, 3 - drawn.shape[1]), value=EOS)
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27).double()
    # the mean of this distance is below half of sqrt(27 / 4000), and it leaves it by 0.02 once in 20,000 times
    assert total_variation(found.probabilities, counts / number) < 0.041 + 0.025


def test_one_token_per_step_is_unbiased_and_reveals_by_chance_become_it(model):
    plain = Enumeration(model, PROMPT, SETTINGS | {"remasking": "random"})
    steps = Enumeration(model, PROMPT, SETTINGS | {"remasking": "random", "max_denoising_steps": 3})
    assert total_variation(plain.probabilities, steps.probabilities) < 1e-9
    assert divergence(plain.probabilities, steps.probabilities) == pytest.approx(0.0, abs=1e-9)
    schedule = {"step_schedule": "bernoulli"}
    variations = [
        total_variation(
            plain.probabilities,
            Enumeration(model, PROMPT, SETTINGS | schedule | {"max_denoising_steps": number}).probabilities,
        )
        for number in (3, 6, 12, 24)
    ]
    assert all(0.4 < after / before < 0.6 for before, after in zip(variations[:-1], variations[1:], strict=True))


def test_an_order_that_is_all_but_certain_is_refused(model):
    with pytest.raises(ValueError, match="too low to enumerate"):
        Enumeration(model, PROMPT, SETTINGS | {"remasking_temperature": 0.01})


def test_every_rule_is_measured_or_said_not_to_be():
    # the default order and the plan of steps are what the others are compared with
    measured = set().union(*(rules_of(settings) for settings in CASES.values())) | {"ByConfidence"}
    assert measured | set(NOT_MEASURED) == {rule.__name__ for rule in RULES}
    # inserting and deleting go with token editing where there are control tokens
    assert measured & set(NOT_MEASURED) == {"Levenshtein"}


def committed_table() -> dict[str, list[str]]:
    text = DOCUMENT.read_text(encoding="utf-8").split("<!-- certificates -->\n")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


FAST = ("threshold 0.7", "quota, 2 steps", "KLASS 0.6, 0.015", "dual cache, blocks of 2", "reveals by chance, 6 steps")


def test_the_committed_table_is_complete_and_what_random_models_give():
    table = committed_table()
    assert set(table) == set(CASES)
    benches = [Bench(model) for model in certificates.random_models()]
    for name in FAST:
        found = mean([bench.measure(CASES[name]) for bench in benches])
        assert float(table[name][6]) == pytest.approx(found.variation, abs=0.002), name
        before, after = map(float, table[name][7].split(" → "))
        assert (before, after) == pytest.approx((found.before, found.forwards), abs=0.02), name


@pytest.mark.slow
def test_the_committed_table_is_what_trained_models_give():
    table = committed_table()
    for line in certificates.certify(list(FAST))[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert float(cells[1]) == pytest.approx(float(table[name][1]), abs=0.01), name
        assert float(cells[4]) == pytest.approx(float(table[name][4]), abs=0.05), name
