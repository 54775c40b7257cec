"""Who may import whom. The rules are in CONTRIBUTING.md; each is also shown to catch a file that breaks it."""

import ast
import configparser
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from installed_wheel import ROOT


PACKAGES = ("evaluation", "export", "generation", "llada", "llada_cli", "modeling_llada", "trainers")
# these are imported by the names of their folders, the others as parts of the first
TOP_LEVEL = ("llada", "llada_cli")
# which folders a folder may import, itself aside
ARROWS = {
    "generation": set(),
    "modeling_llada": {"generation"},
    "export": {"generation", "modeling_llada"},
    # a trainer writes the card of what it trained
    "trainers": {"export", "generation", "modeling_llada"},
    "evaluation": {"generation", "modeling_llada"},
    "llada": {"evaluation", "export", "generation", "modeling_llada", "trainers"},
    # the command line, which nothing may import but `python -m llada`
    "llada_cli": {"evaluation", "export", "generation", "llada", "modeling_llada", "trainers"},
}
# the one import against the arrows, only inside a function: a model that is pushed writes its card
PUSHES = "modeling_llada/modeling_llada.py"
DEFERRED = ("llada.modeling_llada.modeling_llada", "llada.export.model_card")
OPTIONAL = {"accelerate", "datasets", "lm_eval", "peft", "trl"}
OPTIONAL_ALLOWED = {"evaluation", "trainers"}


@dataclass(frozen=True)
class Import:
    """One import of a name `name` from a module `module`, both absolute, in the source file `path`."""

    path: str
    module: str
    name: str
    relative: bool
    top_level: bool


def package_of(path: str) -> str:
    """The import name of the folder that the file lies in: `generation/x.py` -> `llada.generation`."""
    parts = Path(path).parent.parts
    return ".".join(parts if parts[0] in TOP_LEVEL else ("llada", *parts))


def folder_of(module: str) -> str:
    """The folder a module of the package belongs to: `llada.generation.x` -> `generation`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else parts[0]


def module_of(path: str) -> str:
    """The import name of a file."""
    stem = Path(path).stem
    return package_of(path) if stem == "__init__" else f"{package_of(path)}.{stem}"


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import in a file."""
    tree = ast.parse(source)
    # what runs when the file is imported, as opposed to when a function of it is called
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            deferred.update(ast.walk(node))
    for node in ast.walk(tree):
        top_level = node not in deferred
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, alias.name, "", False, top_level)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package_of(path).split(".")
                module = ".".join(base[: len(base) - node.level + 1] + ([module] if module else []))
            for alias in node.names:
                yield Import(path, module, alias.name, node.level > 0, top_level)


def violations(sources: dict[str, str]) -> list[str]:
    """
    Check the import rules.

    Args:
        sources (`dict[str, str]`):
            Python source by path relative to the root of the checkout.

    Returns:
        `list[str]`: one line for each rule that is broken.
    """
    found = []
    modules = {module_of(path) for path in sources}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for path, source in sources.items():
        here = module_of(path)
        for item in imports_of(path, source):
            where = f"{path} imports {item.module}.{item.name}".rstrip(".")
            if item.module.split(".")[0] not in TOP_LEVEL:
                if item.module.split(".")[0] in PACKAGES:
                    found.append(f"{where}: write it relative to the package")
                optional = item.module.split(".")[0] in OPTIONAL
                if optional and item.top_level and folder_of(here) not in OPTIONAL_ALLOWED:
                    found.append(f"{where}: optional dependencies are imported inside functions here")
                continue
            across = here.split(".")[0] != item.module.split(".")[0]
            if not item.relative and not across:
                found.append(f"{where}: write it relative to the package")
            # `from .folder import module` names a module too
            target = f"{item.module}.{item.name}"
            if target not in modules:
                target = item.module
            source_folder, target_folder = folder_of(here), folder_of(target)
            front_door = here == "llada.__main__" and target_folder == "llada_cli"
            if source_folder != target_folder:
                deferred = (here, target) == DEFERRED and not item.top_level
                if target_folder not in ARROWS[source_folder] and not front_door and not deferred:
                    found.append(f"{where}: {source_folder} must not import {target_folder}")
                if target == f"llada.{target_folder}" and not front_door:
                    found.append(f"{where}: name the module")
            if target in modules:
                graph[here].add(target)
            else:
                found.append(f"{where}: no such module")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"modules import each other in a circle: {' -> '.join(error.args[1])}")
    stems = Counter(Path(path).stem for path in sources)
    found += [f"{stem}.py exists {n} times" for stem, n in stems.items() if n > 1 and not stem.startswith("__")]
    return found


