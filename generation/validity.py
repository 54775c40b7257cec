"""Which values the settings of a generation config may have, and which of them can work together."""

from numbers import Real
from typing import Any


# what each setting may be: one of these, ...
REMASKING = ("low_confidence", "margin", "entropy", "position_calibrated", "random")
FACTOR_COMPAT = (None, "fast_dllm")
STEP_SCHEDULES = (None, "dream", "bernoulli")
SUPPRESS_EOS = (None, "logits", "confidence", "rising")
RNG_COMPAT = (None, "llada")
KV_CACHE = (None, "prefix", "dual", "vicinity", "delayed", "block")
CONFIDENCE_DTYPES = (None, "float32", "float64")
# ... from 0 to 1, ...
PROBABILITIES = (
    "credit_decay",
    "editing_threshold",
    "eos_weight",
    "expand_end_threshold",
    "expand_threshold",
    "frechet_margin",
    "length_threshold",
    "low_threshold",
    "remask_threshold",
    "span_threshold",
    "threshold",
    "threshold_relaxation",
    "verify_threshold",
)
# ... any number, ...
NUMBERS = (
    "epsilon_cutoff",
    "eta_cutoff",
    "max_time",
    "min_p",
    "repetition_penalty",
    "top_h",
    "top_p",
    "typical_p",
)
# ... at least 0, ...
NOT_NEGATIVE = (
    "cfg_scale",
    "credit_exponent",
    "credit_weight",
    "entropy_bound",
    "factor",
    "frequency_cap",
    "kl_threshold",
    "position_decay",
    "remasking_temperature",
    "span_deviation",
    "stable_entropy",
    "temperature",
)
# ... what is divided by: 0, which is off, or not so small that the quotient overflows
DIVISORS = ("remasking_temperature", "temperature")
# ... at least 1, ...
AT_LEAST_1 = ("guidance_scale",)
# ... of those that are no integers, what float32 holds ...
SMALLEST, LARGEST = 1.1754943508222875e-38, 3.4028234663852886e38
# ... an integer, at least this, ...
COUNTS = {
    "block_length": 1,
    "cache_warmup": 1,
    "expand_factor": 2,
    "exploration_steps": 1,
    "initial_length": 1,
    "kl_history": 1,
    "length_step": 1,
    "length_window": 1,
    "max_denoising_steps": 1,
    "max_length": 1,
    "max_new_tokens": 1,
    "max_post_steps": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "refresh_interval": 1,
    "span_window": 1,
    "stable_steps": 1,
    "steps": 1,
    "suffix_window": 0,
    "top_k": 0,
    "vicinity": 0,
}
# ... and at most this, or what an index holds: edits may go round in circles
MOST = {"max_post_steps": 1000}
LARGEST_COUNT = 2**31 - 1

# what a rule runs with where its finer settings are unset
RULE_DEFAULTS = {
    "cache_warmup": {"vicinity": 1, "delayed": 2},
    "credit_decay": 0.8,
    "credit_exponent": 0.2,
    "eos_weight": 0.4,
    "expand_end_threshold": 0.9,
    "expand_factor": 8,
    "frequency_cap": 10.0,
    "kl_history": 2,
    "length_step": 8,
    "length_threshold": 0.5,
    "length_window": 32,
    "position_decay": 0.25,
    "refresh_interval": {"delayed": 8},
    "span_deviation": 1.0,
    "span_stops_early": False,
    "span_threshold": 0.3,
    "span_window": 2,
    "stable_entropy": 0.005,
    "vicinity": 16,
}

# rules that say how many predictions a step keeps: at most one. Without any, a fixed number per step is kept
SELECTIONS = ("threshold", "factor", "frechet_margin", "entropy_bound")

# of these, the ones that compare a probability
PROBABILITY_RULES = ("threshold", "factor", "frechet_margin")

# scores that are none
NO_PROBABILITY = ("margin", "entropy", "position_calibrated", "random")

# rules that extend the threshold: at most one
REFINEMENTS = ("low_threshold", "threshold_relaxation", "kl_threshold", "verify_threshold", "exploration_steps")

# rules that change what was committed: at most one
REVISIONS = ("editing_threshold", "remask_threshold", "verify_threshold")

# rules that commit all that is left: at most one
EARLY_COMMITS = ("commit_gaps", "stable_steps")

