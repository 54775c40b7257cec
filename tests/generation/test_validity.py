"""Settings that cannot work together are refused when the config is built, and say what to write instead."""

import pytest
import torch
from tiny_models import tiny_llada

from llada import DiffusionGenerationConfig
from llada.generation.validity import (
    AT_LEAST_1,
    CACHE_SETTINGS,
    CONFLICTS,
    COUNTS,
    DIVISORS,
    EARLY_COMMITS,
    NEEDS,
    NOT_IN_THE_REFERENCE,
    NOT_NEGATIVE,
    NUMBERS,
    PROBABILITIES,
    REFINEMENTS,
    REVISIONS,
    SELECTIONS,
    VALUE_NEEDS,
)


# a value that every setting may have
VALUES = {
    "cache_warmup": 2,
    "commit_gaps": [5.0],
    "expand_factor": 4,
    "exploration_steps": 2,
    "factor_compat": "fast_dllm",
    "initial_length": 4,
    "kl_history": 2,
    "kv_cache": "dual",
    "length_step": 2,
    "length_window": 4,
    "max_denoising_steps": 4,
    "refresh_interval": 4,
    "remasking": "margin",
    "span_stops_early": True,
    "span_window": 2,
    "stable_steps": 2,
    "step_schedule": "dream",
    "steps": 4,
    "suffix_window": 4,
    "suppress_eos": "rising",
    "vicinity": 4,
}


def settings_of(*names, **values):
    return {name: VALUES.get(name, 0.5) for name in names} | values


@pytest.mark.parametrize("group", [SELECTIONS, REFINEMENTS, REVISIONS, EARLY_COMMITS])
def test_one_of_a_group(group):
    for first in group:
        DiffusionGenerationConfig(**settings_of(first))
        for second in group:
            if first < second:
                with pytest.raises(ValueError, match=f"(`{first}` and `{second}`|`{second}` and `{first}`) each say"):
                    DiffusionGenerationConfig(**settings_of(first, second))


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda conflict: "-".join(name for name, _ in conflict))
def test_conflicts(conflict):
    (first, first_values), (second, second_values) = conflict
    for one in first_values or settings_of(first).values():
        DiffusionGenerationConfig(**{first: one})
        for other in second_values or settings_of(second).values():
            with pytest.raises(ValueError, match="cannot work together: \\w+"):
                DiffusionGenerationConfig(**{first: one, second: other})


@pytest.mark.parametrize("name", NOT_IN_THE_REFERENCE)
def test_the_reference_has_no_other_rules(name):
    with pytest.raises(ValueError, match=f"has no cache, no threshold and no other rule; leave out `{name}`"):
        DiffusionGenerationConfig(rng_compat="llada", **settings_of(name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: -0.5}, f"`{name}` must be at least 0") for name in ("factor", "entropy_bound", "kl_threshold")),
        *(({name: -0.5}, f"`{name}` must be at least 0") for name in ("credit_weight", "remasking_temperature")),
        *(({name: 1.5}, f"`{name}` is a probability") for name in ("frechet_margin", "low_threshold", "eos_weight")),
        *(({name: 1.5}, f"`{name}` is a probability") for name in ("verify_threshold", "remask_threshold")),
        ({"exploration_steps": 0}, "`exploration_steps` must be a positive integer, but is 0"),
        ({"suffix_window": -1}, "`suffix_window` must be an integer and not negative, but is -1"),
        ({"vicinity": 1.5}, "`vicinity` must be an integer and not negative, but is 1.5"),
        ({"factor_compat": "dllm"}, "`factor_compat` must be one of"),
        ({"step_schedule": "cosine"}, "`step_schedule` must be one of"),
        ({"commit_gaps": 5.0}, "`commit_gaps` must be a list of numbers"),
        ({"commit_gaps": []}, "`commit_gaps` must be a list of numbers"),
        ({"rng_compat": "llada", "remasking": "position_calibrated"}, "leave out `remasking`"),
        ({"rng_compat": "llada", "remasking": "margin"}, "leave out `remasking`"),
        ({"rng_compat": "llada", "suppress_eos": "rising"}, "leave out `suppress_eos`"),
        ({"vicinity": 4, "kv_cache": "dual"}, "`vicinity=4` is of the caches 'vicinity', and `kv_cache='dual'`"),
        ({"cache_warmup": 4, "kv_cache": "prefix"}, "of the caches 'vicinity' and 'delayed', and"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_values(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionGenerationConfig(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400, "0.5", True, [0.5]])
@pytest.mark.parametrize("name", [*NUMBERS, *PROBABILITIES, *NOT_NEGATIVE, *AT_LEAST_1])
def test_numbers_are_finite(name, value):
    # 1e39 is finite, but not in the precision that logits have
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number that float32 holds, but is"):
        DiffusionGenerationConfig(**{name: value})


def test_generate_asks_for_finite_numbers_too():
    with pytest.raises(ValueError, match="`cfg_scale` must be a finite number that float32 holds, but is nan"):
        tiny_llada().generate(torch.tensor([[1]]), cfg_scale=float("nan"))


@pytest.mark.parametrize("name", DIVISORS)
def test_what_is_divided_by_is_not_too_small(name):
    DiffusionGenerationConfig(**{name: 0.0})
    with pytest.raises(ValueError, match=f"`{name}` must be 0, which is off, or at least 1.17"):
        DiffusionGenerationConfig(**{name: 1e-39})
    smallest = {name: 1.2e-38, "max_new_tokens": 4, "do_sample": True}
    assert not (tiny_llada().generate(torch.tensor([[1]]), **smallest) == 40).any()


def test_gaps_are_finite():
    for gap in (float("nan"), float("inf"), True, "7.5"):
        with pytest.raises(ValueError, match="`commit_gaps` must be a list of numbers"):
            DiffusionGenerationConfig(commit_gaps=[7.5, gap])


@pytest.mark.parametrize("name", COUNTS)
def test_counts_fit(name):
    most = 1000 if name == "max_post_steps" else 2**31 - 1
    with pytest.raises(ValueError, match=f"`{name}` must be at most {most}, but is {most + 1}"):
        DiffusionGenerationConfig(**{name: most + 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 10**9},
        {"max_denoising_steps": 2**16 + 1},
        {"max_denoising_steps": 10**9, "step_schedule": "dream"},
        {"max_denoising_steps": 10**9, "step_schedule": "bernoulli"},
        {"max_denoising_steps": 10**9, "threshold": 0.9},
        {"steps": 10**9, "rng_compat": "llada", "eos_early_stop": False},
    ],
    ids=str,
)
def test_plans_fit(settings):
    with pytest.raises(ValueError, match="gives a block (65537|1000000000) steps, for 4 positions; a block can have"):
        tiny_llada().generate(torch.tensor([[1]]), max_new_tokens=4, **settings)


