"""The benchmark command on a model of a few weights, and the parts it is made of."""

import json

import pytest
import torch
from golden import load_golden
from torch import nn

from benchmarks.__main__ import main
from benchmarks.counters import DispatchCounter, ForwardMeter, replay
from benchmarks.decoding import measure
from benchmarks.distillation import text_task
from benchmarks.report import targets, where_the_time_goes
from benchmarks.roofline import H200, backbone_weights, forward_bound, probe
from benchmarks.synthetic_text import EOS, PERIOD, STOP, draw_texts
from benchmarks.workloads import WORKLOADS, Workload, settings_for
from llada import LLaDA2MoeConfig, LLaDAConfig, LLaDAModelLM
from llada.generation import preset
from llada.generation.presets import PRESETS


@pytest.fixture(scope="module")
def model():
    return LLaDAModelLM.from_pretrained(load_golden("llada").folder).eval()


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (3.25, 2.0, 1.0))
    main(
        ["--tiny", "--repetitions", "1", "--training-steps", "2"]
        + ["--output", str(tmp_path), "--cache", str(tmp_path / "models")]
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    full, block_causal = ({row["setting"]: row for row in part["rows"]} for part in results["workloads"])
    # rollouts are drawn, one token per step: as fast as "exact", and nothing that agrees
    measured = set(PRESETS) - {"left-to-right"}
    assert all(any(f'preset("{name}"' in setting for setting in [*full, *block_causal]) for name in measured)
    assert all(0 < row["in_backbone"] < row["in_model"] < 1 for row in [*full.values(), *block_causal.values()])

    plain = full["plain loop"]
    assert plain["forwards"] == 32
    assert plain["positions"] == plain["logit_rows"] == 32 * 2 * 64
    for name in ('preset("llada")', "exact, whole canvas", "exact"):
        assert full[name]["forwards"] <= 32 and full[name]["logit_rows"] < plain["logit_rows"]
    # on a CPU, the head fills 7 to 15 rows up to 16
    rows = [16 if 6 < 2 * masks < 16 else 2 * masks for masks in range(33)]
    assert full["exact, whole canvas"]["logit_rows"] == sum(rows)

    plain, uncached, cached = (
        block_causal[name] for name in ("plain loop", 'preset("llada2"), no cache', 'preset("llada2")')
    )
    assert plain["agreement"] == uncached["agreement"] == cached["agreement"] == 1
    assert plain["forwards"] == uncached["forwards"] == cached["forwards"]
    assert plain["positions"] == uncached["positions"] > cached["positions"]
    assert plain["logit_rows"] == plain["positions"] > uncached["logit_rows"] == cached["logit_rows"]

    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| exact | " in report and "## Targets" in report and "## LLaDA2, prompt 32" in report
    assert f"(load {results['hardware']['load']:.1f})" in report and results["hardware"]["load"] == 3.25
    assert "| plain loop | 1.00 |" in capsys.readouterr().out


def test_distillation_is_measured_and_the_rest_of_the_report_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.probe", lambda device: H200)
    monkeypatch.setattr("benchmarks.__main__.draw_model", lambda *args: None)
    monkeypatch.setattr("benchmarks.__main__.measure_steps", lambda *args, **kwargs: [])
    arguments = ["--tiny", "--training-steps", "2", "--output", str(tmp_path), "--cache", str(tmp_path / "models")]
    nothing_else = ["--only", "something", "--accelerator"]
    main([*arguments, *nothing_else])
    before = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    main([*arguments, "--distill"])
    after = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert after.startswith(before) and "## Distillation" in after[len(before) :]
    demo, text = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["distillation"]["tasks"]
    assert [row["model"] for row in text["rows"]] == ["teacher", "random", "trajectory"]
    teacher, others = demo["rows"][:2]
    assert (teacher["prompts"], others["prompts"]) == ("distilled on", "others")
    assert teacher["slow_accuracy"] == pytest.approx(26 / 30) and 1.2 < teacher["tokens_per_forward"] < 1.4
    assert "| teacher | distilled on | 83.3% | 86.7% |" in after and "| teacher |" in capsys.readouterr().out
    # and the other way round
    main([*arguments, *nothing_else])
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8").partition("## Distillation")[2] in after


def test_what_is_right_in_a_text():
    task = text_task(tiny=True)
    prompt = task.prompts[0]
    # the second period once more, and each word in its other form where there are two
    period = prompt[PERIOD:]
    assert task.max_new_tokens == PERIOD and task.score(prompt, period) == 1
    other = [3 + ((word - 3) ^ 1) if word - 3 < 125 else word for word in period]
    assert task.score(prompt, other) == 1
    assert task.score(prompt, period[: PERIOD // 2]) == 0.5
    assert task.score(prompt, [word + 2 for word in period]) == 0


def test_steps_are_timed_alone_and_a_name_that_nothing_has_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--tiny", "--only", "something", "--output", str(tmp_path)])
    assert "no workload has 'something' in its name" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    main(["--tiny", "--only", "something", "--accelerator", "--output", str(tmp_path)])
    report = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in results["steps"]] == [
        "32 of 64 positions",
        "64 of 64 positions",
        "32 of 64 positions, compiled",
        "64 of 64 positions, compiled",
    ]
    assert "| 32 of 64 positions |" in report and "| setting |" not in report


def results_of(stops: bool = False, **rows) -> dict:
    plain = {"positions": 100, "in_model": 0.9, "in_backbone": 0.5, "forwards": 10, "seconds": 1.0}
    rows = [{"setting": name, **plain, **row} for name, row in {"plain loop": {}, **rows}.items()]
    part = {"workload": "some", "shape": {"vocab_size": 8192, "stops": stops}, "rows": rows}
    return {"workloads": [part], "steps": []}


def test_targets_are_met_or_missed():
    row = {"in_model": 0.96, "speedup": 1.5, "over_bare_calls": 1.2}
    results = results_of(exact=row, **{"threshold, dual cache": row})
    step = {"bound_milliseconds": 2.0, "milliseconds": 3.0, "peak_gigabytes": 1.0, "needed_gigabytes": 1.0}
    lines = targets({**results, "steps": [{"name": "a step", **step}]}).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "missed by 0.50",
        "met",
        "missed by 0.10",
        "missed by 0.20",
        "met",
    ]
    assert "not measured" in targets({"workloads": [], "steps": []})


def test_every_setting_of_every_workload_has_to_spend_its_time_in_the_model():
    results = results_of(stops=True, some={"in_model": 0.96}, other={"in_model": 0.93})
    assert "at least 95 % (least: other) | 93.0% | missed by 2.0% |" in targets(results)
    # not the plain loop
    assert "(least: some) | 96.0% | met |" in targets(results_of(some={"in_model": 0.96}))


def test_where_the_time_goes_names_what_is_below_the_target():
    (part,) = results_of(
        some={"in_model": 0.96, "forwards": 20},
        other={"in_model": 0.93},
        exact={"in_model": 0.95, "positions": 40, "forwards": 4},
        **{'preset("llada")': {"in_model": 0.96, "in_backbone": 0.6, "speedup": 1.5}},
    )["workloads"]
    text = where_the_time_goes(part)
    assert "takes 50% of the time of the plain loop, 40% where the last layer" in text
    assert "the same passes cannot be more than 2.50× as fast. The head takes 36% of" in text
    assert "also stops at the end of text, after 4 passes" in text
    assert "from 2.00 ms (some) to 12.50 ms (exact)" in text
    assert text.endswith("Below 95 % in the model, and what a step takes outside it: other 93.0%, 7.00 of 100.0 ms.")
    (part,) = results_of(**{'preset("llada2")': {"in_model": 0.96, "positions": 25}})["workloads"]
    assert "with its cache, `llada2` computes 25% of them" in where_the_time_goes(part)
    assert "Below" not in where_the_time_goes(part)


def test_presets_keep_their_plans():
    for workload in WORKLOADS:
        for name, arguments in settings_for(workload).items():
            if not name.startswith("preset") or "llada" in name and workload.model == "LLaDA" or "fast-dllm" in name:
                continue
            config = arguments["generation_config"]
            published = preset(name.split('"')[1])
            for field in ("block_length", "threshold", "kv_cache", "max_denoising_steps", "entropy_bound"):
                assert getattr(config, field) == getattr(published, field), name
            assert config.max_new_tokens == workload.max_new_tokens


def test_answers_that_are_shorter_count_as_they_are(model):
    workload = Workload(6, 16, 2, 320)
    shorter = {"block_length": 8, "threshold": 0.9, "initial_length": 8, "length_threshold": 0.0}
    settings = {"all": {"max_new_tokens": 16, "block_length": 8}, "shorter": {"max_new_tokens": 16, **shorter}}
    plain, whole, short = measure(model, workload, torch.randint(0, 290, (2, 6)), settings, 1, block_length=8)
    assert plain.tokens == whole.tokens == 32 and whole.agreement == 1.0
    assert short.tokens == 16 and short.agreement <= 0.5


def test_draws_are_the_same_in_every_repetition(model, monkeypatch):
    answers, generate = [], model.generate

    def record(*args, **given):
        answers.append(generate(*args, **given))
        return answers[-1]

    monkeypatch.setattr(model, "generate", record)
    settings = {"eb": {"generation_config": preset("eb", max_new_tokens=16)}}
    measure(model, Workload(6, 16, 1, 320), torch.randint(0, 290, (1, 6)), settings, 2, block_length=8)
    assert len(answers) == 3 and all(torch.equal(answer, answers[0]) for answer in answers)
    assert not torch.equal(generate(answers[0][:, :6], **settings["eb"]), answers[0])


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
    # 18.8 ms if the last of the 32 layers computes every position, of which 0.84 of its weights and attention
    assert not full.by_memory and full.seconds == pytest.approx(18.8e-3 * (1 - 0.84 / 32 * 992 / 1024), rel=5e-3)
    with_every_row = forward_bound(config, H200, 1, 1024, 1024, 1024)
    assert with_every_row.seconds == pytest.approx(20.1e-3, rel=5e-3)


def test_the_weights_that_a_token_of_a_model_with_experts_meets():
    config = LLaDA2MoeConfig()
    attention = 2048 * 128 * 2 * (16 + 4)
    experts = 3 * 2048 * 512 * (8 + 1) + 2048 * 256
    assert backbone_weights(config) == 20 * attention + 3 * 2048 * 5120 + 19 * experts


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
