"""What the file of a rule declares: its settings with their checks, its traits, and the parts it is made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any, ClassVar, get_args

import torch

from .canvas import Canvas
from .regions import Region
from .traits import TRAITS


# of numbers that are no integers, what float32 holds, and of integers what an index holds
SMALLEST, LARGEST = 1.1754943508222875e-38, 3.4028234663852886e38
LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Setting:
    """
    A field of the generation config.

    Args:
        kind (`type`):
            `bool`, `int`, `float`, `str`, `list[int]` or `list[float]`.
        help (`str`):
            What it does, in a sentence or two.
        default (`Any`, *optional*):
            What its rule runs with where it is unset.
        least, most (`float`, *optional*):
            Bounds of a number, or of those of a list. From 0 to 1 is a probability.
        choices (`tuple[str, ...]`, *optional*):
            Values of a string, besides those that switch on a rule.
        alone (`bool`, *optional*, defaults to `False`):
            Whether it may be set where its rule is off.
        divides (`bool`, *optional*, defaults to `False`):
            Whether something is divided by it, so that it must not be so small that the quotient overflows. 0 is off.
    """

    kind: type
    help: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    alone: bool = False
    divides: bool = False

    @property
    def range(self) -> str:
        """`str`: What it may be, in words."""
        if self.kind is str:
            return "one of " + ", ".join(self.choices)
        if self.kind is float and (self.least, self.most) == (0, 1):
            return "a number from 0 to 1"
        kinds = {bool: "true or false", int: "an integer", float: "a number"}
        kind = kinds.get(self.kind) or ("a list of integers" if self.item is int else "a list of numbers")
        return kind if self.least is None else f"{kind}, at least {self.least}"

    @property
    def item(self) -> type | None:
        """`type`: What a list holds, `None` if it is none."""
        return next(iter(get_args(self.kind)), None)

    @property
    def annotation(self) -> str:
        """`str`: The kind, as it is written."""
        return self.kind.__name__ if self.item is None else str(self.kind)

    def check(self, name: str, value: Any) -> None:
        """
        Args:
            name (`str`):
                Name of the field.
            value (`Any`):
                Its value, `None` if it is unset.

        Raises:
            ValueError: If the field cannot have it, saying what it may be.
        """
        if value is not None and (expected := self._expects(value)) is not None:
            raise ValueError(f"`{name}` {expected}, but is {value!r}.")

    def _expects(self, value: Any) -> str | None:
        """What a value should be, if it is something else."""
        if self.kind is str:
            return None if value in self.choices else f"must be one of {(None, *self.choices)}"
        if self.kind is bool:
            return None if isinstance(value, bool) else "must be True or False"
        if self.item is not None:
            number = Setting(self.item, self.help, least=self.least, most=self.most)
            fits = isinstance(value, list) and bool(value) and all(number._expects(each) is None for each in value)
            return None if fits else f"must be {self.range}, all finite and one or more"
        if self.kind is int:
            if not isinstance(value, int) or isinstance(value, bool) or value < (self.least or 0):
                named = {0: "an integer and not negative", 1: "a positive integer"}
                return f"must be {named.get(int(self.least or 0), f'at least {self.least}')}"
            most = LARGEST_COUNT if self.most is None else self.most
            return None if value <= most else f"must be at most {most}"
        if not _is_number(value):
            return "must be a finite number that float32 holds"
        if (self.least, self.most) == (0, 1):
            return None if 0 <= value <= 1 else "is a probability, from 0 to 1"
        if self.least is not None and value < self.least:
            return f"must be at least {self.least}" + (", which is off" if self.least == 1 else "")
        if self.divides and 0 < value < SMALLEST:
            return f"must be 0, which is off, or at least {SMALLEST}"
        return None


def setting(
    kind: type,
    help: str,
    *,
    default: Any = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    alone: bool = False,
    divides: bool = False,
) -> Any:
    """Declares a field. Type checkers see its annotation. The arguments are those of [`Setting`]."""
    return Setting(kind, help, default, least, most, choices, alone, divides)


def probability(help: str, *, default: float | None = None) -> Any:
    """Declares a field from 0 to 1."""
    return Setting(float, help, default, 0, 1)


class Fields:
    """Base of the fields that a rule adds to the generation config."""

    # the rule that owns the fields, of a class that lists those of one rule
    rule: ClassVar[type["Rule"]]

    @classmethod
    @cache
    def declared(cls) -> dict[str, Setting]:
        """The fields of the class and of its bases, in the order in which they are declared. Not to be changed."""
        found: dict[str, Setting] = {}
        for base in cls.__bases__:
            if issubclass(base, Fields):
                found |= {name: value for name, value in base.declared().items() if name not in found}
        return found | {name: value for name, value in vars(cls).items() if isinstance(value, Setting)}


@dataclass(frozen=True)
class Table:
    """
    The row of a rule in the documentation.

    Args:
        section (`str`):
            The question that it answers, the heading of its table.
        title (`str`):
            Name of the rule.
        paper (`str`):
            Where it is published, in Markdown.
        cost (`str`):
            What it costs.
        helps (`str`):
            When it helps.
    """

    section: str
    title: str
    paper: str
    cost: str
    helps: str


@dataclass(frozen=True)
class Setup:
    """
    What the parts of a call are built for.

    Args:
        config ([`~llada.generation.configuration_diffusion.DiffusionGenerationConfig`]):
            The settings, complete.
        model (`Callable`):
            As in [`~llada.generation.forwards.full.FullForward`].
        canvas ([`~llada.generation.canvas.Canvas`]):
            The canvas before the first step.
        region ([`~llada.generation.regions.Region`]):
            Its blocks.
        block_causal (`bool`):
            Whether the model attends block-causally.
        vocab_size (`int`):
            Number of logits per position.
        rules (`dict[type[Rule], str]`):
            The rules that are on, those that extend another one first, with the field that switches each on.
        extra (`dict[str, Any]`):
            What `generate` was given besides settings.
    """

    config: Any
    model: Callable
    canvas: Canvas
    region: Region
    block_causal: bool
    vocab_size: int
    rules: dict[type["Rule"], str]
    extra: dict[str, Any] = field(default_factory=dict)

    def first(self, part: str, *args: Any) -> Any:
        """The part of that name of the first rule that has one, `None` if none has."""
        made = (getattr(rule, part)(self, *args) for rule in self.rules)
        return next((value for value in made if value is not None), None)

    def wrapped(self, part: str, inner: Any) -> Any:
        """What the rules that have a part of that name put around `inner`, one around the other."""
        for rule in self.rules:
            outer = getattr(rule, part)(self, inner)
            inner = inner if outer is None else outer
        return inner


class Rule:
    """
    A published rule, or the plain one: fields of the generation config and the parts that they switch on. It is never
    instantiated; what a call needs is built by its class methods, each of which returns `None` if the rule has no such
    part.

    A rule knows nothing of the others: [`TRAITS`] says which cannot work together.

    Attributes:
        switches (`tuple[str, ...]`):
            The fields that switch the rule on, if they are set and not `False`. Its other fields need one of them.
        value (`str`, *optional*):
            The value that does it, any if not given.
        refines (`str`, *optional*):
            The field of the rule that it extends. Its parts replace those of that rule.
        needs (`str`, *optional*):
            Another field that has to be set.
        noun (`str`, *optional*):
            What a value of the switch is, for messages about the fields of one value beside another.
        decides (`tuple[str, ...]`):
            The questions that this rule answers, and that only one may answer.
        traits (`frozenset[str]`):
            What is particular about it, of [`TRAITS`].
        in_reference (`bool`):
            Whether the authors' sampler has it.
        table ([`Table`], *optional*):
            Its row in the documentation.
    """

    # its fields: a class `Settings(Fields)` inside of it
    fields: ClassVar[type[Fields]] = Fields
    switches: ClassVar[tuple[str, ...]]
    value: ClassVar[str | None] = None
    refines: ClassVar[str | None] = None
    needs: ClassVar[str | None] = None
    noun: ClassVar[str | None] = None
    decides: ClassVar[tuple[str, ...]] = ()
    traits: ClassVar[frozenset[str]] = frozenset()
    in_reference: ClassVar[bool] = False
    table: ClassVar[Table | None] = None

    def __init_subclass__(cls) -> None:
        unknown = cls.traits - TRAITS.keys()
        if unknown:
            raise TypeError(f"{cls.__name__} has traits that nobody knows: {sorted(unknown)}; see TRAITS.")
        if "Settings" in vars(cls):
            cls.fields = vars(cls)["Settings"]
            cls.fields.rule = cls

    @classmethod
    def switch(cls, values: dict[str, Any]) -> str | None:
        """The field that switches the rule on in `values`, which holds those that are set."""
        set_ = (name for name in cls.switches if values.get(name) is not None and values[name] is not False)
        return next((name for name in set_ if cls.value in (None, values[name])), None)

    @classmethod
    def get(cls, config: Any, name: str) -> Any:
        """The value of one of its fields, or what the rule runs with where it is unset."""
        value = getattr(config, name)
        return cls.fields.declared()[name].default if value is None else value

    @classmethod
    def lay_out(
        cls,
        config: Any,
        model: Callable,
        prompt: torch.Tensor,
        attention_mask: torch.Tensor | None,
        longest: int,
    ) -> Any:
        """
        The canvas of `generate`, for a rule that says how many masks there are: a
        [`~llada.generation.canvas.Canvas`], and the plan that counted the forward passes it took. The arguments are
        those of [`~llada.generation.rules.daedal.settle_length`].
        """

    @classmethod
    def selector(cls, setup: Setup) -> Any:
        """The [`~llada.generation.rules.selection.Selector`]."""

    @classmethod
    def wrap_selector(cls, setup: Setup, selector: Any) -> Any:
        """A selector around the one that the other rules gave."""

    @classmethod
    def revision(cls, setup: Setup) -> Any:
        """The [`~llada.generation.rules.revision.Revision`]."""

    @classmethod
    def forward(cls, setup: Setup, selector: Any) -> Any:
        """The [`~llada.generation.forwards.full.FullForward`]."""

    @classmethod
    def wrap_forward(cls, setup: Setup, forward: Any) -> Any:
        """A plan around the one that the other rules gave."""

    @classmethod
    def score(cls, setup: Setup) -> Any:
        """The [`~llada.generation.scores.Score`]."""

    @classmethod
    def wrap_score(cls, setup: Setup, score: Any) -> Any:
        """A score around the one that the other rules gave."""

    @classmethod
    def logits(cls, setup: Setup) -> Any:
        """What changes logits before tokens are chosen, like [`~llada.generation.rules.credit.Credit`]."""

    @classmethod
    def proposer(cls, setup: Setup) -> Any:
        """The class of the [`~llada.generation.proposer.Proposer`]."""

    @classmethod
    def shares(cls, setup: Setup) -> Any:
        """How masks are shared out over steps, like [`~llada.generation.rules.quota.share_out`]."""


def _is_number(value: Any) -> bool:
    # also false for not-a-number
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and -LARGEST <= value <= LARGEST


__all__ = ["Fields", "Rule", "Setting", "Setup", "Table", "probability", "setting"]
