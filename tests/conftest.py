"""Fixtures that several test folders use, and the surroundings every test runs in."""

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


# before anything imports huggingface_hub, which reads these once; subprocesses of tests inherit them
_HF_HOME = tempfile.TemporaryDirectory(prefix="llada-tests-")
os.environ.update(
    HF_HOME=_HF_HOME.name,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    NO_PROXY="127.0.0.1",
    TOKENIZERS_PARALLELISM="false",
)

import huggingface_hub.hf_api
import peft
import pytest
import torch
import transformers.utils.hub
from golden import Golden, load_golden
from hub_standin import Hub, serve_hub
from packaging.version import Version
from tiny_tokenizer import build_tiny_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging
from transformers.integrations.peft import MIN_PEFT_VERSION


# pytest-xdist runs one worker per core
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Hides what is there to stay from the garbage collector, which every training run calls: half of its seconds."""
    gc.collect()
    gc.freeze()


class _DeprecationsAreErrors(logging.Handler):
    """Raises when transformers logs that something we do is deprecated: it logs most of these instead of warning."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # published config.json files say `torch_dtype`
        if "deprecat" in message.lower() and not message.startswith("`torch_dtype` is deprecated"):
            raise AssertionError(f"transformers logged a deprecation: {message}")


transformers_logging.get_logger("transformers").addHandler(_DeprecationsAreErrors(logging.WARNING))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Starts every test from the same random state, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_llada() -> Golden:
    """The small checkpoint in the LLaDA-8B layout, with what the published code answers on it."""
    return load_golden("llada")


@pytest.fixture(scope="session")
def golden_illada() -> Golden:
    """The small checkpoint in the iLLaDA layout, with what the published code answers on it."""
    return load_golden("illada")


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are those of the checkpoint of `golden_llada`."""
    return build_tiny_tokenizer()


@pytest.fixture
def adapters_inside() -> None:
    """Skips a test of transformers' own adapter methods where they ask for a peft newer than the installed."""
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"this transformers wants peft {MIN_PEFT_VERSION} for adapters inside a model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """
    A hub on the loopback interface that huggingface_hub, transformers, peft and trl talk to, signed in as `ada`, with
    a download cache of its own: what a test pushed really comes back over the wire.
    """
    constants = huggingface_hub.constants
    with serve_hub({"hf_ada": "ada", "hf_bob": "bob"}) as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # peft looks here
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        # both clients took their address when they were made
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        yield hub
