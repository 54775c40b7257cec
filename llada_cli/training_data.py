"""What the commands that train read: a dataset on the Hub, a folder, a file, or a mixture of several."""

import sys
from pathlib import Path
from typing import Any


_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def load_datasets(script: Any, config: Any, mixture: Any = None) -> tuple[Any, Any]:
    """
    The splits of the dataset that the options name, or of the mixture of several.

    Args:
        script (`trl.ScriptArguments`): Which dataset, and which splits of it.
        config (`transformers.TrainingArguments`): Whether there are evaluations, and the seed of what is held out.
        mixture (`trl.DatasetMixtureConfig`, *optional*): Which datasets, how much of each, and what is held out.

    Returns:
        `tuple`: What is trained on and what is evaluated on, `None` without evaluations.

    Raises:
        ValueError: If no dataset is named, or the mixture cannot be made.
    """
    evaluates = config.eval_strategy != "no"
    if mixture is not None and mixture.datasets:
        if script.dataset_name is not None:
            print("`datasets` are what is trained on; `--dataset_name` is ignored.", file=sys.stderr)
        return _load_mixture(mixture, config.seed, evaluates)
    if script.dataset_name is None:
        raise ValueError("What is trained on? Write `--dataset_name`: a dataset on the Hub, a folder, or a file.")
    splits = script.dataset_train_split, script.dataset_test_split if evaluates else None
    train_dataset, eval_dataset = (
        split and _load_split(script.dataset_name, split, script.dataset_streaming, script.dataset_config)
        for split in splits
    )
    return train_dataset, eval_dataset


def _load_mixture(mixture: Any, seed: int, evaluates: bool) -> tuple[Any, Any]:
    """The datasets one after the other, as `trl.get_dataset` has them, of each its share if shares are given."""
    from datasets import concatenate_datasets

    if evaluates and mixture.test_split_size is None:
        raise ValueError(
            "Of a mixture nothing is held out to evaluate on. Write `--test_split_size 0.05`, or `--eval_strategy no`."
        )
    if mixture.streaming and mixture.test_split_size is not None:
        raise ValueError(
            f"`--test_split_size {mixture.test_split_size}` needs to know how many rows there are, which nobody knows "
            "of a stream. Leave out `--streaming` or `--test_split_size`."
        )
    parts = []
    for source in mixture.datasets:
        files = {"data_dir": source.data_dir, "data_files": source.data_files}
        part = _load_split(source.path, source.split, mixture.streaming, source.name, **files)
        parts.append(part if source.columns is None else part.select_columns(source.columns))
    fractions = [source.fraction for source in mixture.datasets]
    if any(fraction is not None for fraction in fractions):
        parts = _take_shares(parts, fractions, mixture.streaming)
    try:
        dataset = concatenate_datasets(parts)
    except ValueError as error:
        raise ValueError(
            f"The datasets {', '.join(_name_mixture(mixture))} cannot be mixed: {error} Name what they share with "
            "`columns`, or bring columns of one name to one type."
        ) from error
    if mixture.test_split_size is None:
        return dataset, None
    # what is held out has to be the same in every process, and in a run that goes on
    split = dataset.train_test_split(test_size=mixture.test_split_size, seed=seed)
    return split["train"], split["test"] if evaluates else None


def _take_shares(parts: list[Any], fractions: list[float | None], streaming: bool) -> list[Any]:
    """The first rows of each dataset, as many as its share of the largest mixture in which none is repeated."""
    shares = [fraction for fraction in fractions if fraction is not None]
    if len(shares) < len(parts) or min(shares) < 0 or sum(shares) == 0:
        raise ValueError(
            f"The fractions of the mixture are {fractions}; write one for each dataset, 0 or more, that are not all 0."
        )
    if streaming:
        raise ValueError("Nobody knows how long a stream is: leave out `--streaming` or every `fraction`.")
    shares = [share / sum(shares) for share in shares]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True) if share)
    return [part.select(range(round(share * total))) for part, share in zip(parts, shares, strict=True)]


def name_datasets(script: Any, mixture: Any = None) -> str | list[str] | None:
    """What a card calls that which was trained on. Arguments as in [`load_datasets`]."""
    return _name_mixture(mixture) if mixture is not None and mixture.datasets else script.dataset_name


def _name_mixture(mixture: Any) -> list[str]:
    names: list[str] = []
    for source in mixture.datasets:
        files = source.data_files or source.path
        names += [files] if isinstance(files, str) else map(str, files.values() if isinstance(files, dict) else files)
    return names


def _load_split(name: str, split: str, streaming: bool, config_name: str | None = None, **files: Any) -> Any:
    """One split. A file is all of the split `train`, and a text file is one document."""
    from datasets import load_dataset

    options = {"split": split, "streaming": streaming}
    path = Path(name)
    if any(value is not None for value in files.values()):
        builder = name
    elif path.suffix in _BUILDERS:
        builder, files = _BUILDERS[path.suffix], {"data_files": name}
    elif any(path.glob("**/*.txt")):
        builder, files = "text", {"data_dir": name}
    else:
        builder = name
    if builder == "text":
        options["sample_by"] = "document"
    return load_dataset(builder, config_name, **files, **options)


__all__ = ["load_datasets", "name_datasets"]
