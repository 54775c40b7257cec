"""Which rules are on, and whether they can work together."""

from functools import cache
from typing import Any

from .rule import Rule
from .rules import RULES
from .traits import conflict


def given(config: Any) -> dict[str, Any]:
    """What is set in a config."""
    return {name: value for name, value in vars(config).items() if value is not None}


def switched_on(config: Any) -> dict[type[Rule], str]:
    """The rules that are on, with the field that switches each on. Those that extend another one come first."""
    values = given(config)
    on = {rule: name for rule in RULES if (name := rule.switch(values)) is not None}
    return dict(sorted(on.items(), key=lambda item: item[0].refines is None))


def check_combinations(config: Any) -> None:
    """
    Refuses settings that exclude each other. What a config lacks may still come from the generation config of the
    model, so that nothing is said about it here, see [`check_complete`].

    Raises:
        ValueError: With the settings, the reason, and what to leave out.
    """
    on, values = switched_on(config), given(config)
    for question in dict.fromkeys(question for rule in RULES for question in rule.decides):
        both = list(dict.fromkeys(on[rule] for rule in RULES if rule in on and question in rule.decides))
        if len(both) > 1:
            raise ValueError(f"{named(both)} each say {question}; give one of them.")
    for rule, name in on.items():
        for other, other_name in on.items():
            reason = conflict(rule.traits, other.traits)
            if reason is not None:
                both = list(dict.fromkeys(f"`{one}={values[one]!r}`" for one in (name, other_name)))
                raise ValueError(
                    f"{' and '.join(both)} cannot work together: {reason}. Leave out one of them; `None` switches off "
                    "what the model sets by itself."
                )
    for name, owners in _owners().items():
        noun, (switch, *_) = owners[0].noun, owners[0].switches
        if noun is not None and name in values and switch in values and not any(one in on for one in owners):
            raise ValueError(
                f"`{name}={values[name]!r}` is of the {noun}s {' and '.join(repr(one.value) for one in owners)}, and "
                f"`{switch}={values[switch]!r}`."
            )
    if config.rng_compat is not None:
        others = list(dict.fromkeys(name for rule, name in on.items() if not rule.in_reference))
        if others:
            raise ValueError(
                f"`rng_compat={config.rng_compat!r}` reproduces a sampler that has no cache, no threshold and no "
                f"other rule; leave out {named(others)}."
            )


def check_complete(config: Any, selector: Any = None, revision: Any = None) -> None:
    """
    Refuses settings of a complete config that lack the one they refine, and rules that cannot work with a part of the
    caller's own.

    Args:
        config ([`~llada.generation.configuration_diffusion.DiffusionGenerationConfig`]):
            The config.
        selector ([`~llada.generation.rules.selection.Selector`], *optional*):
            A rule of the caller's own that commits.
        revision ([`~llada.generation.rules.revision.Revision`], *optional*):
            One that revises.

    Raises:
        ValueError: With both.
    """
    on, values = switched_on(config), given(config)
    adaptive = [switch for rule in RULES if "counts_by_score" in rule.traits for switch in rule.switches]
    for name, owners in _owners().items():
        if name in values and not any(rule in on for rule in owners):
            raise ValueError(f"`{name}={values[name]!r}` {_lacks(owners[0], config)}")
    for rule, name in on.items():
        needed = rule.needs or rule.refines
        if needed is not None and needed not in values and not (selector is not None and needed in adaptive):
            raise ValueError(f"`{name}={values[name]!r}` refines `{needed}`; set `{needed}`, too.")
        is_adaptive = selector is not None or any("counts_by_score" in one.traits for one in on)
        if "outlasts_a_plan" in rule.traits and not is_adaptive:
            does = "inserts masks" if "moves_text" in rule.traits else "opens positions again"
            raise ValueError(
                f"`{name}={values[name]}` {does}, and a plan of steps would end before they are filled; set "
                f"one of {named(adaptive)}, too."
            )
    for name, part in (("selector", selector), ("revision", revision)):
        for rule, switch in on.items() if part is not None else ():
            reason = conflict(part.traits, rule.traits) or conflict(rule.traits, part.traits)
            if reason is None and name == "revision" and "moves_text" in rule.traits:
                reason = "both change what was committed, or where it stands"
            if reason is not None:
                raise ValueError(
                    f"`{name}={type(part).__name__}` and `{switch}={values[switch]!r}` cannot work together: {reason}."
                    " Leave out one of them; `None` switches off what the model sets by itself."
                )
    if config.rng_compat is not None and not (selector is None and revision is None):
        raise ValueError(
            f"`rng_compat={config.rng_compat!r}` reproduces a sampler that has no other rule; leave out `selector` "
            "and `revision`."
        )


@cache
def _owners() -> dict[str, list[type[Rule]]]:
    """The finer settings that need a rule, with the rules that have them."""
    owners: dict[str, list[type[Rule]]] = {}
    for rule in RULES:
        for name, field in rule.fields.declared().items():
            if name not in rule.switches and not field.alone:
                owners.setdefault(name, []).append(rule)
    return owners


def _lacks(rule: type[Rule], config: Any) -> str:
    """What is missing where a finer setting of a rule is set and the rule is off."""
    switch = rule.switches[0]
    if rule.value is None:
        return f"refines `{switch}`; set `{switch}`, too."
    if rule.noun is not None:
        return f"is of a {rule.noun}; set `{switch}={rule.value!r}`, too."
    return (
        f"refines `{switch}={rule.value!r}`, but `{switch}` is {getattr(config, switch)!r}; set that, or leave it out."
    )


def named(names: list[str]) -> str:
    """Names in a sentence."""
    return " and ".join(f"`{name}`" for name in names)


__all__ = ["check_combinations", "check_complete", "given", "named", "switched_on"]
