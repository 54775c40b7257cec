"""The package as users meet it: its names, what an import costs, and every way to install it."""

import importlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from installed_wheel import ROOT, build_wheel, copy_sources, install_wheel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import llada


FOLDERS = ("evaluation", "export", "generation", "llada", "llada_cli", "modeling_llada", "trainers")


def run_python(code: str, cwd: Path, python: Path | str = sys.executable) -> str:
    """Runs code in an interpreter of its own and returns what it printed."""
    result = subprocess.run([str(python), "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def modules_in_checkout() -> list[str]:
    """The files of the package, as they are called inside an installation."""
    paths = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    top_level = ("llada", "llada_cli")
    return sorted(path.as_posix() if path.parts[0] in top_level else f"llada/{path.as_posix()}" for path in paths)


@pytest.mark.parametrize("name", llada.__all__)
def test_public_name(name: str) -> None:
    value = getattr(llada, name)

    assert isinstance(value, type) or name in ("from_causal", "preset")
    assert value.__name__ == name
    assert value.__module__.startswith("llada.")
    assert name in dir(llada)
    assert re.search(r"\w", value.__doc__)


def test_public_surface() -> None:
    assert llada.__all__ == sorted(llada.__all__)
    for name in ("export", "generation", "modeling_llada", "trainers"):
        assert getattr(llada, name) is importlib.import_module(f"llada.{name}")
        assert name in dir(llada)
    with pytest.raises(AttributeError, match="module 'llada' has no attribute 'LLaDAModelForLM'"):
        _ = llada.LLaDAModelForLM


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {llada.__version__}\n" in citation and '\ntitle: "llada-hf: ' in citation
    assert llada.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM])
@pytest.mark.parametrize(
    ("model_type", "config_class", "model_class"),
    [
        ("llada", llada.LLaDAConfig, llada.LLaDAModelLM),
        ("illada", llada.ILLaDAConfig, llada.ILLaDAForCausalLM),
        ("lladamoe", llada.LLaDAMoEConfig, llada.LLaDAMoEModelLM),
        ("llada2_moe", llada.LLaDA2MoeConfig, llada.LLaDA2MoeModelLM),
    ],
    ids=["llada", "illada", "lladamoe", "llada2_moe"],
)
def test_auto_classes_give_the_model_with_the_head(auto_class, model_type, config_class, model_class) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = AutoConfig.for_model(model_type, vocab_size=32, intermediate_size=16, mask_token_id=5, **sizes)

    assert type(config) is config_class
    assert type(auto_class.from_config(config)) is model_class


def test_import_is_light() -> None:
    heavy = {"accelerate", "datasets", "lm_eval", "peft", "prompt_toolkit", "trl"}
    code = f"""
import sys
# what any model of transformers needs
from transformers import AutoModelForMaskedLM, GenerationMixin, PreTrainedModel
before = set(sys.modules)
import llada
print(*sorted({heavy} & (set(sys.modules) - before)))
"""
    assert run_python(code, ROOT) == ""


def test_missing_extra_is_named() -> None:
    code = """
import sys
for name in ("accelerate", "datasets", "peft", "trl"):
    sys.modules[name] = None
import llada
llada.LLaDAModelLM
try:
    llada.LLaDASFTTrainer
except ImportError as error:
    print(error)
"""
    assert re.fullmatch(r"llada\.LLaDASFTTrainer needs \w+: pip install 'llada-hf\[train\]'", run_python(code, ROOT))


def test_bare_checkout_works_under_any_name(tmp_path: Path) -> None:
    checkout = copy_sources(tmp_path / "a-clone")
    code = "import llada; print(llada.__file__, llada.modeling_llada.__file__, llada.generation.__file__)"

    expected = [checkout / folder / "__init__.py" for folder in ("llada", "modeling_llada", "generation")]
    assert run_python(code, checkout).split() == [str(path) for path in expected]
    command = [sys.executable, "-m", "llada", "--help"]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    package = {name for name in names if not name.startswith(f"llada_hf-{llada.__version__}.dist-info/")}
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llada_cli").rglob("*.yaml")}
    tasks = {f"llada/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "evaluation").rglob("*.yaml")}
    assert len(configs) == 3 + 4 and len(tasks) == 4 + 6
    page = "llada/generation/views/replay_page.html"
    assert package == {*modules_in_checkout(), *configs, *tasks, page, "llada/py.typed", "llada_cli/py.typed"}
    assert f"llada_hf-{llada.__version__}.dist-info/licenses/LICENSE" in names


def test_wheel_works_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    python = install_wheel(wheel, tmp_path / "env")
    code = """
import importlib, pkgutil, llada
for module in pkgutil.walk_packages(llada.__path__, "llada."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from transformers import AutoConfig
print(llada.__file__, *llada.__path__, type(AutoConfig.for_model("llada")).__module__)
"""
    installed, *path, module = run_python(code, tmp_path, python).split()
    assert Path(installed).is_relative_to(tmp_path / "env")
    assert path == [str(Path(installed).parent)]
    assert module == "llada.modeling_llada.configuration_llada"

    result = subprocess.run([python.with_name("llada"), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout


def test_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(sources)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout

    # without options, `build` makes the wheel from the sdist
    (from_sdist,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(from_sdist).namelist()) == set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(tmp_path / f"llada_hf-{llada.__version__}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for name in ("LICENSE", "README.md", "constraints.txt", "tests/conftest.py", "tests/fixtures/llada/config.json"):
        assert name in names
