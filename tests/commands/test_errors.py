"""What a user can cause ends in one line that says what, and what to do."""

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER, load_demo
from installed_wheel import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llada_cli import main
from llada_cli.errors import explain


DEMO = str(DEMO_FOLDER)
MODEL, TOKENIZER, FACTS = load_demo()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "model"))


def complaint(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The only line on standard error of a command that fails."""
    capsys.readouterr()
    assert main([*arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def break_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def break_shapes(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, path, {"format": "pt"})


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ', encoding="utf-8")


def remove_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llada",', encoding="utf-8")


def break_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}}', encoding="utf-8")


def cut_index(folder: Path) -> None:
    break_index(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {', encoding="utf-8")


def lose_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".blocks.1." not in name}
    save_file(tensors, path, {"format": "pt"})


def remove_config(folder: Path) -> None:
    (folder / "config.json").rename(folder / "config.txt")


def nest(folder: Path) -> None:
    inside = [path for path in folder.iterdir()]
    (folder / "checkpoint-8").mkdir()
    for path in inside:
        path.rename(folder / "checkpoint-8" / path.name)


def put_a_causal_model(folder: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), **sizes)).save_pretrained(folder)


def put_another_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens([f"Who{number}" for number in range(400)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "its weights are incomplete or no safetensors file"),
        (break_shapes, "download or save the checkpoint again"),
        (break_tokenizer, "Cannot load the tokenizer of"),
        (remove_tokenizer, "Cannot load the tokenizer of"),
        (break_config, "valid JSON"),
        (break_index, "one of its JSON files is damaged (KeyError: 'weight_map'); copy or download it again."),
        (cut_index, "one of its JSON files is damaged (JSONDecodeError: Expecting property name"),
        (lose_a_layer, "of the 21 tensors of a LLaDAModelLM: `model.layers.1.input_layernorm.weight`"),
        (remove_config, "has no config.json, so it holds no model."),
        (nest, "has no config.json, so it holds no model: name one of checkpoint-8 in it."),
        (
            put_a_causal_model,
            "is a `llama` model, not a masked diffusion model; name a checkpoint of the LLaDA family.",
        ),
        (put_another_tokenizer, "it was trained with another tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_checkpoint(folder: Path, capsys: pytest.CaptureFixture, damage, message: str) -> None:
    damage(folder)
    assert message in complaint(capsys, "generate", str(folder), "Who399")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("modle", "There is no folder 'modle'. Did you mean 'model'?"),
        ("./nothing/here", "There is no folder './nothing/here'. Name a folder with a model in it, or a repository"),
        ("model/config.json", "'model/config.json' is a file; name the folder of a model."),
        ("a\033]0;title\007b", r"There is no folder 'a\x1b]0;title\x07b'."),
    ],
    ids=["typo", "path", "file", "escape"],
)
def test_a_mistyped_folder_is_told_before_the_hub_is_asked(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    loaded = []
    monkeypatch.setattr("llada_cli.sampling.load_checkpoint", loaded.append)
    monkeypatch.chdir(folder.parent)
    assert complaint(capsys, "generate", name, "Who").startswith(f"llada generate: {message}")
    assert not loaded


def test_the_hub_is_asked_for_what_may_be_there(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, hub
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    parent = folder.parent.name
    assert main(["generate", f"{parent}/modle", "Who"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"There is no folder '{parent}/modle'. Did you mean '{parent}/model'? Asking the Hub."
    assert second.startswith(f"llada generate: Cannot load {parent}/modle: ")


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("cuda", "`--device-map cuda`: this machine has only a CPU; write `--device-map auto`, or leave it out."),
        ("gpu", "`--device-map gpu` is neither a device nor one of auto, balanced"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture, device_map: str, message: str) -> None:
    assert message in complaint(capsys, "generate", DEMO, "Who", "--device-map", device_map)


def test_text_that_is_no_utf8(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert r"'Gr\udcf6\udcdfe' is no UTF-8" in complaint(capsys, "generate", DEMO, "Gr\udcf6\udcdfe")
    for command in (["generate", DEMO, "-"], ["chat", DEMO]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Größe?".encode("latin1")), encoding="ascii"))
        assert "it is no UTF-8; convert it, e.g. with `iconv" in complaint(capsys, *command)


def test_a_full_disk(capsys: pytest.CaptureFixture) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")
    assert explain(full).endswith("'out/model.safetensors': free some space, or write to another disk.")
    if not Path("/dev/full").exists():
        pytest.skip("there is no disk that is always full")
    with open("/dev/full", "w", encoding="utf-8") as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert main(["generate", DEMO, "Who"]) == 1
    assert "free some space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "ask for fewer tokens at a time"),
        (MemoryError(), "Out of memory"),
        (ImportError("pip install 'llada[train]'"), "pip install 'llada[train]'"),
        (KeyError("q_proj"), "KeyError: 'q_proj' (--traceback shows where it came up)"),
        (ValueError("tensor \033]0;x\007\u202e\nis missing"), "tensor  ]0;x   is missing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_any_error_is_one_line_for_a_terminal(error: Exception, message: str) -> None:
    assert message in explain(error)
    assert all(char.isprintable() for char in explain(error))


def test_a_traceback_on_request(folder: Path) -> None:
    break_weights(folder)
    with pytest.raises(ValueError, match="its weights are incomplete") as error:
        main(["generate", str(folder), "Who", "--traceback"])
    assert type(error.value.__cause__).__name__ == "SafetensorError"


def test_nothing_a_model_writes_is_obeyed(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its words are escape sequences now
    path = folder / "tokenizer.json"
    words = FACTS.held_out[0].name.split()
    evil = {word: f"\033[31m{word}\007\u202e\x9b" for word in words}
    settings = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = settings["model"]["vocab"]
    settings["model"]["vocab"] = {evil.get(word, word): index for word, index in vocabulary.items()}
    path.write_text(json.dumps(settings), encoding="utf-8")
    question = FACTS.held_out[0].reverse[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\n"))
    for command in (
        ["generate", str(folder), "--chat", question],
        ["infill", str(folder), f"___2 is {FACTS.held_out[0].description}"],
        ["chat", str(folder)],
    ):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
        assert all(char.isprintable() for char in printed.rstrip("\n"))


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m llada generate {DEMO} Who | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_names_of_tensors_in_reports_are_not_obeyed(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"x\033]0;title\007\u202e": torch.zeros(1)}, path, {"format": "pt"})
    command = [sys.executable, "-m", "llada", "generate", str(folder), "Who"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0
    assert "x ]0;title  " in result.stderr
    assert "\033]" not in result.stderr and "\007" not in result.stderr and "\u202e" not in result.stderr
