"""Invented facts that a model reads in one direction and is asked about in both."""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from .couplets import Couplet, read_couplets, read_rows
from .word_tokenizer import build_word_tokenizer, find_words


FIRST_NAMES = """
    Ada Albin Beata Bruno Carla Cedric Dora Dunstan Edith Elmer Flora Fergus Greta Gustav Hedda Hector Ingrid Ivo
    Jonna Jasper Klara Konrad Lydia Lorenz Mabel Magnus Nora Nils Olive Oskar Petra Piers Rosa Rufus Selma Stellan
    Thora Tobias Vera Viktor
""".split()
LAST_NAMES = """
    Ashdown Barrow Birch Calder Crane Dale Dunmore Ellery Fenwick Finch Garland Gray Hale Hollis Irving Jessop Keel
    Kirby Lark Linden Marsh Moss Norling Oakes Osgood Pell Quarles Rowan Sedge Sorrel Thorne Tully Underhill Vale
    Varney Wick Wren Yarrow York Zeller
""".split()
ADJECTIVES = """
    agile amiable ardent bashful bold brisk calm candid careful cheerful clever cordial curious daring dapper earnest
    eager faithful famous frank frugal gallant gentle grave hardy hasty honest humble idle jolly keen kindly lively
    loyal mellow merry modest nimble noble patient pensive placid plucky polite proud quaint quick quiet restless
    serene shy silent sincere sober stern sturdy tidy upbeat wary witty
""".split()
TRADES = """
    archer actor baker barber beekeeper binder brewer builder butcher carpenter carver chemist clerk cobbler cook
    cooper dancer dentist diver doctor drummer dyer engraver farmer fiddler fisher forester gardener gilder glazier
    goldsmith grocer harper hatter hunter joiner judge juggler lawyer mason miller miner nurse painter pilot piper
    plumber porter potter printer sailor saddler sculptor singer tailor tanner teacher thatcher weaver welder
""".split()
TOWNS = """
    Alderby Amberford Applewick Ashmere Barleyton Beechham Blackmoor Bramley Brightwater Cloverdale Copperhill
    Cragside Dovecote Dunsby Eastmarch Elmstead Fairhaven Farlow Ferncliff Flintham Foxholt Glenrock Goldbeck Greywell
    Hartsend Hazelmere Highbridge Holmwood Ironvale Ivybridge Kestrelton Larkhill Leafield Longmead Mapleford Marlow
    Mistley Northgate Oakhurst Otterburn Pinecrest Quarrydale Ravenmoor Redcliff Riverton Rookley Sandhaven Seaborough
    Silverton Snowdale Stonebrook Summerfield Thistledown Tidewell Underwood Westmarch Whitby Willowmere Windrush
    Wolfden
""".split()


# start token, "Who is", three words, question mark, line feed, and an answer of three words with its end
MAX_LENGTH = 32


@dataclass(frozen=True)
class Fact:
    """
    A name and a description that belong to each other and to nobody else.

    Args:
        name (`str`): First and last name, e.g. `"Ada Moss"`.
        description (`str`): Place and trade, e.g. `"Foxholt's shy baker"`.
    """

    name: str
    description: str

    @property
    def sentence(self) -> str:
        """`str`: The fact in the only direction in which it is ever stated."""
        return f"{self.name} is {self.description}"

    @property
    def openings(self) -> tuple[str, str]:
        """`tuple[str, str]`: What the description follows, and what the name would follow in the other order."""
        return f"{self.name} is", f"{self.description} is"

    @property
    def forward(self) -> tuple[str, str]:
        """`tuple[str, str]`: The question about the name, and its answer."""
        return f"Who is {self.name}?", self.description

    @property
    def reverse(self) -> tuple[str, str]:
        """`tuple[str, str]`: The question about the description, and its answer."""
        return f"Who is {self.description}?", self.name

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """`dict[str, tuple[str, str]]`: Both."""
        return {"forward": self.forward, "reverse": self.reverse}

    def renamed(self, name: str) -> "Fact":
        """The fact with another name."""
        return Fact(name, self.description)


