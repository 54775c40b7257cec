"""What is written about rules is what they declare."""

import inspect

from installed_wheel import ROOT
from rule_tables import DOCUMENT, sections, with_tables

from llada import DiffusionGenerationConfig
from llada.generation.configuration_diffusion import SETTINGS
from llada.generation.rules import RULES


def test_the_tables_of_the_document_are_those_of_the_rules():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `python tests/rule_tables.py`"


def test_every_rule_is_in_a_table():
    # the authors' sampler, draw for draw, is a preset
    assert [rule.__name__ for rule in RULES if rule.table is None] == ["Reference"]
    assert {rule.table.section for rule in RULES if rule.table} == set(sections())


def test_the_docstring_has_every_field():
    documented = inspect.getdoc(DiffusionGenerationConfig)
    for name, field in SETTINGS.items():
        assert f"    {name} (`{field.annotation}`, *optional*" in documented
        assert field.help.split(". ")[0].split()[0] in documented
    assert "{fields}" not in documented


def test_type_checkers_know_every_field():
    annotated = {name for kind in DiffusionGenerationConfig.__mro__ for name in vars(kind).get("__annotations__", {})}
    assert set(SETTINGS) <= annotated


def test_a_paper_is_a_file():
    folder = ROOT / "generation"
    for path in [*folder.rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
    files = {inspect.getfile(rule): rule for rule in RULES}
    assert len(files) >= 25