# setting -> the one that it refines
NEEDS = {
    "credit_decay": "credit_weight",
    "credit_exponent": "credit_weight",
    "editing_threshold": "threshold",
    "expand_end_threshold": "expand_threshold",
    "expand_factor": "expand_threshold",
    "expand_threshold": "initial_length",
    "factor_compat": "factor",
    "kl_history": "kl_threshold",
    "length_step": "initial_length",
    "length_threshold": "initial_length",
    "length_window": "initial_length",
    "span_deviation": "exploration_steps",
    "span_stops_early": "exploration_steps",
    "span_threshold": "exploration_steps",
    "span_window": "exploration_steps",
    "stable_entropy": "stable_steps",
    **dict.fromkeys(REFINEMENTS, "threshold"),
}

# setting, and the value of another one that it refines
VALUE_NEEDS = (
    ("eos_weight", "suppress_eos", "rising"),
    ("frequency_cap", "remasking", "position_calibrated"),
    ("position_decay", "remasking", "position_calibrated"),
)

# settings of a cache -> the caches that have them
CACHE_SETTINGS = {
    "cache_warmup": ("vicinity", "delayed"),
    "refresh_interval": ("vicinity", "delayed"),
    "vicinity": ("vicinity",),
}

# a setting and the values in question, all if `None`
Setting = tuple[str, tuple | None]

# two settings, with their values where it depends on these -> why they cannot work together
CONFLICTS: dict[tuple[Setting, Setting], str] = {
    (("verify_threshold", None), ("kv_cache", None)): "verification hides a different position from each query, so "
    "nothing that was computed before can be used again",
    (("verify_threshold", None), ("suffix_window", None)): "verification needs the whole canvas",
    (("exploration_steps", None), ("kv_cache", None)): "SlowFast leaves out what follows a span, which is stale in a "
    "cache",
    (("exploration_steps", None), ("suffix_window", None)): "SlowFast chooses by itself what is left out",
    **{
        (("exploration_steps", None), (name, None)): "the phases of SlowFast say how many steps there are"
        for name in ("steps", "max_denoising_steps")
    },
    (("kv_cache", ("delayed",)), ("remask_threshold", None)): "committed positions are not computed, so nothing tells "
    "whether they are still likely",
    (
        ("kv_cache", ("delayed",)),
        ("editing_threshold", None),
    ): "committed positions are not computed, so nothing tells what to edit",
    (("kv_cache", ("delayed",)), ("suffix_window", None)): "the delayed cache holds all positions",
    (("kv_cache", ("block",)), ("suffix_window", None)): "block-causal attention does not see what follows a block",
    **{
        (("expand_threshold", None), (name, None)): reason
        for name, reason in {
            "commit_gaps": "the share of a block that is filled falls when masks are inserted",
            "stable_steps": "masks that are inserted have no step before",
            "credit_weight": "a position that moves leaves its credit behind",
            "editing_threshold": "edits keep the places of a block, and masks that are inserted move them",
            "exploration_steps": "a span is where it was found, and its text moves",
            "kl_threshold": "a position that moves leaves its history behind",
            "kv_cache": "what stands behind inserted masks moves, and a cache has it where it was",
            "max_denoising_steps": "a plan shares out the masks that there are, and more are inserted",
            "remask_threshold": "a token that is taken back is unsure, which would be taken for want of room",
            "steps": "a plan shares out the masks that there are, and more are inserted",
            "suffix_window": "the end of the text, which it leaves out, says whether there is room enough",
            "verify_threshold": "a draft that is taken back is unsure, which would be taken for want of room",
        }.items()
    },
    (("initial_length", None), ("suffix_window", None)): "rows that end at different positions have no last one in "
    "common",
    (("initial_length", None), ("suppress_eos", ("logits",))): "an end of text is what tells how long the answer is",
    (("kl_threshold", None), ("remask_threshold", None)): "a position that is masked again has no history",
    (("kl_threshold", None), ("editing_threshold", None)): "a position that is edited has no history",
    (("exploration_steps", None), ("remask_threshold", None)): "a span is not looked at again once it is filled",
    (("exploration_steps", None), ("editing_threshold", None)): "a span is not looked at again once it is filled",
    **{
        ((early, None), (name, None)): "the one ends a block at once and the other opens it again"
        for early in EARLY_COMMITS
        for name in REVISIONS
    },
    **{((early, None), ("exploration_steps", None)): "a span says nothing of the block" for early in EARLY_COMMITS},
    **{
        ((early, None), ("step_schedule", ("bernoulli",))): "positions are revealed whatever the model says there"
        for early in EARLY_COMMITS
    },
    **{
        ((name, None), (rule, None)): "it orders a fixed plan, and the other compares the scores of the model"
        for name in ("remasking_temperature", "step_schedule")
        for rule in SELECTIONS
    },
    **{
        (("suppress_eos", ("rising",)), (rule, None)): "the weight rises with the steps of a fixed plan; use "
        '`suppress_eos="confidence"`'
        for rule in SELECTIONS
    },
    (("suppress_eos", ("rising",)), ("remasking", NO_PROBABILITY)): "the weight is one of "
    'probabilities; use `remasking="low_confidence"`',
    (("suppress_eos", ("rising",)), ("remasking_temperature", None)): "the weight is one of probabilities",
    (("step_schedule", ("bernoulli",)), ("suppress_eos", ("confidence", "rising"))): "positions are revealed in any "
    'order; use `suppress_eos="logits"`',
    (("step_schedule", ("bernoulli",)), ("remasking_temperature", None)): "positions are revealed in any order",
    (("entropy_bound", None), ("remasking", ("random",))): 'it keeps the surest, and `remasking="random"` any; use '
    '"entropy", "low_confidence" or "margin"',
    **{
        (
            (name, None),
            ("remasking", NO_PROBABILITY),
        ): 'it compares the probabilities of the proposed tokens; use `remasking="low_confidence"`'
        for name in PROBABILITY_RULES
    },
}