def checkout() -> dict[str, str]:
    paths = [path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_checkout_keeps_the_rules() -> None:
    sources = checkout()

    assert {"llada/__init__.py", "modeling_llada/modeling_llada.py", "generation/mixin.py"} <= set(sources)
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("generation/new.py", "from ..modeling_llada.a import f", "generation must not import modeling_llada"),
        ("modeling_llada/new.py", "from ..trainers.a import f", "modeling_llada must not import trainers"),
        (PUSHES, "from ..export.model_card import f", "modeling_llada must not import export"),
        (PUSHES, "def g():\n    from ..export.a import f", "modeling_llada must not import export"),
        ("modeling_llada/new.py", "def g():\n    from ..export.model_card import f", "must not import export"),
        ("export/new.py", "from ..trainers.a import f", "export must not import trainers"),
        ("evaluation/new.py", "from ..export.a import f", "evaluation must not import export"),
        ("trainers/new.py", "from ..evaluation.a import f", "trainers must not import evaluation"),
        ("trainers/new.py", "def g():\n    from ..evaluation.a import f", "trainers must not import evaluation"),
        ("evaluation/new.py", "from ..trainers.a import f", "evaluation must not import trainers"),
        ("generation/new.py", "from .. import LLaDAConfig", "generation must not import llada"),
        ("trainers/new.py", "from llada_cli.a import f", "trainers must not import llada_cli"),
        ("llada/new.py", "from llada_cli import main", "llada must not import llada_cli"),
        ("llada_cli/new.py", "from llada_cli.e import f", "write it relative"),
        ("trainers/new.py", "from ..generation import f", "name the module"),
        ("trainers/new.py", "from llada.generation.a import f", "write it relative"),
        ("trainers/new.py", "import generation.a", "write it relative"),
        ("trainers/new.py", "from .missing import f", "no such module"),
        ("generation/new.py", "import trl", "optional dependencies"),
        ("llada/new.py", "from peft import LoraConfig", "optional dependencies"),
        ("generation/b.py", "", "b.py exists 2 times"),
        ("generation/a.py", "from .c import f", "in a circle"),
    ],
)
def test_each_rule_catches(path: str, source: str, message: str) -> None:
    sources = {f"{folder}/__init__.py": "" for folder in PACKAGES}
    sources |= {"generation/a.py": "", "generation/c.py": "from .a import f"}
    sources |= {"evaluation/b.py": "import trl", "trainers/d.py": "def f():\n    import trl"}
    sources |= {"export/model_card.py": "", PUSHES: "def g():\n    from ..export.model_card import f"}
    sources |= {"llada/__main__.py": "from llada_cli import main", "llada_cli/e.py": "from llada.trainers.d import f"}
    assert violations(sources) == []

    assert [line for line in violations({**sources, path: source}) if message in line]


def test_setup_cfg_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    on_disk = {package_of(path): Path(path).parent.as_posix() for path in checkout()}

    listed = setup["options"]["packages"].split()
    assert listed == sorted(on_disk)
    mapping = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert mapping == on_disk


def test_test_files_have_names_of_their_own() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))

    assert [name for name, count in names.items() if count > 1 and name != "conftest.py"] == []
