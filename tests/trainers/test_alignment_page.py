"""The page on alignment: its code runs, the lines that it names hold its formulas, and its recipes are arguments."""

import re

import pytest
import yaml
from installed_wheel import ROOT
from markdown_code import run_blocks

from llada import LLaDADPOConfig, LLaDAGRPOConfig


PAGE = (ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")


# transformers reads the config.json of a checkpoint without knowing its class
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
# trl switches checkpointing off for rollouts by its old name
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
def test_the_code_runs_and_prints_what_is_shown(tmp_path, monkeypatch) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    namespace, printed = run_blocks(PAGE, "alignment.md")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert shown in printed
    gradients = [parameter.grad for parameter in namespace["model"].parameters()]
    assert len(namespace["rewards"].unique()) > 1 and any(grad.abs().sum() > 0 for grad in gradients)


@pytest.mark.parametrize("name", ["policy_estimates", "policy_losses"])
def test_formulas_are_held_by_the_lines_that_are_named(name) -> None:
    section = {"policy_estimates": "Log π of an answer", "policy_losses": "Losses"}[name]
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    source = (ROOT / "trainers" / f"{name}.py").read_text(encoding="utf-8")
    lines = {line.strip() for line in source.splitlines()}
    named = re.findall(r"\| `([^`|]* [^`|]*)` \|$", text, re.MULTILINE)
    assert len(named) == {"policy_estimates": 8, "policy_losses": 6}[name]
    assert [line for line in named if line not in lines] == []
    for function in re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE):
        assert f"def {function}(" in source


RECIPES = dict(re.findall(r"^```yaml\n# (.*?)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_arguments(tmp_path, name) -> None:
    settings = yaml.safe_load(RECIPES[name])
    arguments_class = LLaDADPOConfig if name == "LLaDA 1.5" else LLaDAGRPOConfig
    args = arguments_class(str(tmp_path), use_cpu=True, **settings)
    assert {setting: getattr(args, setting) for setting in settings} == settings


def test_every_method_has_its_recipe() -> None:
    (header,) = re.findall(r"^\| \| (d1 .*) \|$", PAGE, re.MULTILINE)
    assert header.split(" | ") == [*RECIPES]


def test_every_heading_is_linked() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    links = re.findall(r"\[([^]]*)\]\(#([^)]+)\)", PAGE.partition("\n## ")[0])
    assert links == [(heading, heading.lower().replace(" ", "-")) for heading in headings]
