"""The page on training: its code runs, shows what it says, and lists what is logged."""

import re

import pytest
from installed_wheel import ROOT
from markdown_code import run_blocks
from tiny_models import tiny_llada_moe


PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def _listed(section):
    """The names in the first column of the table of a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


# transformers reads the config.json of a checkpoint without knowing its class
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_the_code_runs_and_prints_what_is_shown(tmp_path, monkeypatch):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    _, printed = run_blocks(PAGE, "training.md")
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert shown and all(text in printed for text in shown), printed


def test_the_lists_are_those_of_what_is_logged(make_trainer, pairs):
    model = tiny_llada_moe(
        vocab_size=320,
        mask_token_id=300,
        bos_token_id=295,
        eos_token_id=299,
        pad_token_id=299,
        max_position_embeddings=64,
    )
    settings = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 8, "router_aux_loss_coef": 0.1}
    settings |= {"confidence_weight": 0.1, "edit_ratio": 0.5, "learning_rate": 1e-2}
    trainer = make_trainer(model=model, eval_dataset=pairs, **settings)
    trainer.train()
    logged = [set(entry) - {"step"} for entry in trainer.state.log_history]
    of_training = set().union(*(names for names in logged if "loss" in names))
    of_evaluation = next(names for names in logged if "eval_loss" in names)
    assert _listed("What the numbers mean") == of_training
    assert _listed("Evaluation") == of_evaluation - {"epoch"}
    for name in logged[-1] - {"epoch"}:
        assert f"`{name}`" in PAGE


def test_every_heading_is_linked():
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    links = re.findall(r"\[([^]]*)\]\(#([\w-]+)\)", PAGE.partition("\n## ")[0])
    assert links == [(heading, heading.lower().replace(" ", "-")) for heading in headings]
