"""Fixtures that several test folders use, and the surroundings every test runs in."""

import logging
import os
import tempfile


# before anything imports huggingface_hub, which reads these once; subprocesses of tests inherit them
_HF_HOME = tempfile.TemporaryDirectory(prefix="llada-tests-")
os.environ.update(
    HF_HOME=_HF_HOME.name, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
)

import pytest
import torch
from golden import Golden, load_golden
from tiny_tokenizer import build_tiny_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging


# pytest-xdist runs one worker per core
torch.set_num_threads(1)


class _DeprecationsAreErrors(logging.Handler):
    """Raises when transformers logs that something we do is deprecated: it logs most of these instead of warning."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower():
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
