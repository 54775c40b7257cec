"""What `from_pretrained` makes of a `generation_config.json` that is not there, cannot be read, or cannot work."""

import json
import logging

import pytest
import torch
from golden import load_golden
from hub_standin import Hub, HubError

from llada import DiffusionGenerationConfig, LLaDAModelLM


PROMPT = torch.tensor([[40, 41]])
DEFAULT_LENGTH = 128


@pytest.fixture
def folder(tmp_path):
    model = LLaDAModelLM.from_pretrained(load_golden("llada").folder)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_without_one(folder):
    (folder / "generation_config.json").unlink()
    assert LLaDAModelLM.from_pretrained(folder).generation_config.max_new_tokens == DEFAULT_LENGTH


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"max_new_tokens": 64, "st', "is no JSON file.*Load the checkpoint again"),
        (b"\xff\xfe{}", "is no JSON file"),
        (b"[1, 2]", "holds a list, not settings"),
        (b"", "is no JSON file"),
    ],
    ids=["truncated", "no text", "a list", "empty"],
)
def test_one_that_cannot_be_read(content, message, folder):
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(OSError, match=f"generation_config.json {message}"):
        LLaDAModelLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "field", "mended"),
    [
        ({"do_sample": True, "temperature": 0.0}, "`temperature=0` is greedy", {"do_sample": False}),
        ({"max_new_tokens": "64"}, "`max_new_tokens=.64.`", {"max_new_tokens": 4}),
        ({"threshold": "0.9"}, "`threshold=.0.9.`", {"threshold": 0.9}),
        ({"top_k": 5, "block_length": 0}, "`block_length=0`", {"block_length": 4}),
        ({"num_beams": 4}, "`num_beams=4`", {"num_beams": 1}),
        ({"steps": 4, "max_denoising_steps": 4}, "set the same thing", {"steps": None}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_one_that_cannot_work_is_refused_by_generate(values, field, mended, folder, caplog):
    (folder / "generation_config.json").write_text(json.dumps(values))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model = LLaDAModelLM.from_pretrained(folder).eval()
    finally:
        logger.removeHandler(caplog.handler)
    assert "generation_config.json cannot be used, and `generate` will refuse it" in caplog.text
    for call in (model.generate, model.infill):
        with pytest.raises(ValueError, match=f"The generation config of the model cannot be used.*{field}"):
            call(PROMPT)
    # a call may say otherwise, and so may the user
    settings = {"max_new_tokens": 4} | mended
    assert model.generate(PROMPT, **settings).shape[1] <= 6
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    assert model.generate(PROMPT).shape[1] <= 6


def test_a_fault_of_the_call_is_not_one_of_the_checkpoint(folder):
    with pytest.raises(ValueError, match="^`block_length`"):
        LLaDAModelLM.from_pretrained(folder).generate(PROMPT, block_length=0)


@pytest.fixture
def repository(hub: Hub, folder) -> str:
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 9}))
    hub.add_folder("ada/model", folder)
    return "ada/model"


def test_a_repository_without_one(repository, hub):
    del hub.repos[repository].files["generation_config.json"]
    assert LLaDAModelLM.from_pretrained(repository).generation_config.max_new_tokens == DEFAULT_LENGTH
    # the cache cannot tell one that does not exist from one that was never asked for
    stored = LLaDAModelLM.from_pretrained(repository, local_files_only=True).generation_config
    assert stored.max_new_tokens == DEFAULT_LENGTH


@pytest.mark.parametrize("status", [401, 403, 500])
def test_one_that_the_hub_does_not_give(status, repository, hub, monkeypatch):
    # the client asks a Hub that fails five times, and waits in between
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.refusals[f"{repository}/generation_config.json"] = HubError(status, None, "no")
    with pytest.raises(OSError, match=f"(?s)generation_config.json.*{status}|{status}.*generation_config.json"):
        LLaDAModelLM.from_pretrained(repository)
    # and one that came once is taken from the cache
    hub.refusals.clear()
    assert LLaDAModelLM.from_pretrained(repository).generation_config.max_new_tokens == 9
    hub.refusals[f"{repository}/generation_config.json"] = HubError(500, None, "no")
    assert LLaDAModelLM.from_pretrained(repository).generation_config.max_new_tokens == 9


def test_settings_passed_to_from_pretrained(folder):
    config = DiffusionGenerationConfig(max_new_tokens=5, threshold=None)
    loaded = LLaDAModelLM.from_pretrained(folder, generation_config=config).generation_config
    assert (loaded.max_new_tokens, loaded.block_length) == (5, 32)
