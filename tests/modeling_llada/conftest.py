"""Fixtures of the tests of the model."""

import pytest
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import masking_utils
from transformers.integrations import flex_attention as flex_integration


@pytest.fixture
def interpret_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs flex attention without compiling it, for which machines need a C++ compiler and seconds."""
    monkeypatch.setattr(flex_integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    monkeypatch.setattr(
        masking_utils, "create_block_mask", lambda *args, _compile, **kwargs: create_block_mask(*args, **kwargs)
    )
