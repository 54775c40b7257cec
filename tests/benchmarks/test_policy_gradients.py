"""The exact policy gradient against the loop that samples, and the estimators that have to agree with it."""

import json

import pytest
import torch

from benchmarks import policy_certificates
from benchmarks.__main__ import main
from benchmarks.certificates import draw_model
from benchmarks.exact import Enumeration, total_variation
from benchmarks.policy_certificates import DOCUMENT, ESTIMATORS, PROMPT, SAMPLERS, PolicyBench, overview
from benchmarks.policy_gradients import LogitTable, PathEnumeration
from llada.trainers.policy_estimates import trajectory_logps, trajectory_views


# settings of `generate` for samplers
SETTINGS = {
    "by chance": {"remasking": "random"},
    "least entropy first": {"remasking": "entropy"},
    "from the left": {"block_length": 1},
    "surest first": {},
    "surest two first": {"max_denoising_steps": 2},
}


@pytest.fixture(scope="module")
def table():
    model = draw_model(1, hidden_size=8)
    # every word is one, and no answer ends early
    model.config.eos_token_id = None
    return LogitTable(model)


@pytest.fixture(scope="module")
def bench(table):
    benches = {}

    def make(name):
        if name not in benches:
            benches[name] = PolicyBench(table, SAMPLERS[name])
        return benches[name]

    return make


def enumerate_loop(model, length, name):
    settings = {"max_new_tokens": length, "block_length": length, "confidence_dtype": "float64"}
    return Enumeration(model, PROMPT.unsqueeze(0), settings | SETTINGS[name]).probabilities


@pytest.mark.parametrize("name", SETTINGS)
def test_paths_are_those_of_the_loop_that_samples(table, name) -> None:
    # of three tokens there are few paths; in blocks, they are written as generation writes
    paths = PathEnumeration(table, PROMPT, 3, SAMPLERS[name]).paths()
    assert total_variation(paths.by_answer().probabilities, enumerate_loop(table.model, 3, name)) < 1e-9
    assert paths.slopes.sum(dim=0).abs().max() < 1e-9, "probabilities add up to 1 for all weights"


def test_blocks_are_written_as_they_are_sampled() -> None:
    model, number = draw_model(2, hidden_size=8), 4000
    model.config.eos_token_id, model.config.block_causal = None, True
    model.generation_config.eos_token_id = None
    paths = PathEnumeration(LogitTable(model), PROMPT, 3, SAMPLERS["in blocks"]).paths()
    torch.manual_seed(0)
    drawn = model.generate(PROMPT.expand(number, -1), max_new_tokens=3, block_length=2, do_sample=True)[:, 3:]
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27).double()
    # the mean of this distance is below half of sqrt(27 / 4000), and it leaves it by 0.02 once in 20,000 times
    assert total_variation(paths.by_answer().probabilities, counts / number) < 0.041 + 0.025


def test_the_gradient_is_the_slope_of_what_the_loop_samples(table) -> None:
    """Also through the order, which depends on what is drawn."""
    exact = PathEnumeration(table, PROMPT, 3, SAMPLERS["surest first"]).paths().by_answer().slopes
    generator = torch.Generator().manual_seed(0)
    parameters = list(table.model.parameters())
    direction = [torch.randn(parameter.shape, generator=generator, dtype=torch.double) for parameter in parameters]
    sides = []
    # norms are computed in float32
    for factor in (1e-3, -1e-3):
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.data += factor * part
        sides.append(enumerate_loop(table.model, 3, "surest first"))
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.data -= factor * part
    slope = exact @ torch.cat([part.flatten() for part in direction])
    torch.testing.assert_close((sides[0] - sides[1]) / 2e-3, slope, rtol=1e-3, atol=1e-3)
    assert slope.abs().max() > 0.1


