"""
The decoding rules: one file for each published one, with its settings, their checks, its traits and its mathematics.

[`RuleSettings`] lists them, in the order in which they are documented and asked. To add a rule, write its file and its
line there.
"""

from dataclasses import replace

from ..forwards.block_causal import BlockCache
from ..forwards.cached import DualCache, PrefixCache
from ..forwards.delayed import DelayedCache
from ..forwards.suffix_window import SuffixWindow
from ..forwards.vicinity import VicinityCache
from ..rule import Fields, Rule, Setting
from .context_threshold import ContextThreshold
from .credit import CreditDecoding
from .daedal import InitialLength, MaskInsertion
from .dream import Bernoulli, DreamSchedule, RemaskingTemperature
from .editing import Editing
from .end_of_text import EndsCommittedLast, NoEndProposed
from .entropy_bound import EntropyBound
from .entropy_valley import EntropyValley
from .eos_rejection import EosRejection
from .factor import Factor
from .frechet import Frechet
from .hierarchical import Hierarchical
from .klass import Klass
from .levenshtein import Levenshtein
from .order import ByConfidence, ByEntropy, ByMargin, InAnyOrder
from .pc_sampler import ByPosition
from .prophet import Prophet
from .quota import Quota
from .reference import Reference
from .remasking import TakingBack
from .running_confidence import RunningConfidenceRemasking
from .slow_fast import SlowFast
from .steady import Steady
from .threshold import Threshold
from .wino import Wino


class RuleSettings(
    # how many predictions a step keeps
    Quota.Settings,
    Threshold.Settings,
    Factor.Settings,
    Frechet.Settings,
    EntropyBound.Settings,
    # what a threshold is extended by
    Hierarchical.Settings,
    ContextThreshold.Settings,
    Klass.Settings,
    Wino.Settings,
    SlowFast.Settings,
    # what goes with any of them
    CreditDecoding.Settings,
    Prophet.Settings,
    Steady.Settings,
    TakingBack.Settings,
    RunningConfidenceRemasking.Settings,
    Editing.Settings,
    Levenshtein.Settings,
    # which come first
    ByConfidence.Settings,
    ByMargin.Settings,
    ByEntropy.Settings,
    ByPosition.Settings,
    InAnyOrder.Settings,
    RemaskingTemperature.Settings,
    DreamSchedule.Settings,
    Bernoulli.Settings,
    NoEndProposed.Settings,
    EndsCommittedLast.Settings,
    EosRejection.Settings,
    Reference.Settings,
    # how long the answer is
    EntropyValley.Settings,
    InitialLength.Settings,
    MaskInsertion.Settings,
    # what a forward pass computes
    PrefixCache.Settings,
    DualCache.Settings,
    VicinityCache.Settings,
    DelayedCache.Settings,
    SuffixWindow.Settings,
    BlockCache.Settings,
):
    """The fields of all rules, which a type checker sees in the generation config."""


RULES: tuple[type[Rule], ...] = tuple(fields.rule for fields in RuleSettings.__bases__ if issubclass(fields, Fields))


def settings() -> dict[str, Setting]:
    """The fields of all rules by name. What switches rules on by its value may have the values of all."""
    found = dict(RuleSettings.declared())
    for name, field in found.items():
        values = tuple(rule.value for rule in RULES if name in rule.switches and rule.value is not None)
        found[name] = replace(field, choices=field.choices + values)
    return found


__all__ = ["RULES", "RuleSettings", "settings"]
