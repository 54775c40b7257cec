"""Settings that cannot work together are refused when the config is built, and say what to write instead."""

import json
from itertools import combinations, product

import pytest
import torch
from installed_wheel import ROOT
from tiny_models import as_block_causal, tiny_llada

from llada import DiffusionGenerationConfig
from llada.generation.arguments import read_arguments
from llada.generation.configuration_diffusion import SETTINGS, STOCK
from llada.generation.rule import Rule, Setting
from llada.generation.rules import RULES
from llada.generation.traits import CONFLICTS, TRAITS


# a value that every setting may have: of its kind, and of those with values of their own one that is not the default
KINDS = {bool: True, int: 4, float: 0.5, list[int]: [4], list[float]: [5.0]}
VALUES = {name: KINDS[field.kind] for name, field in SETTINGS.items() if field.kind is not str} | {
    "factor_compat": "fast_dllm",
    "kv_cache": "dual",
    "remasking": "margin",
    "step_schedule": "dream",
    "suppress_eos": "rising",
}


def settings_of(*names, **values):
    return {name: VALUES.get(name, 0.5) for name in names} | values


GROUPS = {question: [] for rule in RULES for question in rule.decides}
for rule in RULES:
    for question in rule.decides:
        if rule.switches[0] not in GROUPS[question]:
            GROUPS[question].append(rule.switches[0])


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_one_of_a_group(group):
    for first in group:
        DiffusionGenerationConfig(**settings_of(first))
        for second in group:
            if first < second:
                with pytest.raises(ValueError, match=f"(`{first}` and `{second}`|`{second}` and `{first}`) each say"):
                    DiffusionGenerationConfig(**settings_of(first, second))


def test_the_groups():
    assert GROUPS == {
        "how many predictions a step keeps": ["threshold", "factor", "frechet_margin", "entropy_bound"],
        "how a threshold is used": [
            "low_threshold",
            "threshold_relaxation",
            "kl_threshold",
            "verify_threshold",
            "exploration_steps",
        ],
        "what becomes of kept predictions": [
            "verify_threshold",
            "remask_threshold",
            "running_confidence",
            "editing_threshold",
        ],
        "when the rest of a block is kept": ["commit_gaps", "stable_steps"],
        "how many masks there are": ["length_candidates", "initial_length"],
    }


# every pair of settings that has been refused, written down before rules had traits
REFUSED = json.loads((ROOT / "tests" / "fixtures" / "refused_settings.json").read_text(encoding="utf-8"))


def refused(*cells):
    try:
        DiffusionGenerationConfig(**dict(cells))
    except ValueError:
        return True
    return False


def test_traits_refuse_the_pairs_that_were_refused():
    cells = [(name, value) for name, values in REFUSED["values"].items() for value in values]
    pairs = {
        (f"{first}={value}", f"{second}={other}")
        for (first, value), (second, other) in combinations(cells, 2)
        if first != second and refused((first, value), (second, other))
    }
    # what has no threshold without a threshold was told so only when the config was complete
    need_a_threshold = {(name, "rng_compat") for name in GROUPS["how a threshold is used"]}
    need_a_threshold.add(("editing_threshold", "rng_compat"))
    before = {tuple(pair) for pair in REFUSED["pairs"]}
    assert before <= pairs
    newly = {tuple(sorted(cell.split("=")[0] for cell in pair)) for pair in pairs - before}
    assert newly == {tuple(sorted(pair)) for pair in need_a_threshold}


@pytest.mark.parametrize("traits", CONFLICTS, ids="-".join)
def test_conflicts(traits):
    """Every sentence is said of two rules, names both settings, and gives its reason."""
    found = []
    for first, second in product(RULES, RULES):
        if traits[0] in first.traits and traits[1] in second.traits and first is not second:
            one, other = first.switches[0], second.switches[0]
            if one == other or set(first.decides) & set(second.decides):
                continue
            cells = settings_of(one, other)
            cells |= {one: first.value} if first.value else {}
            cells |= {other: second.value} if second.value else {}
            with pytest.raises(ValueError, match="cannot work together: \\w+") as error:
                DiffusionGenerationConfig(**cells)
            assert f"`{one}=" in str(error.value) and f"`{other}=" in str(error.value)
            found.append(CONFLICTS[traits] in str(error.value))
    assert any(found)


def test_traits_are_known_and_used():
    used = {trait for rule in RULES for trait in rule.traits}
    assert used == set(TRAITS)
    assert {trait for pair in CONFLICTS for trait in pair} <= used
    with pytest.raises(TypeError, match=r"Odd has traits that nobody knows: \['is_odd'\]"):
        type("Odd", (Rule,), {"traits": frozenset({"is_odd"})})


