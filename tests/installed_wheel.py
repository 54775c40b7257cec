"""
Build the wheel and install it, without downloading anything, into a clean environment that borrows this one's
dependencies. `make quality` type-checks what is installed there, `test_package.py` imports it.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


__all__ = ["build_wheel", "copy_sources", "install_wheel", "wheel_environment"]

ROOT = Path(__file__).resolve().parent.parent


def copy_sources(target: Path) -> Path:
    """
    Copy what git tracks or would track, so that a build neither sees nor leaves files in the checkout.

    Args:
        target (`Path`):
            Folder to create.

    Returns:
        `Path`: the folder.
    """
    ignore = shutil.ignore_patterns(".git", ".*cache", ".venv*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, target, ignore=ignore)
    return target


def build_wheel(target: Path) -> Path:
    """
    Build the wheel of this checkout.

    Args:
        target (`Path`):
            Folder that receives the sources and the wheel.

    Returns:
        `Path`: the wheel.
    """
    sources = copy_sources(target / "sources")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(target), str(sources)], check=True)
    (wheel,) = target.glob("llada_hf-*.whl")
    return wheel


def install_wheel(wheel: Path, target: Path) -> Path:
    """
    Install a wheel into a new environment whose other packages are those of the running interpreter.

    Args:
        wheel (`Path`):
            The wheel.
        target (`Path`):
            Folder of the new environment.

    Returns:
        `Path`: the environment's interpreter.
    """
    venv.create(target, with_pip=False, symlinks=True)
    python = target / "bin" / "python"
    paths = {"base": str(target), "platbase": str(target)}
    site_packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=paths))
    # a plain path entry: packages are found, but an editable llada over there is not followed
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True)
    return python


def wheel_environment(target: Path) -> Path:
    """
    Build the wheel and install it into the environment `target`.

    Args:
        target (`Path`):
            Folder of the new environment; the wheel and the sources it was built from go to its `wheel` folder.

    Returns:
        `Path`: the environment's interpreter.
    """
    return install_wheel(build_wheel(target / "wheel"), target)


if __name__ == "__main__":
    wheel_environment(Path(sys.argv[1]).absolute())
