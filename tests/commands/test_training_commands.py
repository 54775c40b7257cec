"""What the commands that train have in common, and pre-training."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from demo_checkpoint import DEMO_FOLDER
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainingArguments
from trl import ScriptArguments

import llada_cli
from llada_cli import main
from llada_cli.training import read_object
from llada_cli.training_data import load_datasets


DEMO = str(DEMO_FOLDER)
OPTIONS = ["--max_steps", "2", "--learning_rate", "0.01", "--warmup_steps", "0", "--use_cpu", "--bf16", "false"]
OPTIONS += ["--report_to", "none", "--disable_tqdm", "true", "--dataloader_pin_memory", "false"]
SIZES = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
TEXT = "Ada Moss is Foxholt's shy baker. Ivo Vale is Foxholt's bold miller. "
COMMANDS = ["distill", "pretrain", "sft"]

pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.fixture
def books(tmp_path: Path) -> str:
    """A folder of two text files, one in a folder of its own."""
    folder = tmp_path / "books"
    (folder / "old").mkdir(parents=True)
    (folder / "new.txt").write_text(TEXT * 3, encoding="utf-8")
    (folder / "old" / "first.txt").write_text(f"{TEXT}\n\n{TEXT}", encoding="utf-8")
    return str(folder)


@pytest.fixture
def train(tmp_path: Path, books: str):
    """Runs a command that trains; returns the folder that it wrote."""

    def run(command: str, *options: str, status: int = 0) -> Path:
        folder = tmp_path / "trained"
        shared = ["--dataset_name", books, "--output_dir", str(folder), *OPTIONS]
        shared += ["--sequence_length", "8"] if command == "pretrain" else []
        if command == "distill":
            (tmp_path / "prompts.jsonl").write_text('{"prompt": "Who is Ada Moss?\\n"}\n', encoding="utf-8")
            shared += ["--dataset_name", str(tmp_path / "prompts.jsonl")]
        assert main([command, *shared, *options]) == status
        return folder

    return run


def _sections(command: str, capsys: pytest.CaptureFixture) -> dict[str, set[str]]:
    """The options of every group of the help, in their order."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    parts = re.split(r"^(\S.*):\n(?=  -)", capsys.readouterr().out, flags=re.MULTILINE)
    names = [set(re.findall(r"^  (?:-h, )?--(\S+)", part, re.MULTILINE)) for part in parts[2::2]]
    return dict(zip(parts[1::2], names, strict=True))


