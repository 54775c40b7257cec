"""Two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_parallel_run import (
    REWARDED,
    VARIANTS,
    make_trainer,
    run,
    run_other_trainers,
    run_preferences,
    run_rewards,
)
from safetensors.torch import load_file

from llada import LLaDAModelLM, LLaDAMoEModelLM


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two processes of two micro-batches of two did, and one process with a batch of eight."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.run(
        [*command, str(ROOT / "tests" / "data_parallel_run.py"), str(two)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"},
        cwd=two,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    run(one, per_device_train_batch_size=8, accumulation=1)
    run_preferences(one, per_device_train_batch_size=8, accumulation=1)
    run_other_trainers(one, per_device_train_batch_size=8, accumulation=1)
    run_rewards(one, per_device_train_batch_size=8, accumulation=1)
    return two, one


def _results(folder, rank=0):
    return json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("normalization", ["sequence", "token", "batch", "masked"])
def test_the_gradient_is_that_of_one_large_batch(runs, normalization):
    two, one = runs
    expected = torch.load(one / f"{normalization}.pt")
    before = dict(make_trainer(one, 8).model.named_parameters())
    assert all(not torch.equal(parameter, expected[name]) for name, parameter in before.items())
    for name, parameter in torch.load(two / f"{normalization}.pt").items():
        torch.testing.assert_close(parameter, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("normalization", ["sequence", "token", "batch", "masked"])
def test_the_log_is_that_of_one_large_batch(runs, normalization):
    logged, expected = (_results(folder)[normalization] for folder in runs)
    for name in ("loss", "content_ce", "content_accuracy", "eos_ce", "mask_ratio", "num_tokens"):
        assert logged[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize("name", ["pretraining", "distillation", "adapter", "experts"])
def test_other_trainers_and_models_learn_what_one_large_batch_teaches(runs, name):
    """With noisy masks; pre-training with rows cut to a drawn length, distillation with complements."""
    found, expected = (torch.load(folder / f"{name}.pt") for folder in runs)
    logged, wanted = (json.loads((folder / f"{name}.json").read_text()) for folder in runs)
    assert logged["num_tokens"] == wanted["num_tokens"]
    for key in ("loss", "content_ce", "mask_ratio"):
        assert logged[key] == pytest.approx(wanted[key], rel=1e-5), key
    assert 0 < wanted["mask_ratio"] < 1
    before = dict(make_trainer(runs[1], 8, variant=name if name in VARIANTS else "dense").model.named_parameters())
    assert found.keys() == expected.keys() and len(found) >= 4
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-4, msg=key)
        assert torch.equal(value, before[key]) is (name == "experts" and "mlp.gate.weight" in key), key


def test_preferences_of_two_processes_are_those_of_one(runs):
    (found, logged), (expected, wanted) = (
        (torch.load(folder / "preferences.pt"), json.loads((folder / "preferences.json").read_text()))
        for folder in runs
    )
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "num_tokens"):
        assert logged[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    assert abs(wanted["rewards/margins"]) > 1e-3 and wanted["grad_norm"] > 0.1
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("estimator", REWARDED)
def test_rewards_of_two_processes_are_those_of_one(runs, estimator):
    (found, logged), (expected, wanted) = (
        (
            torch.load(folder / f"rewards-{estimator}.pt"),
            json.loads((folder / f"rewards-{estimator}.json").read_text()),
        )
        for folder in runs
    )
    for name in ("reward", "reward_std", "completions/mean_length", "num_tokens", "loss", "grad_norm"):
        assert logged[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name
    assert wanted["reward_std"] > 0 and wanted["completions/mean_length"] < 6
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_evaluation_is_that_of_one_process(runs):
    # five rows on two processes: the one that is added to make them even does not count
    evaluation, expected = (_results(folder)["evaluation"] for folder in runs)
    names = [name for name in expected if name.endswith(("bound", "accuracy", "loss"))]
    assert len(names) == 7
    for name in names:
        assert evaluation[name] == pytest.approx(expected[name], rel=1e-5), name


def test_a_model_spread_over_processes_learns_and_is_saved_the_same(runs):
    """With the shipped configuration of FSDP2, and with activations computed twice."""
    two, one = runs
    folder, expected = two / "sharded-dense", torch.load(one / "sequence.pt")
    logged = json.loads((two / "sharded-dense.json").read_text())
    assert logged["loss"] == pytest.approx(_results(one)["sequence"]["loss"], rel=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"]
    assert "model.transformer.blocks.0.attn_out.weight" in load_file(folder / "model.safetensors")
    for name, parameter in LLaDAModelLM.from_pretrained(folder).state_dict().items():
        torch.testing.assert_close(parameter, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("variant", ["adapter", "experts"])
def test_adapters_and_frozen_routers_of_a_model_spread_over_processes(runs, variant):
    two, one = runs
    folder = two / f"sharded-{variant}"
    logged, wanted = (
        json.loads(path.read_text()) for path in (two / f"sharded-{variant}.json", one / f"{variant}.json")
    )
    assert logged["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    if variant == "adapter":
        found, expected = (load_file(path / "adapter_model.safetensors") for path in (folder, one / "whole-adapter"))
    else:
        found, expected = LLaDAMoEModelLM.from_pretrained(folder).state_dict(), torch.load(one / "experts.pt")
    assert found.keys() >= expected.keys() and len(expected) >= 4
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, atol=1e-5, rtol=1e-4, msg=name)


def _ratios(runs, ratio_sampling):
    return [ratios for rank in (0, 1) for ratios in _results(runs[0], rank)[ratio_sampling]]


def test_processes_draw_different_noise(runs):
    for ratio_sampling in ("iid", "stratified"):
        ratios = [ratio for batch in _ratios(runs, ratio_sampling) for ratio in batch]
        assert len(ratios) == len(set(ratios)) == 8


def test_strata_span_the_processes(runs):
    strata = [int(ratio * 8) for batch in _ratios(runs, "stratified") for ratio in batch]
    assert sorted(strata) == list(range(8))


def test_all_processes_sample_and_the_first_one_shows_it(runs):
    two, one = runs
    assert _results(two)["samples"] == _results(one)["samples"] != []
    assert _results(two, rank=1)["samples"] == []
