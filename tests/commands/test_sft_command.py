"""Fine-tuning from the command line."""

import json
import math
from pathlib import Path

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from llada import LLaDASFTTrainer
from llada_cli import main


ROWS = [{"prompt": f"Who is {name}?\n", "completion": "Foxholt's shy baker"} for name in ("Ada Moss", "Ivo Vale")]
OPTIONS = ["--max_steps", "2", "--learning_rate", "0.01", "--warmup_steps", "0", "--use_cpu", "--bf16", "false"]
OPTIONS += ["--report_to", "none", "--disable_tqdm", "true", "--dataloader_pin_memory", "false"]
OPTIONS += ["--activation_checkpointing", "false", "--mask_sampling", "exact"]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(tmp_path: Path, dataset: str):
    def sft(*options: str) -> Path:
        folder = tmp_path / "tuned"
        named = ["--model_name_or_path", str(DEMO_FOLDER), "--dataset_name", dataset, "--output_dir", str(folder)]
        assert main(["sft", *named, *OPTIONS, *options]) == 0
        return folder

    return sft


def test_a_model_is_trained_and_saved(run) -> None:
    folder = run("--eval_strategy", "steps", "--eval_steps", "1", "--dataset_test_split", "train")

    before, after = load_file(DEMO_FOLDER / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)
    assert "| trainer | LLaDASFTTrainer |\n| steps | 2 |" in (folder / "README.md").read_text(encoding="utf-8")
    history = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_nll_bound" in entry] == [1, 2]


def test_an_adapter_is_trained_and_saved(run) -> None:
    folder = run("--use_peft", "--lora_r", "2")

    adapter = load_file(folder / "adapter_model.safetensors")
    assert {weight.shape[0] for name, weight in adapter.items() if "lora_A" in name} == {2}
    assert hasattr(AutoModelForMaskedLM.from_pretrained(folder), "infill")


def test_options_may_come_from_a_file(run, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("max_steps: 3\neos_fill: fixed\neos_fill_length: 4\ndtype: bfloat16\n", encoding="utf-8")
    folder = run("--config", str(config))

    args = torch.load(folder / "training_args.bin", weights_only=False)
    # the command line goes before the file
    assert (args.eos_fill, args.eos_fill_length, args.max_steps) == ("fixed", 4, 2)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("config", "message"),
    [("eos_fil: fixed\n", "Unknown arguments from config file"), ("- 1\n", "must contain a YAML mapping")],
    ids=["unknown", "no-mapping"],
)
def test_wrong_files_are_explained(config: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(config, encoding="utf-8")

    assert main(["sft", "--config", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_of_files_is_a_dataset(tmp_path: Path, dataset: str, run) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Path(dataset).rename(folder / "train.jsonl")

    assert (run("--dataset_name", str(folder)) / "model.safetensors").exists()


def test_a_missing_dataset_is_explained(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    named = ["--model_name_or_path", str(DEMO_FOLDER), "--dataset_name", str(tmp_path / "none.jsonl")]
    assert main(["sft", *named, *OPTIONS, "--output_dir", str(tmp_path / "tuned")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_pushing_goes_to_the_hub(hub, run) -> None:
    run("--push_to_hub", "--hub_model_id", "ada/tuned", "--save_strategy", "no")

    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repos["ada/tuned"].files)


# transformers reads the config.json of a checkpoint without knowing its class
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_a_run_goes_on_from_its_newest_complete_checkpoint(run, dataset: str, capsys: pytest.CaptureFixture) -> None:
    steps = ("--max_steps", "4", "--save_steps", "2", "--save_strategy", "steps", "--logging_steps", "1")
    folder = run(*steps)
    weights = load_file(folder / "model.safetensors")
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    run(*steps, "--resume_from_checkpoint", "true")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(folder / "model.safetensors").items())

    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    named = ["--model_name_or_path", str(DEMO_FOLDER), "--dataset_name", dataset, "--output_dir", str(folder)]
    resume = ["--resume_from_checkpoint", str(folder / "checkpoint-4")]
    capsys.readouterr()
    assert main(["sft", *named, *OPTIONS, *steps, *resume]) == 1
    assert "checkpoint-4 is not complete: optimizer.pt is missing" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["interrupted", "spoilt"])
def test_a_run_that_ends_early_says_how_to_go_on(
    ending: str, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = LLaDASFTTrainer.compute_loss

    def spoil(self, model, *args, **kwargs):
        if self.state.global_step == 2 and ending == "interrupted":
            raise KeyboardInterrupt
        if self.state.global_step == 2:
            model.lm_head.weight.data.fill_(math.nan)
        return compute_loss(self, model, *args, **kwargs)

    monkeypatch.setattr(LLaDASFTTrainer, "compute_loss", spoil)
    folder = tmp_path / "tuned"
    named = ["--model_name_or_path", str(DEMO_FOLDER), "--dataset_name", dataset, "--output_dir", str(folder)]
    steps = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "1"]
    assert main(["sft", *named, *OPTIONS, *steps]) == (130 if ending == "interrupted" else 1)
    error = capsys.readouterr().err
    if ending == "interrupted":
        assert "Interrupted after step 2 of 4." in error and "`--resume_from_checkpoint true`" in error
    else:
        assert "The loss of step 3 is not finite" in error
        assert f"--learning_rate 0.0025 --resume_from_checkpoint {folder / 'checkpoint-2'}" in error
