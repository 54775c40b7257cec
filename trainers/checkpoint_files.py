"""Whether a folder that a trainer wrote holds all that a run is resumed from."""

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def find_faults(folder: str | os.PathLike, ranks: Sequence[int] = ()) -> list[str]:
    """
    What keeps a run from being resumed from a folder. Files are not read through: their beginnings and ends say
    whether they are whole.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that [`~transformers.Trainer`] saved a checkpoint to.
        ranks (`Sequence[int]`, *optional*):
            The processes that go on from it, if there are several.

    Returns:
        `list[str]`: A few words on every file that is missing or was written in part, empty for a checkpoint that is
        complete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return ["there is no such folder"]
    return [*_faults_of_weights(folder), *_faults_of_state(folder), *_faults_of_noise(folder, ranks)]


def _faults_of_weights(folder: Path) -> Iterator[str]:
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    weights = set()
    for index in indices:
        try:
            weights |= {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError):
            yield f"{index.name} was written in part"
    # adapters beside the default one and the shards of FSDP and DeepSpeed have folders of their own
    weights |= {*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"), *folder.glob("*.bin")}
    weights -= {folder / "training_args.bin"}
    for path in sorted(weights):
        if not path.exists():
            yield f"{path.name} is missing"
        elif path.suffix == ".safetensors" and not _is_whole(path):
            yield f"{path.name} was written in part"
    if not weights and not indices and not any(path.is_dir() for path in folder.iterdir()):
        yield "weights are missing"


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def _faults_of_state(folder: Path) -> Iterator[str]:
    # DeepSpeed keeps both in a folder that `latest` names, and looks for it itself
    needed = {} if (folder / "latest").exists() else {OPTIMIZER_NAME: "optimizer*", SCHEDULER_NAME: SCHEDULER_NAME}
    for name, pattern in needed.items():
        # FSDP writes the optimizer to a folder or to a `.bin`
        found = [*folder.glob(pattern)]
        if not found:
            yield f"{name} is missing"
        elif any(path.suffix == ".pt" and not zipfile.is_zipfile(path) for path in found):
            yield f"{name} was written in part"
    # written last
    state = folder / TRAINER_STATE_NAME
    if not state.exists():
        yield f"{TRAINER_STATE_NAME} is missing"
        return
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        yield f"{TRAINER_STATE_NAME} was written in part"


def _faults_of_noise(folder: Path, ranks: Sequence[int]) -> Iterator[str]:
    found = [*folder.glob("rng_state*.pth")]
    names = [f"rng_state_{rank}.pth" for rank in ranks] or ["rng_state.pth"]
    # one process writes another name than several do: a run may go on with fewer or more of them
    if any(("rng_state.pth" == path.name) == bool(ranks) for path in found):
        names = []
    for name in names:
        if not (folder / name).exists():
            yield f"{name} is missing"
    # what a trainer with rollouts goes on with
    for path in sorted([*found, *folder.glob("rollouts*.pt")]):
        if not zipfile.is_zipfile(path):
            yield f"{path.name} was written in part"


def _step_of(folder: Path) -> int | None:
    """The step that a folder is named after, `None` if it is not named like a checkpoint."""
    prefix, _, number = folder.name.rpartition("-")
    return int(number) if prefix == PREFIX_CHECKPOINT_DIR and number.isdigit() else None


def newest_complete(
    output_dir: str | os.PathLike, ranks: Sequence[int] = (), before: int | None = None
) -> tuple[Path | None, dict[Path, list[str]]]:
    """
    The newest checkpoint that is complete.

    Args:
        output_dir (`str` or `os.PathLike`):
            The folder of the run.
        ranks (`Sequence[int]`, *optional*):
            See [`find_faults`].
        before (`int`, *optional*):
            A step that the checkpoint has to be older than.

    Returns:
        `tuple`: The checkpoint, `None` if there is none, and what newer ones lack.
    """
    steps = {path: _step_of(path) for path in Path(output_dir).glob("*") if path.is_dir()}
    numbered = [(step, path) for path, step in steps.items() if step is not None and (before is None or step < before)]
    skipped: dict[Path, list[str]] = {}
    for _, folder in sorted(numbered, reverse=True):
        faults = find_faults(folder, ranks)
        if not faults:
            return folder, skipped
        skipped[folder] = faults
    return None, skipped


__all__ = ["find_faults", "newest_complete"]
