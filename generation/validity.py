"""Which settings of a generation config can work together."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .configuration_diffusion import DiffusionGenerationConfig


# rules that say how many predictions a step keeps: at most one. Without any, a fixed number per step is kept
SELECTIONS = ("threshold", "factor", "frechet_margin", "entropy_bound")

# of these, the ones that compare a probability
PROBABILITY_RULES = ("threshold", "factor", "frechet_margin")

# rules that change what was committed: at most one
REVISIONS = ("editing_threshold",)

# setting -> the one that it refines
NEEDS = {"editing_threshold": "threshold", "factor_compat": "factor"}


def check_combinations(config: "DiffusionGenerationConfig") -> None:
    """
    Refuses settings that exclude each other. What a config lacks may still come from the generation config of the
    model, so that nothing is said about it here, see [`check_complete`].

    Raises:
        ValueError: With the settings, the reason, and what to leave out.
    """
    given = {name for name, value in vars(config).items() if value is not None}
    for group, what in ((SELECTIONS, "how many predictions a step keeps"), (REVISIONS, "what becomes of kept ones")):
        both = [name for name in group if name in given]
        if len(both) > 1:
            raise ValueError(f"{_named(both)} each say {what}; give one of them.")
    if config.remasking not in (None, "low_confidence"):
        for name in PROBABILITY_RULES:
            if name in given:
                raise ValueError(
                    f"`{name}` compares the probabilities of the proposed tokens, and `remasking="
                    f"{config.remasking!r}` scores them otherwise; use `remasking=\"low_confidence\"`."
                )
        if config.remasking == "random" and "entropy_bound" in given:
            raise ValueError(
                '`entropy_bound` keeps the surest predictions, and `remasking="random"` keeps any; use "entropy", '
                '"low_confidence" or "margin".'
            )
    if config.rng_compat is not None:
        others = [name for name in (*SELECTIONS, *REVISIONS, "kv_cache") if name in given]
        if config.remasking not in (None, "low_confidence", "random"):
            others.append("remasking")
        if others:
            raise ValueError(
                f"`rng_compat={config.rng_compat!r}` reproduces a sampler that has no cache, no threshold and no other "
                f"rule; leave out {_named(others)}."
            )


def check_complete(config: "DiffusionGenerationConfig") -> None:
    """
    Refuses settings of a complete config that lack the one they refine.

    Raises:
        ValueError: With both.
    """
    for name, needed in NEEDS.items():
        if getattr(config, name) is not None and getattr(config, needed) is None:
            raise ValueError(f"`{name}={getattr(config, name)!r}` refines `{needed}`; set `{needed}`, too.")


def _named(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


__all__ = ["NEEDS", "PROBABILITY_RULES", "REVISIONS", "SELECTIONS", "check_combinations", "check_complete"]