# what `rng_compat` excludes: the reference has none of it
NOT_IN_THE_REFERENCE = (
    *SELECTIONS,
    "commit_gaps",
    "credit_weight",
    "expand_threshold",
    "initial_length",
    "kv_cache",
    "remask_threshold",
    "remasking_temperature",
    "stable_steps",
    "step_schedule",
    "suffix_window",
)


def check_values(config: Any) -> None:
    """
    Checks the settings of the decoding rules one by one.

    Raises:
        ValueError: With the setting, its value and what it may be.
    """
    for name, least in COUNTS.items():
        value = getattr(config, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            what = ("an integer and not negative", "a positive integer")[least] if least < 2 else f"at least {least}"
            raise ValueError(f"`{name}` must be {what}, but is {value!r}.")
        if value is not None and value > MOST.get(name, LARGEST_COUNT):
            raise ValueError(f"`{name}` must be at most {MOST.get(name, LARGEST_COUNT)}, but is {value}.")
    gaps = config.commit_gaps
    if gaps is not None and not (isinstance(gaps, list) and gaps and all(map(_is_number, gaps))):
        raise ValueError(f"`commit_gaps` must be a list of numbers, e.g. [7.5, 5.0, 2.5], but is {gaps!r}.")
    for name in (*NUMBERS, *PROBABILITIES, *NOT_NEGATIVE, *AT_LEAST_1):
        value = getattr(config, name)
        if value is not None and not _is_number(value):
            raise ValueError(f"`{name}` must be a finite number that float32 holds, but is {value!r}.")
    choices = {
        "confidence_dtype": CONFIDENCE_DTYPES,
        "factor_compat": FACTOR_COMPAT,
        "kv_cache": KV_CACHE,
        "remasking": (None, *REMASKING),
        "rng_compat": RNG_COMPAT,
        "step_schedule": STEP_SCHEDULES,
        "suppress_eos": SUPPRESS_EOS,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, but is {getattr(config, name)!r}.")
    for name in PROBABILITIES:
        if getattr(config, name) is not None and not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"`{name}` is a probability, from 0 to 1, but is {getattr(config, name)}.")
    for name in NOT_NEGATIVE:
        if getattr(config, name) is not None and not getattr(config, name) >= 0:
            raise ValueError(f"`{name}` must be at least 0, but is {getattr(config, name)}.")
    for name in DIVISORS:
        if getattr(config, name) is not None and 0 < getattr(config, name) < SMALLEST:
            raise ValueError(
                f"`{name}` must be 0, which is off, or at least {SMALLEST}, but is {getattr(config, name)}."
            )
    for name in AT_LEAST_1:
        if getattr(config, name) is not None and not getattr(config, name) >= 1:
            raise ValueError(f"`{name}` must be at least 1, which is off, but is {getattr(config, name)}.")


def check_combinations(config: Any) -> None:
    """
    Refuses settings that exclude each other. What a config lacks may still come from the generation config of the
    model, so that nothing is said about it here, see [`check_complete`].

    Raises:
        ValueError: With the settings, the reason, and what to leave out.
    """
    given = {name: value for name, value in vars(config).items() if value is not None}
    for group, what in (
        (SELECTIONS, "how many predictions a step keeps"),
        (REFINEMENTS, "how a threshold is used"),
        (REVISIONS, "what becomes of kept predictions"),
        (EARLY_COMMITS, "when the rest of a block is kept"),
    ):
        both = [name for name in group if name in given]
        if len(both) > 1:
            raise ValueError(f"{_named(both)} each say {what}; give one of them.")
    for (first, second), reason in CONFLICTS.items():
        if _holds(given, *first) and _holds(given, *second):
            names = " and ".join(f"`{name}={given[name]!r}`" for name, _ in (first, second))
            raise ValueError(
                f"{names} cannot work together: {reason}. Leave out one of them; `None` switches off what the model "
                "sets by itself."
            )
    for name, caches in CACHE_SETTINGS.items():
        if name in given and given.get("kv_cache", caches[0]) not in caches:
            raise ValueError(
                f"`{name}={given[name]!r}` is of the caches {' and '.join(map(repr, caches))}, and `kv_cache="
                f"{given['kv_cache']!r}`."
            )
    if config.rng_compat is not None:
        others = [name for name in NOT_IN_THE_REFERENCE if name in given]
        others += ["remasking"] * _holds(given, "remasking", ("margin", "entropy", "position_calibrated"))
        others += ["suppress_eos"] * _holds(given, "suppress_eos", ("rising",))
        if others:
            raise ValueError(
                f"`rng_compat={config.rng_compat!r}` reproduces a sampler that has no cache, no threshold and no "
                f"other rule; leave out {_named(others)}."
            )


def check_complete(config: Any) -> None:
    """
    Refuses settings of a complete config that lack the one they refine.

    Raises:
        ValueError: With both.
    """
    for name, needed in NEEDS.items():
        if getattr(config, name) is not None and getattr(config, needed) is None:
            raise ValueError(f"`{name}={getattr(config, name)!r}` refines `{needed}`; set `{needed}`, too.")
    for name, caches in CACHE_SETTINGS.items():
        if getattr(config, name) is not None and config.kv_cache is None:
            raise ValueError(f"`{name}={getattr(config, name)!r}` is of a cache; set `kv_cache={caches[0]!r}`, too.")
    for name, other, value in VALUE_NEEDS:
        if getattr(config, name) is not None and getattr(config, other) != value:
            raise ValueError(
                f"`{name}={getattr(config, name)}` refines `{other}={value!r}`, but `{other}` "
                f"is {getattr(config, other)!r}; set that, or leave it out."
            )
    for name, does in (("remask_threshold", "opens positions again"), ("expand_threshold", "inserts masks")):
        if getattr(config, name) is not None and all(getattr(config, rule) is None for rule in SELECTIONS):
            raise ValueError(
                f"`{name}={getattr(config, name)}` {does}, and a plan of steps would end before they are filled; set "
                f"one of {_named(list(SELECTIONS))}, too."
            )


def _is_number(value: Any) -> bool:
    # also false for not-a-number
    return isinstance(value, Real) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _holds(given: dict, name: str, values: tuple | None) -> bool:
    return name in given and (values is None or given[name] in values)


def _named(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


__all__ = [
    "CACHE_SETTINGS",
    "CONFLICTS",
    "EARLY_COMMITS",
    "NEEDS",
    "NOT_IN_THE_REFERENCE",
    "NO_PROBABILITY",
    "PROBABILITY_RULES",
    "REFINEMENTS",
    "REVISIONS",
    "SELECTIONS",
    "VALUE_NEEDS",
    "Setting",
    "check_combinations",
    "check_complete",
    "check_values",
]
