"""The benchmark command on a model of a few weights, and the parts it is made of."""

import json

import pytest
import torch
from golden import load_golden
from torch import nn

from benchmarks.__main__ import main
from benchmarks.counters import DispatchCounter, ForwardMeter, replay
from benchmarks.reference_loop import reference_generate
from benchmarks.report import targets
from benchmarks.roofline import H200, backbone_weights, forward_bound, probe
from benchmarks.synthetic_text import EOS, PERIOD, STOP, draw_texts
from llada import LLaDAConfig, LLaDAModelLM
from llada.generation import preset


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


def test_the_command(tmp_path, capsys):
    main(
        ["--tiny", "--repetitions", "1", "--training-steps", "2", "--accelerator"]
        + ["--output", str(tmp_path), "--cache", str(tmp_path / "models")]
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (part,) = results["workloads"]
    rows = {row["setting"]: row for row in part["rows"]}
    plain = rows["plain loop"]
    assert plain["forwards"] == 32
    assert plain["positions"] == plain["logit_rows"] == 32 * 2 * 64
    for name in ('preset("llada")', "exact, whole canvas", "exact"):
        assert rows[name]["forwards"] <= 32 and rows[name]["logit_rows"] < plain["logit_rows"]
    assert rows["exact, whole canvas"]["logit_rows"] == 2 * sum(range(33))
    assert all(0 < row["in_backbone"] < row["in_model"] < 1 for row in part["rows"])
    assert [step["name"] for step in results["steps"]] == [
        "32 of 64 positions",
        "64 of 64 positions",
        "32 of 64 positions, compiled",
        "64 of 64 positions, compiled",
    ]
    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| exact | " in report and "## Targets" in report
    assert f"cannot be more than {1 / plain['in_backbone']:.2f}× as fast" in report
    assert "| plain loop | 1.00 |" in capsys.readouterr().out


def test_targets_are_met_or_missed():
    row = {"in_model": 0.96, "speedup": 1.5, "over_bare_calls": 1.2}
    part = {
        "workload": "some",
        "shape": {"vocab_size": 8192, "stops": False},
        "rows": [{"setting": name, **row} for name in ("plain loop", "exact", "threshold, dual cache")],
    }
    step = {"bound_milliseconds": 2.0, "milliseconds": 3.0, "peak_gigabytes": 1.0, "needed_gigabytes": 1.0}
    lines = targets({"workloads": [part], "steps": [{"name": "a step", **step}]}).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "missed by 0.50",
        "met",
        "missed by 0.10",
        "missed by 0.20",
        "met",
    ]
    assert "not measured" in targets({"workloads": [], "steps": []})


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_plain_loop_is_the_published_sampler(model, temperature):
    prompt = torch.randint(0, 290, (2, 5))
    settings = {"max_new_tokens": 12, "block_length": 4, "steps": 9 if not temperature else 6}
    torch.manual_seed(3)
    expected = model.generate(prompt, preset("llada", **settings, temperature=temperature))
    torch.manual_seed(3)
    assert torch.equal(reference_generate(model, prompt, 300, **settings, temperature=temperature), expected)


def test_waits_are_counted():
    values = torch.arange(6.0)
    waiting = (
        lambda: values.tolist(),
        lambda: values[0].item(),
        lambda: bool(values[0]),
        lambda: int(values[1]),
        lambda: values[values > 2],
        lambda: values.nonzero(),
        lambda: torch.tensor([1, 2]),
        lambda: torch.equal(values, values),
        lambda: values.clone().index_put_((values > 2,), values[0]),
    )
    for wait in waiting:
        with DispatchCounter() as counter:
            wait()
        assert counter.waits.total() == 1
    with DispatchCounter() as counter:
        values[torch.arange(2)].masked_fill(torch.ones(2, dtype=torch.bool), 3.0).sort()
    assert not counter.waits
    assert counter.operations["sort"] == 1


def test_memory_is_counted_while_it_is_held():
    with DispatchCounter() as counter:
        for _ in range(3):
            kept = torch.zeros(1000)
            kept.view(10, 100).add_(1)
        del kept
        torch.zeros(500, dtype=torch.int64)
    # the new one is made before the old one goes
    assert counter.peak_bytes == 2 * 4000
    assert counter.largest == 1000


def test_calls_are_replayed(model):
    prompt = torch.randint(0, 290, (2, 6))
    with ForwardMeter(model, record=True) as meter:
        model.generate(prompt, max_new_tokens=16, block_length=8, max_denoising_steps=2, kv_cache="dual")
    with ForwardMeter(model) as again:
        replay(model, meter.calls)
    for name in ("forwards", "positions", "logit_rows"):
        assert getattr(again, name) == getattr(meter, name) > 0
    assert meter.seconds > meter.backbone_seconds > 0
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Linear))


def test_the_bounds_of_an_8b_model():
    config = LLaDAConfig()
    assert backbone_weights(config) == pytest.approx(6.98e9, rel=1e-3)
    cached = forward_bound(config, H200, 1, 32, 1024, 32)
    assert cached.by_memory and cached.seconds == pytest.approx(3.24e-3, rel=5e-3)
    full = forward_bound(config, H200, 1, 1024, 1024, 32)
    assert not full.by_memory and full.seconds == pytest.approx(18.8e-3, rel=5e-3)
    with_every_row = forward_bound(config, H200, 1, 1024, 1024, 1024)
    assert with_every_row.seconds == pytest.approx(20.1e-3, rel=5e-3)


def test_a_device_is_probed():
    device = probe(torch.device("cpu"))
    assert device.bandwidth > 1e8 and device.flops > 1e8


def test_texts_repeat_until_a_full_stop():
    texts = draw_texts(20, 4 * PERIOD, stops=1.0, before=2 * PERIOD)
    assert ((texts == STOP).sum(1) == 1).all()
    place = (texts == STOP).int().argmax(1)
    assert ((texts == EOS).int().argmax(1) == place + PERIOD).all()
    endless = draw_texts(20, 4 * PERIOD)
    assert not (endless == EOS).any()
    same = (endless[:, PERIOD:] == endless[:, :-PERIOD]).float().mean()
    assert 0.8 < same < 1.0