def test_help_is_grouped_with_ours_last(capsys: pytest.CaptureFixture) -> None:
    sft = _sections("sft", capsys)
    assert list(sft) == [
        "options",
        "dataset",
        "dataset mixture",
        "model and adapter",
        "training",
        "training with trl",
        "masked diffusion",
    ]
    assert sft["options"] == {"help", "config", "traceback"}
    assert {"dataset_name", "dataset_streaming"} <= sft["dataset"]
    assert sft["dataset mixture"] == {"datasets", "streaming", "test_split_size"}
    assert {"model_revision", "use_peft"} <= sft["model and adapter"]
    assert {"learning_rate", "output_dir", "resume_from_checkpoint"} <= sft["training"]
    assert {"max_length", "assistant_only_loss"} <= sft["training with trl"]
    assert {"mask_sampling", "eos_fill", "loss_weighting"} <= sft["masked diffusion"]

    pretrain = _sections("pretrain", capsys)
    assert list(pretrain)[1] == "new model" and list(pretrain)[-1] == "masked diffusion"
    assert {"config_name", "hidden_size"} <= pretrain["new model"]
    assert {"mask_sampling", "sequence_length"} <= pretrain["masked diffusion"]
    assert "learning_rate" in pretrain["training"] and "training with trl" not in pretrain
    # of two spellings one is shown
    assert not any("-" in name for names in (*sft.values(), *pretrain.values()) for name in names)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_revision_reaches_model_and_tokenizer(command: str, train, hub) -> None:
    hub.add_folder("ada/demo", DEMO_FOLDER)
    repo = hub.repos["ada/demo"]
    repo.commit("old", repo.files, "what there was")
    repo.commit("main", {"config.json": repo.files["config.json"]}, "neither weights nor a tokenizer are left")

    named = ["--model_name_or_path", "ada/demo", "--model_revision", "old"]
    assert load_file(train(command, *named) / "model.safetensors").keys()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none-7", "The checkpoint none-7 is not complete: there is no such folder"),
        ("true", "There is no complete checkpoint in"),
    ],
    ids=["path", "newest"],
)
def test_the_checkpoint_reaches_the_run(
    command: str, value: str, message: str, train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    resume = ["--resume_from_checkpoint", value]
    train(command, "--model_name_or_path", DEMO, *resume, status=1)
    assert message in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {DEMO}\nresume_from_checkpoint: {value}\n", encoding="utf-8")
    train(command, f"--config={recipe}", status=1)
    assert message in capsys.readouterr().err


def test_a_new_model_is_made_for_the_tokenizer(train) -> None:
    folder = train("pretrain", *SIZES, "--tokenizer_name", DEMO, "--eval_strategy", "steps", "--eval_steps", "2",
                   "--dataset_test_split", "train")  # fmt: skip

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert (config.hidden_size, config.intermediate_size, config.max_position_embeddings) == (16, 48, 8)
    assert (config.vocab_size, config.mask_token_id) == (len(tokenizer), tokenizer.mask_token_id)
    assert (config.eos_token_id, config.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert "| trainer | LLaDAPreTrainer |\n| steps | 2 |" in (folder / "README.md").read_text(encoding="utf-8")
    history = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_nll_bound" in entry] == [2]
    # its weights depend on the seed, and on nothing else
    first = load_file(folder / "model.safetensors")
    again = load_file(train("pretrain", *SIZES, "--tokenizer_name", DEMO) / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_tokenizer_without_a_mask_token_gets_one(train, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    vocabulary = tokenizer.get_vocab()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = train("pretrain", *SIZES, "--tokenizer_name", str(tmp_path / "tokenizer"))

    # it has a token of this name, which only needs to be declared
    assert AutoTokenizer.from_pretrained(folder).mask_token == "<|mdm_mask|>"
    mask_token_id = AutoModelForMaskedLM.from_pretrained(folder).config.mask_token_id
    assert mask_token_id == vocabulary["<|mdm_mask|>"]


def test_a_new_model_may_be_like_another(train) -> None:
    file = str(DEMO_FOLDER / "config.json")
    folder = train("pretrain", "--config_name", file, "--num_hidden_layers", "1", "--tokenizer_name", DEMO,
                   "--dtype", "auto")  # fmt: skip
    old, new = (json.loads((path / "config.json").read_text()) for path in (DEMO_FOLDER, folder))
    assert {name for name in old if old[name] != new.get(name)} <= {"n_layers", "transformers_version", "use_cache"}
    assert new["n_layers"] == 1

    # the tokenizer is that of the folder
    assert (train("pretrain", "--config_name", DEMO) / "tokenizer.json").exists()


def test_text_needs_a_tokenizer_and_ids_need_none(train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    named = ["--config_name", str(DEMO_FOLDER / "config.json")]
    train("pretrain", *named, status=1)
    assert "on the command line `--tokenizer_name`" in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"input_ids": [5, 6, 7, 8] * 4}) for _ in range(2)), encoding="utf-8")
    assert (train("pretrain", *named, "--dataset_name", str(rows)) / "model.safetensors").exists()


def test_a_text_file_is_one_document(train, books: str, tmp_path: Path) -> None:
    """A blank line inside ends nothing, and files of sub-folders are read."""
    script, config = ScriptArguments(books), TrainingArguments(report_to="none")
    assert sorted(load_datasets(script, config)[0]["text"]) == sorted([f"{TEXT}\n\n{TEXT}", TEXT * 3])
    script.dataset_name = f"{books}/new.txt"
    assert load_datasets(script, config)[0]["text"] == [TEXT * 3]


def test_a_model_is_trained_further_and_taken_up_again(train) -> None:
    named = ["--model_name_or_path", DEMO, "--dataset_streaming", "true", "--save_steps", "1"]
    folder = train("pretrain", *named)
    before, after = (load_file(path / "model.safetensors") for path in (DEMO_FOLDER, folder))
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)

    resumed = train("pretrain", *named, "--resume_from_checkpoint", str(folder / "checkpoint-1"))
    assert all(torch.equal(after[name], value) for name, value in load_file(resumed / "model.safetensors").items())


