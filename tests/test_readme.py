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

    # what is filled is the whole of a text, and what is shown of a trace is the answer
    filled, traced = [], []
    infill, generate = LLaDAModelLM.infill, LLaDAModelLM.generate

    def record_infill(self, input_ids, **kwargs):
        filled.append(input_ids)
        return infill(self, input_ids, **kwargs)

    def record_generate(self, *args, **kwargs):
        output = generate(self, *args, **kwargs)
        if kwargs.get("output_trace"):
            traced.append(output.trace[0].step_of[kwargs["input_ids"].shape[1] :])
        return output

    monkeypatch.setattr(LLaDAModelLM, "infill", record_infill)
    monkeypatch.setattr(LLaDAModelLM, "generate", record_generate)

    assert python_blocks(README)
    _, printed = run_blocks(README, "README.md")
    assert filled and all(ids[0, -1] == tiny_tokenizer.eos_token_id for ids in filled)
    assert traced and all(f"{steps}\n" in printed for steps in traced)
    assert "GSAI-ML/LLaDA-8B-Instruct/model.safetensors" in hub.downloads