def test_a_window_of_estimates_takes_no_more_than_there_are():
    """More estimates than steps never agree, however many more."""
    settings = {"max_new_tokens": 12, "threshold": 0.9, "exploration_steps": 3}
    torch.manual_seed(1)
    model = tiny_llada()
    few, many = (model.generate(torch.tensor([[1]]), span_window=window, **settings) for window in (4, 2**31 - 1))
    assert torch.equal(few, many)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: VALUES.get(name, 0.5)}, f"refines `{needed}`; set `{needed}`, too")
            for name, needed in NEEDS.items()
        ),
        *(({name: VALUES.get(name, 0.5)}, "is of a cache; set `kv_cache='vicinity'`, too") for name in CACHE_SETTINGS),
        ({"expand_threshold": 0.5, "initial_length": 4}, "inserts masks, and a plan of steps would end before"),
        ({"remask_threshold": 0.5}, "a plan of steps would end before they are filled; set one of `threshold`"),
        *(({name: 0.5}, f"refines `{other}='{value}'`, but `{other}` is") for name, other, value in VALUE_NEEDS),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_a_setting_needs_may_come_from_the_model(settings, message):
    model = tiny_llada()
    config = DiffusionGenerationConfig(**settings)
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, generation_config=config)
    if "set `threshold`" in message:
        model.generation_config.threshold = 0.5
        assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, generation_config=config).shape == (1, 7)


def test_one_selection_replaces_that_of_a_weaker_source():
    model = tiny_llada()
    model.generation_config.threshold = 0.5
    config, _ = model._read_arguments(torch.tensor([[1, 2, 3]]), None, {"factor": 1.0})
    assert (config.threshold, config.factor) == (None, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache": "vicinity"}, "`kv_cache='vicinity'` computes the same positions in all rows"),
        ({"suffix_window": 2}, "`suffix_window=2` computes the same positions in all rows"),
        ({"exploration_steps": 2, "threshold": 0.5}, "`exploration_steps=2` computes the same positions in all rows"),
        ({"verify_threshold": 0.5, "threshold": 0.5}, "`verify_threshold=0.5` computes the same positions"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_rows_with_masks_elsewhere(settings, message):
    canvas = torch.tensor([[1, 40, 40, 40], [1, 2, 40, 40]])
    model = tiny_llada()
    with pytest.raises(ValueError, match=f"{message}.*first masks stand at positions 1 to 2"):
        model.infill(canvas, **settings)
    assert not (model.infill(canvas[:1], **settings) == 40).any()


def test_a_suffix_that_was_given_is_not_left_out():
    with pytest.raises(ValueError, match="text was given after a mask; leave out `suffix_window`"):
        tiny_llada().infill(torch.tensor([[1, 40, 40, 3]]), suffix_window=1)


def test_the_delayed_cache_takes_one_row():
    with pytest.raises(
        ValueError, match="`kv_cache='delayed'` computes other positions in every row, and there are 2"
    ):
        tiny_llada().generate(torch.tensor([[1, 2], [3, 4]]), max_new_tokens=4, kv_cache="delayed")


@pytest.mark.parametrize(
    "settings",
    [
        {"verify_threshold": 0.5, "kv_cache": None},
        {"exploration_steps": 2, "kv_cache": None},
        {"suffix_window": 3, "kv_cache": None},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_plans_that_block_causal_models_do_not_have(settings):
    model = tiny_llada()
    model.config.block_causal = True
    with pytest.raises(ValueError, match="is for models with full attention"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, threshold=0.5, block_length=4, **settings)
    with pytest.raises(ValueError, match='use "block", which is exact'):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, block_length=4, kv_cache="vicinity")