def test_pre_training_of_an_adapter(train) -> None:
    adapter = load_file(train("pretrain", "--model_name_or_path", DEMO, "--use_peft", "--lora_r", "2")
                        / "adapter_model.safetensors")  # fmt: skip
    assert {weight.shape[0] for name, weight in adapter.items() if "lora_A" in name} == {2}
    assert {name.split(".")[-3] for name in adapter} == {
        *(f"{part}_proj" for part in "qkvo"),
        *(f"{part}_proj" for part in ("gate", "up", "down")),
    }


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("ddp", "MULTI_GPU", {}),
        ("fsdp2", "FSDP", {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}),
        ("zero3", "DEEPSPEED", {"zero_stage": 3, "zero3_save_16bit_model": True}),
    ],
)
def test_accelerate_reads_the_configurations(name: str, kind: str, settings: dict) -> None:
    """It refuses keys that it does not know. `tests/trainers/test_data_parallel.py` trains with that of FSDP2."""
    path = Path(llada_cli.__file__).parent / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.distributed_type.value, config.mixed_precision) == (kind, "bf16")
    assert settings.items() <= {**config.fsdp_config, **config.deepspeed_config}.items()


def test_a_teacher_answers_prompts_and_a_student_is_trained_on_it(train, tmp_path: Path) -> None:
    recipe = tmp_path / "distill.yaml"
    recipe.write_text("block_lengths: [2, 4]\ngeneration_kwargs:\n  max_denoising_steps: 2\n", encoding="utf-8")
    folder = train("distill", "--model_name_or_path", DEMO, "--config", str(recipe))
    (row,) = map(json.loads, (folder / "trajectories.jsonl").read_text(encoding="utf-8").splitlines())
    assert max(row["step_of"]) == 1
    before, after = (load_file(path / "model.safetensors") for path in (DEMO_FOLDER, folder))
    assert any((before[name] != after[name]).any() for name in before)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| trainer | LLaDADistillTrainer |" in card and "in one block of 2 then 4 tokens" in card

    # its own file is data, too: no teacher is asked, not even one that does not exist
    traces = ["--dataset_name", str(folder / "trajectories.jsonl"), "--teacher_model_name_or_path", "no-such-model"]
    again = load_file(train("distill", "--model_name_or_path", DEMO, "--block_lengths", "2", "4", *traces)
                      / "model.safetensors")  # fmt: skip
    assert all(torch.equal(after[name], again[name]) for name in after)
    # to answer prompts it would have to be there
    train("distill", "--model_name_or_path", DEMO, *traces[2:], status=1)


def test_preferences_are_learnt(train, tmp_path: Path) -> None:
    rows = [{"prompt": "Who is Ada Moss?\n", "chosen": "Foxholt's shy baker", "rejected": "Foxholt's bold miller"}] * 4
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    folder = train("dpo", "--model_name_or_path", DEMO, "--dataset_name", str(pairs), "--num_draws", "2",
                   "--save_steps", "2", "--logging_steps", "1")  # fmt: skip

    assert load_file(folder / "model.safetensors").keys() == load_file(DEMO_FOLDER / "model.safetensors").keys()
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    first, second = (entry for entry in state["log_history"] if "loss" in entry)
    assert first["rewards/margins"] == 0 < second["rewards/margins"]


def test_preferences_need_a_model(train, capsys: pytest.CaptureFixture) -> None:
    train("dpo", status=1)
    assert "What is trained? Write `--model_name_or_path`" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["[1]", "{", '"text"', [1]])
def test_an_option_that_is_no_object_is_refused(given) -> None:
    with pytest.raises(ValueError, match=r"is no JSON object. Write one, such as '\{\"size\": 1000\}'"):
        read_object("reasoning_gym_kwargs", given, '{"size": 1000}')
    assert read_object("name", '{"a": [1]}', "{}") == read_object("name", {"a": [1]}, "{}") == {"a": [1]}
    assert read_object("name", None, "{}") == {}
