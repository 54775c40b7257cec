"""The notebooks are clean, listed, and run."""

import re
from pathlib import Path

import nbformat
import pytest
from installed_wheel import ROOT
from nbclient import NotebookClient


FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# what some cell must have printed or returned
EXPECTED = {
    "fine_tuning.ipynb": ["before: 0 of 6", "after: 6 of 6", "reloaded: 6 of 6", "adapted: 6 of 6", "merged: 6 of 6"],
    "quickstart.ipynb": ["'Gustav Gray'", "Gustav Gray is Hazelmere's curious dancer", "4 forward passes"],
}


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == sorted(EXPECTED)


def test_all_are_listed() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")

    assert sorted(re.findall(r"^\| \[(.*?)\]\(\1\) \|", table, re.MULTILINE)) == sorted(EXPECTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)

    assert all(
        not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in the checkout the package need not be installed
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # pytest-xdist runs one worker per core
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(FOLDER)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    for text in EXPECTED[path.name]:
        assert text in shown
