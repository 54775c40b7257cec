"""What holds for the files of the repository, whatever is in them."""

import configparser
import re
import subprocess

import pytest
from installed_wheel import ROOT
from packaging.requirements import Requirement
from packaging.version import Version


# a path on somebody's machine, or a package registry other than the default
MACHINE = re.compile(r"(?<![\w.:~*/-])/(?:home|opt|root|tmp|Users|work)/\w|index-url|find-links")


def tracked_text() -> dict[str, str]:
    """The text files that git tracks or would track, by path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    files = {}
    for name in names:
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            files[name] = content.decode("utf-8")
    return files


def test_no_file_names_a_machine() -> None:
    files = tracked_text()
    assert "Makefile" in files and ".ci/run" in files

    found = [f"{name}: {match[0]}" for name, text in files.items() for match in MACHINE.finditer(text)]
    # this file names what it looks for
    assert [line for line in found if not line.startswith("tests/test_repository.py")] == []


@pytest.mark.parametrize(
    "line", ["cd /home/ada", 'open("/tmp/x")', "sh = (/root/y)", "pip install --extra-index-url https://example.com"]
)
def test_machine_pattern_catches(line: str) -> None:
    assert MACHINE.search(line)


def test_modules_are_short() -> None:
    lengths = {name: text.count("\n") for name, text in tracked_text().items() if name.endswith(".py")}

    assert {name: length for name, length in lengths.items() if length > 600} == {}


def test_every_module_says_what_is_public() -> None:
    folders = ("evaluation/", "export/", "generation/", "llada/", "modeling_llada/", "trainers/")
    python = {name: text for name, text in tracked_text().items() if name.endswith(".py")}
    modules = {name: text for name, text in python.items() if name.startswith(folders)}

    assert [name for name, text in modules.items() if text and not text.startswith(('"""', 'r"""'))] == []
    silent = [name for name, text in modules.items() if not re.search(r"^__all__ = \[", text, re.MULTILINE)]
    assert [name for name in silent if not name.endswith(("__init__.py", "__main__.py"))] == []


def test_constraints_meet_the_requirements() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], extras["train"], extras["dev"]]

    requirements = [Requirement(line) for line in "\n".join(lines).split()]
    assert {"torch", "transformers", "trl", "peft", "ruff"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        assert Version(pins[requirement.name]) in requirement.specifier, requirement


def test_make_lists_every_command() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert re.findall(r"^  make ([\w-]+) ", listed, re.MULTILINE) == targets
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert (
        set(re.findall(r"^make ([\w-]+)$", ci, re.MULTILINE))
        == {"test", "quality", "demo", "test-newest"}
        <= set(targets)
    )
