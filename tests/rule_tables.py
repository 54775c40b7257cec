"""The tables of docs/samplers.md that the rules themselves give. `python tests/rule_tables.py` writes them anew."""

from pathlib import Path

from llada.generation.rules import RULES


__all__ = ["DOCUMENT", "rows_of", "sections", "with_tables"]

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "samplers.md"

HEADS = {
    "commits": ("rule", "fields", "paper", "what it costs", "when it helps"),
    "threshold": ("rule", "fields", "paper", "what it costs", "when it helps"),
    "any": ("rule", "fields", "paper", "what it costs", "when it helps"),
    "order": ("rule", "fields", "source", "what it costs", "when it helps"),
    "length": ("rule", "fields", "paper", "what it costs", "when it helps"),
    "plan": ("plan", "fields", "paper", "positions per block", "when it helps"),
}


def rows_of(section: str) -> list[str]:
    """The lines of a table, in the order of the rules."""
    head = HEADS[section]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for rule in RULES:
        table = rule.table
        if table is None or table.section != section:
            continue
        switches = [f'`{name}="{rule.value}"`' if rule.value else f"`{name}`" for name in rule.switches]
        finer = [f"`{name}`" for name in rule.fields.declared() if name not in rule.switches]
        cells = (table.title, ", ".join(switches + finer), table.paper, table.cost, table.helps)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sections() -> list[str]:
    """The tables there are."""
    return list(HEADS)


def with_tables(text: str) -> str:
    """A document with every table between `<!-- rules: NAME -->` and `<!-- end -->` as the rules give it."""
    for section in sections():
        start, end = f"<!-- rules: {section} -->\n", "<!-- end -->"
        before, rest = text.split(start)
        text = before + start + "\n".join(rows_of(section)) + "\n" + end + rest.split(end, 1)[1]
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
