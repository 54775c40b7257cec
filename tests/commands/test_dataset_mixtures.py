"""Several datasets as one, compared with what trl makes of the same options."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from demo_checkpoint import DEMO_FOLDER
from safetensors.torch import load_file
from transformers import TrainingArguments
from trl import DatasetMixtureConfig, ScriptArguments, get_dataset

from llada_cli import main
from llada_cli.training_data import load_datasets, name_datasets


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Ten rows and thirty, the second with a column of its own."""
    paths = []
    for name, number in (("few", 10), ("many", 30)):
        rows = [{"prompt": f"{name} {row}?", "completion": f"{row}"} for row in range(number)]
        rows = [row | {"source": name} for row in rows] if name == "many" else rows
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(str(path))
    return paths[0], paths[1]


def load(mixture: DatasetMixtureConfig, eval_strategy: str = "no", seed: int = 42, **script):
    config = TrainingArguments(report_to="none", eval_strategy=eval_strategy, eval_steps=1, seed=seed)
    return load_datasets(ScriptArguments(**script), config, mixture)


@pytest.mark.parametrize("fractions", [(None, None), (0.5, 0.5), (1, 2), (0, 3), (0.9, 0.1)])
def test_a_mixture_is_that_of_trl(files: tuple[str, str], fractions: tuple) -> None:
    sources = [
        {"path": path, "columns": ["prompt", "completion"], "fraction": fraction}
        for path, fraction in zip(files, fractions, strict=True)
    ]
    as_trl = [source | {"path": "json", "data_files": source["path"]} for source in sources]
    expected = get_dataset(DatasetMixtureConfig([*as_trl]))["train"]
    for given in (sources, as_trl):
        mixture = DatasetMixtureConfig([*given])
        found, evaluated = load(mixture)
        assert found[:] == expected[:] and evaluated is None
        assert name_datasets(ScriptArguments(), mixture) == [*files]


def test_a_stream_is_mixed_and_columns_are_kept(files: tuple[str, str]) -> None:
    mixture = DatasetMixtureConfig([{"path": path} for path in files], streaming=True)
    rows = list(load(mixture)[0])
    assert [row["source"] for row in rows] == [None] * 10 + ["many"] * 30


def test_what_is_held_out_depends_on_the_seed_alone(files: tuple[str, str]) -> None:
    mixture = DatasetMixtureConfig([{"path": path} for path in files], test_split_size=0.25)
    first, again, other = (load(mixture, "steps", seed) for seed in (1, 1, 2))
    assert [len(part) for part in first] == [30, 10]
    assert first[1][:] == again[1][:] != other[1][:]
    assert not {*first[0]["prompt"]} & {*first[1]["prompt"]}
    trained, evaluated = load(mixture, seed=1)
    assert trained[:] == first[0][:] and evaluated is None


@pytest.mark.parametrize(
    ("settings", "fractions", "eval_strategy", "message"),
    [
        ({}, (0.5, None), "no", r"\[0.5, None\]; write one for each dataset"),
        ({}, (-1, 2), "no", r"\[-1, 2\]; write one for each dataset, 0 or more"),
        ({}, (0, 0), "no", "that are not all 0"),
        ({"streaming": True}, (1, 1), "no", "how long a stream is: leave out `--streaming` or every `fraction`"),
        ({"streaming": True, "test_split_size": 0.5}, (None, None), "steps", "Leave out `--streaming` or"),
        ({}, (None, None), "steps", "nothing is held out to evaluate on. Write `--test_split_size 0.05`"),
    ],
    ids=["some", "negative", "none", "shares of a stream", "part of a stream", "nothing held out"],
)
def test_what_cannot_be_mixed_is_explained(files, settings, fractions, eval_strategy, message) -> None:
    sources = [{"path": path, "fraction": share} for path, share in zip(files, fractions, strict=True)]
    with pytest.raises(ValueError, match=message):
        load(DatasetMixtureConfig(sources, **settings), eval_strategy)


def test_columns_of_two_types_are_explained(files: tuple[str, str], tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "hi"}]]
    Dataset.from_dict({"prompt": messages, "completion": messages}).to_json(tmp_path / "chat.jsonl")
    mixture = DatasetMixtureConfig([{"path": files[0]}, {"path": str(tmp_path / "chat.jsonl")}])
    with pytest.raises(ValueError, match=r"few.jsonl, .*chat.jsonl cannot be mixed: .*Name what they share"):
        load(mixture)


def test_a_command_trains_on_a_mixture(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tmp_path / "mixture.yaml"
    few, many = files
    recipe.write_text(
        f"datasets:\n- path: {few}\n  fraction: 0.5\n- path: json\n  data_files: {many}\n  fraction: 0.5\n"
        "test_split_size: 0.2\neval_strategy: steps\neval_steps: 1\nper_device_train_batch_size: 16\n"
        "max_steps: 1\nlearning_rate: 0.01\nwarmup_steps: 0\nuse_cpu: true\nbf16: false\nreport_to: none\n"
        "dataloader_pin_memory: false\nsave_steps: 1\nnum_eval_draws: 1\ndisable_tqdm: true\n",
        encoding="utf-8",
    )
    folder = tmp_path / "tuned"
    named = ["--model_name_or_path", str(DEMO_FOLDER), "--output_dir", str(folder), "--config", str(recipe)]
    assert main(["sft", *named, "--dataset_name", "no-such-dataset"]) == 0

    assert "`--dataset_name` is ignored" in capsys.readouterr().err
    before, after = (load_file(path / "model.safetensors") for path in (DEMO_FOLDER, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    history = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_nll_bound" in entry for entry in history)
    assert "on few.jsonl, many.jsonl" in " ".join((folder / "README.md").read_text(encoding="utf-8").split())


def test_rows_of_another_type_are_explained(files, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "text.jsonl"
    other.write_text('{"text": "Ada Moss is shy"}\n', encoding="utf-8")
    named = ["--model_name_or_path", str(DEMO_FOLDER), "--output_dir", str(tmp_path / "tuned")]
    options = ["--use_cpu", "--bf16", "false", "--report_to", "none"]
    assert main(["sft", *named, *options, "--datasets", files[0], str(other)]) == 1
    assert "Row 10 of the train dataset: `prompt`" in capsys.readouterr().err