@pytest.mark.parametrize("name", dict.fromkeys(rule.switches[0] for rule in RULES if not rule.in_reference))
def test_the_reference_has_no_other_rules(name):
    values = settings_of(name)
    if name in ("remasking", "suppress_eos"):
        values[name] = {"remasking": "margin", "suppress_eos": "rising"}[name]
    with pytest.raises(ValueError, match=f"has no cache, no threshold and no other rule; leave out `{name}`"):
        DiffusionGenerationConfig(rng_compat="llada", **values)


# finer settings, and the rules that have them
FINER = {}
for rule in RULES:
    for name, field in rule.fields.declared().items():
        if name not in rule.switches and not field.alone:
            FINER.setdefault(name, rule)
NEEDS = {name: rule.switches[0] for name, rule in FINER.items() if rule.value is None}
NEEDS |= {rule.switches[0]: rule.needs or rule.refines for rule in RULES if (rule.needs or rule.refines)}
del NEEDS["editing_threshold"]
NEEDS["editing_threshold"] = "threshold"
CACHE_SETTINGS = [name for name, rule in FINER.items() if rule.noun == "cache"]
VALUE_NEEDS = [
    (name, rule.switches[0], rule.value) for name, rule in FINER.items() if rule.value is not None and not rule.noun
]


def test_what_refines_what():
    assert set(NEEDS) == {
        "credit_decay",
        "credit_exponent",
        "editing_threshold",
        "expand_end_threshold",
        "expand_factor",
        "expand_threshold",
        "exploration_steps",
        "factor_compat",
        "kl_history",
        "kl_threshold",
        "length_step",
        "length_threshold",
        "length_window",
        "low_threshold",
        "span_deviation",
        "span_stops_early",
        "span_threshold",
        "span_window",
        "stable_entropy",
        "threshold_relaxation",
        "verify_threshold",
    }
    assert sorted(CACHE_SETTINGS) == ["cache_warmup", "refresh_interval", "vicinity"]
    assert sorted(name for name, _, _ in VALUE_NEEDS) == ["eos_weight", "frequency_cap", "position_decay"]


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


def test_lists_hold_numbers_of_their_kind():
    counts, gaps = Setting(list[int], "", least=1), Setting(list[float], "")
    assert (counts.annotation, counts.range) == ("list[int]", "a list of integers, at least 1")
    assert (gaps.annotation, gaps.range) == ("list[float]", "a list of numbers")
    for field, value in ((counts, [1, 2**31 - 1]), (gaps, [-1, 0.5]), (counts, None)):
        field.check("these", value)
    for value in ([], [0], [1.0], [True], [2**31], [1, None], (1,), 1):
        with pytest.raises(ValueError, match="`these` must be a list of integers, at least 1, all finite and one or"):
            counts.check("these", value)


def test_a_rule_that_is_false_is_off():
    rule = type("Yes", (Rule,), {"switches": ("yes",)})
    assert rule.switch({"yes": True}) == "yes"
    # 0 is a value, as of a threshold
    assert rule.switch({"yes": 0.0}) == "yes"
    assert rule.switch({"yes": False}) is rule.switch({}) is None


NUMBERS = {name: field for name, field in (SETTINGS | STOCK).items() if field.kind in (int, float)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400, "0.5", True, [0.5]])
@pytest.mark.parametrize("name", [name for name, field in NUMBERS.items() if field.kind is float])
def test_numbers_are_finite(name, value):
    # 1e39 is finite, but not in the precision that logits have
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number that float32 holds, but is"):
        DiffusionGenerationConfig(**{name: value})


def test_generate_asks_for_finite_numbers_too():
    with pytest.raises(ValueError, match="`cfg_scale` must be a finite number that float32 holds, but is nan"):
        tiny_llada().generate(torch.tensor([[1]]), cfg_scale=float("nan"))


@pytest.mark.parametrize("name", [name for name, field in NUMBERS.items() if field.divides])
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


@pytest.mark.parametrize("name", [name for name, field in NUMBERS.items() if field.kind is int])
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
    config, _ = read_arguments(model, torch.tensor([[1, 2, 3]]), None, {"factor": 1.0})
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
    as_block_causal(model)
    with pytest.raises(ValueError, match="is for models with full attention"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, threshold=0.5, block_length=4, **settings)
    with pytest.raises(ValueError, match='use "block", which is exact'):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, block_length=4, kv_cache="vicinity")