def test_a_gradient_from_the_table_is_that_of_the_model(table) -> None:
    answers = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    views, committed = trajectory_views(PROMPT.expand(2, -1), answers, answers, torch.tensor([[0, 2]] * 2), 3)
    found = table.gradients(trajectory_logps(table, views, answers, committed).sum(dim=1))
    for row, gradient in enumerate(found):
        value = trajectory_logps(table.model, views, answers, committed).sum(dim=1)[row]
        expected = torch.autograd.grad(value, list(table.model.parameters()))
        torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in expected]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("from the left", "`trajectory`, all steps"),
        ("from the left", "`trajectory`, one step drawn"),
        ("from the left", "`left_to_right`"),
        ("least entropy first", "`trajectory`, all steps"),
        ("all at once", "`trajectory`, all steps"),
        ("all at once", "`diffu_grpo`"),
    ],
)
def test_estimators_that_are_exact(bench, name, estimator) -> None:
    worth = bench(name).measure(ESTIMATORS[estimator])
    # one of the two keeps a few tokens of a mask that is not drawn
    assert worth.bias < (0.3 if estimator == "`diffu_grpo`" else 1e-5)


def test_an_order_that_looks_at_the_draws_is_not_in_the_path(bench) -> None:
    everything, single = (
        bench("surest two first").measure(ESTIMATORS[f"`trajectory`, {kind}"])
        for kind in ("all steps", "one step drawn")
    )
    assert everything.bias > 0.05 and everything.noise == pytest.approx(0, abs=1e-9)
    assert single.bias == pytest.approx(everything.bias, abs=1e-5)
    assert single.noise > 0.1 and single.total == pytest.approx(everything.total + single.noise, rel=1e-4)
    assert (everything.passes, single.passes) == (2, 1) and everything.price == 2 * everything.total


def test_the_command_writes_both_documents(tmp_path, monkeypatch, table) -> None:
    page = tmp_path / "alignment.md"
    page.write_text("before\n<!-- estimators -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(policy_certificates, "DOCUMENT", page)
    monkeypatch.setattr(policy_certificates, "policies", lambda block_length: [table.model])
    monkeypatch.setattr(policy_certificates, "SAMPLERS", {"all at once": SAMPLERS["all at once"]})
    monkeypatch.setattr(
        policy_certificates, "ESTIMATORS", {name: ESTIMATORS[name] for name in ("`diffu_grpo`", "`blocks`, one draw")}
    )
    main(["--policy", "--output", str(tmp_path)])
    (row,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["policy"]["rows"]
    assert row["sampler"] == "all at once" and row["estimator"] == "`diffu_grpo`" and row["passes"] == 1
    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"| `diffu_grpo` | 1 | {row['bias']:.3f} | {row['angle']:.1f}° | 0.0 | {row['total']:.1f} |" in report
    before, shown, after = page.read_text(encoding="utf-8").split("<!--")
    assert "old" not in shown and f"| `diffu_grpo` | {row['bias']:.2f}, " in shown
    assert "| `blocks`, one draw |  |" in shown and before == "before\n" and after.endswith("after\n")


def test_the_committed_figures_are_complete() -> None:
    rows = json.loads((DOCUMENT.parents[1] / "benchmarks" / "results.json").read_text(encoding="utf-8"))["policy"][
        "rows"
    ]
    wanted = {
        (sampler, name)
        for sampler, kind in SAMPLERS.items()
        for name, estimator in ESTIMATORS.items()
        if kind.block_length or not estimator.needs_blocks
    }
    assert {(row["sampler"], row["estimator"]) for row in rows} == wanted and len(rows) == len(wanted)
    assert "\n".join(overview(rows)) in DOCUMENT.read_text(encoding="utf-8")
    # the facts that the page builds on
    found = {(row["sampler"], row["estimator"]): row for row in rows}
    for sampler in ("by chance", "least entropy first", "from the left", "all at once"):
        assert found[sampler, "`trajectory`, all steps"]["bias"] < 1e-4
    assert found["from the left", "`left_to_right`"]["bias"] < 1e-4
