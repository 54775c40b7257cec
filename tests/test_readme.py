"""The README is short, and its code runs as it stands."""

from pathlib import Path

import pytest
from golden import Golden
from hub_standin import Hub
from installed_wheel import ROOT
from markdown_code import python_blocks, run_blocks
from transformers import PreTrainedTokenizerFast

from llada import LLaDAModelLM


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert README.count("\n") < 250


def test_readme_code_runs(
    hub: Hub,
    golden_llada: Golden,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the published models, small enough for a test, on a hub where the reader is `your-name`
    published = tmp_path / "published"
    LLaDAModelLM.from_pretrained(golden_llada.folder).save_pretrained(published)
    tiny_tokenizer.save_pretrained(published)
    for repo_id in ("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct"):
        hub.add_folder(repo_id, published)
    hub.users["hf_reader"] = "your-name"
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    monkeypatch.chdir(tmp_path)

    assert python_blocks(README)
    _, printed = run_blocks(README, "README.md")
    assert printed
    assert "GSAI-ML/LLaDA-8B-Instruct/model.safetensors" in hub.downloads