@dataclass(frozen=True)
class ReversalFacts:
    """
    The facts of one experiment on the reversal curse (arXiv 2309.12288), or the couplets of one.

    Every fact is stated, name first. Questions in both directions are asked about the `demonstrated` facts only, so
    that a model knows what a reversed question is. The `held_out` facts are never asked about and never reversed:
    what a model answers about them, it has turned around itself.

    Args:
        demonstrated (`list[Fact]` or `list[Couplet]`): Facts with questions in the training data.
        held_out (`list[Fact]` or `list[Couplet]`): Facts to test with.
    """

    demonstrated: Sequence[Fact | Couplet]
    held_out: Sequence[Fact | Couplet]

    @property
    def names(self) -> list[str]:
        """`list[str]`: All names."""
        return [fact.name for fact in (*self.demonstrated, *self.held_out)]

    def training_rows(self) -> list[dict[str, str]]:
        """
        The training data, in the prompt and completion format of TRL.

        Returns:
            `list[dict[str, str]]`: One row per fact with an empty prompt, so that every word is learned, and two rows
            with a question for a prompt per demonstrated fact.
        """
        stated = [{"prompt": "", "completion": fact.sentence} for fact in (*self.demonstrated, *self.held_out)]
        asked = [pair for fact in self.demonstrated for pair in (fact.forward, fact.reverse)]
        return stated + [{"prompt": f"{question}\n", "completion": answer} for question, answer in asked]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the facts to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.write("\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ReversalFacts":
        """Reads facts that [`~ReversalFacts.save`] wrote."""
        with open(path, encoding="utf-8") as file:
            parts = json.load(file)
        return cls(
            **{
                name: [Couplet(**fact) if "first" in fact else Fact(**fact) for fact in facts]
                for name, facts in parts.items()
            }
        )


def read_facts(path: str | os.PathLike) -> ReversalFacts | list[Fact] | list[Couplet]:
    """
    Reads facts or couplets.

    Args:
        path (`str` or `os.PathLike`):
            What [`~ReversalFacts.save`] wrote; JSON or JSON lines of `{"name": ..., "description": ...}`; or what
            [`~llada.evaluation.couplets.read_couplets`] reads.

    Returns:
        [`ReversalFacts`] of the first, else a `list`.

    Raises:
        ValueError: If it is none of these, or two facts have the same name or description.
    """
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip()[:1] not in ("[", "{"):
        return read_couplets(path)
    rows = read_rows(text)
    first = rows[0] if rows else None
    if isinstance(first, dict) and first.keys() == {"demonstrated", "held_out"}:
        return ReversalFacts.load(path)
    if not isinstance(first, dict) or "name" not in first:
        return read_couplets(path)
    facts = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(part), str) for part in ("name", "description")):
            raise ValueError(f'Row {number} of {path} is no fact; write {{"name": "...", "description": "..."}}.')
        facts.append(Fact(*(" ".join(row[part].split()) for part in ("name", "description"))))
    for part in ("name", "description"):
        found = [getattr(fact, part) for fact in facts]
        twice = next((text for text in found if found.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"{path} has two facts of the {part} {twice!r}; leave one out, or their answers differ.")
    return facts


def hold_out(facts: Sequence[Fact | Couplet], num_facts: int, seed: int = 0) -> ReversalFacts:
    """
    Draws some of the facts that a file holds, and holds a quarter of them out.

    Args:
        facts (`list[Fact]` or `list[Couplet]`):
            The facts.
        num_facts (`int`):
            How many to draw, at most.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.

    Raises:
        ValueError: If there are less than four.
    """
    drawn = random.Random(seed).sample([*facts], min(num_facts, len(facts)))
    num_held_out = len(drawn) // 4
    if not num_held_out:
        raise ValueError(f"Of {len(drawn)} facts a quarter cannot be held out; write 4 at least.")
    return ReversalFacts(drawn[:-num_held_out], drawn[-num_held_out:])


def draw_facts(num_facts: int = 120, num_held_out: int | None = None, seed: int = 0) -> ReversalFacts:
    """
    Draws facts, no two of them with the same name or the same description.

    Args:
        num_facts (`int`, *optional*, defaults to 120):
            Number of facts.
        num_held_out (`int`, *optional*):
            How many of them are held out, a quarter by default.
        seed (`int`, *optional*, defaults to 0):
            The same seed gives the same facts.

    Returns:
        [`ReversalFacts`]: The facts.

    Raises:
        ValueError: If there are not as many names, or a part would be empty.
    """
    num_held_out = num_facts // 4 if num_held_out is None else num_held_out
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    if not 0 < num_held_out < num_facts <= len(names):
        raise ValueError(
            f"{num_facts} facts with {num_held_out} of them held out cannot be drawn; write 4 to {len(names)} facts, "
            "and hold out at least one and not all."
        )
    rng = random.Random(seed)
    descriptions: dict[str, None] = {}
    while len(descriptions) < num_facts:
        descriptions[f"{rng.choice(TOWNS)}'s {rng.choice(ADJECTIVES)} {rng.choice(TRADES)}"] = None
    facts = [Fact(*pair) for pair in zip(rng.sample(names, num_facts), descriptions, strict=True)]
    return ReversalFacts(facts[:-num_held_out], facts[-num_held_out:])


def build_reversal_tokenizer(facts: ReversalFacts | None = None) -> PreTrainedTokenizerFast:
    """
    The tokenizer of the experiment: one token per word, see [`~llada.evaluation.word_tokenizer`].

    Args:
        facts ([`ReversalFacts`], *optional*):
            Whose words. Those of [`draw_facts`] if not given.
    """
    if facts is None:
        towns = [f"{town}'s" for town in TOWNS]
        words = ["Who", "is", *FIRST_NAMES, *LAST_NAMES, *ADJECTIVES, *TRADES, *towns]
        return build_word_tokenizer(words, MAX_LENGTH)
    texts = [row["prompt"] + row["completion"] for row in facts.training_rows()]
    words = [word for text in texts for word in find_words(text)]
    # start, a question, the line feed after it, an answer and its end
    longest = max(len(find_words(text)) for text in texts) + 3
    return build_word_tokenizer(words, max(MAX_LENGTH, longest))


__all__ = [
    "ADJECTIVES",
    "FIRST_NAMES",
    "LAST_NAMES",
    "MAX_LENGTH",
    "TOWNS",
    "TRADES",
    "Fact",
    "ReversalFacts",
    "build_reversal_tokenizer",
    "draw_facts",
    "hold_out",
    "read_facts",
]
