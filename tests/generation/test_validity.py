"""Settings that cannot work together are refused when the config is built, and say what to write instead."""

import pytest
from tiny_models import tiny_llada

from llada import DiffusionGenerationConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.9, "factor": 1.0}, "`threshold` and `factor` each say how many"),
        ({"frechet_margin": 0.2, "entropy_bound": 0.1}, "`frechet_margin` and `entropy_bound` each say how many"),
        ({"factor": -1.0}, "`factor` must be at least 0"),
        ({"entropy_bound": -0.1}, "`entropy_bound` must be at least 0"),
        ({"frechet_margin": 1.5}, "`frechet_margin` is a probability"),
        ({"factor_compat": "dllm"}, "`factor_compat` must be one of"),
        ({"threshold": 0.9, "remasking": "random"}, "`threshold` compares the probabilities"),
        ({"factor": 1.0, "remasking": "entropy"}, "`factor` compares the probabilities"),
        ({"frechet_margin": 0.1, "remasking": "margin"}, "`frechet_margin` compares the probabilities"),
        ({"entropy_bound": 0.1, "remasking": "random"}, '`remasking="random"` keeps any'),
        ({"rng_compat": "llada", "factor": 1.0}, "leave out `factor`"),
        ({"rng_compat": "llada", "remasking": "margin"}, "leave out `remasking`"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_combinations(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor_compat": "fast_dllm"}, "refines `factor`; set `factor`, too"),
        ({"editing_threshold": 0.5}, "refines `threshold`; set `threshold`, too"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_a_setting_needs_may_come_from_the_model(settings, message):
    model = tiny_llada()
    prompt = {"input_ids": model.dummy_inputs["input_ids"][:, :3].clamp(max=39), "max_new_tokens": 4}
    config = DiffusionGenerationConfig(**settings)
    with pytest.raises(ValueError, match=message):
        model.generate(**prompt, generation_config=config)
    model.generation_config.threshold = 0.5
    if "editing_threshold" in settings:
        assert model.generate(**prompt, generation_config=config).shape == (3, 7)


def test_one_selection_replaces_that_of_a_weaker_source():
    model = tiny_llada()
    model.generation_config.threshold = 0.5
    config, _ = model._read_arguments(model.dummy_inputs["input_ids"], None, {"factor": 1.0})
    assert (config.threshold, config.factor) == (None, 1.0)
