"""Which predictions come first: the scores that LLaDA and Dream rank by."""

from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import Entropy, LowConfidence, Margin, Random, Score


class Order(Rule):
    """Base of the values of `remasking`."""

    switches = ("remasking",)

    class Settings(Fields):
        remasking: str | None = setting(
            str,
            'Which predictions of a step are kept first: `"low_confidence"`, the default, those with the highest '
            'probability, `"margin"` those with the largest distance to the second token, `"entropy"` those with '
            'the lowest entropy, or `"random"` ones. `"position_calibrated"` prefers positions near the start of the '
            "block and tokens that are rare in ordinary text; `generate` is given their `token_frequencies` "
            "(PC-Sampler, arXiv 2508.13021).",
        )


class ByConfidence(Order):
    value = "low_confidence"
    in_reference = True
    table = Table(
        "order",
        "probability of the token",
        "LLaDA",
        "nothing",
        "the default; what thresholds, factor and Fréchet compare",
    )

    class Settings(Order.Settings):
        pass

    @classmethod
    def score(cls, setup: Setup) -> Score:
        return LowConfidence()


class ByMargin(Order):
    value = "margin"
    traits = frozenset({"scores_no_probability"})
    table = Table(
        "order",
        "distance to the second token",
        "Dream, [2508.15487](https://arxiv.org/abs/2508.15487)",
        "a top-2",
        "puzzles and planning",
    )

    class Settings(Order.Settings):
        pass

    @classmethod
    def score(cls, setup: Setup) -> Score:
        return Margin()


class ByEntropy(Order):
    value = "entropy"
    traits = frozenset({"scores_no_probability"})
    table = Table(
        "order",
        "entropy",
        "Dream",
        "the distribution at every masked position",
        "with `entropy_bound`",
    )

    class Settings(Order.Settings):
        pass

    @classmethod
    def score(cls, setup: Setup) -> Score:
        return Entropy()


class InAnyOrder(Order):
    value = "random"
    traits = frozenset({"orders_at_random", "scores_no_probability"})
    in_reference = True
    table = Table("order", "chance", "LLaDA", "nothing", "base models, as in the paper's theory")

    class Settings(Order.Settings):
        pass

    @classmethod
    def score(cls, setup: Setup) -> Score:
        return Random()


__all__ = ["ByConfidence", "ByEntropy", "ByMargin", "InAnyOrder", "Order"]
