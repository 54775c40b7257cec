"""Which folders SGLang would load, and what it is told to do with them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from golden import load_golden
from installed_wheel import ROOT
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llada2_moe
from tiny_tokenizer import build_tiny_tokenizer
from transformers import GenerationConfig

from llada import LLaDA2MoeConfig, LLaDA2MoeModelLM
from llada.export.sglang import SGLANG_VERSION, SGLangLaunch, prepare_sglang, published_tensors
from llada.generation import preset
from llada_cli import main


FLASH = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
}
BLOCK_ROUTING = {"expert_capacity": 4, "block_size": 32, "delete_token_id": 156930, "split_token_id": 156931}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is published, but small: the ids are the real ones."""
    folder = tmp_path_factory.mktemp("published")
    sizes = {"vocab_size": 157184, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"mask_token_id": 156895, "bos_token_id": None, "eos_token_id": 156892, "pad_token_id": 156892}
    torch.manual_seed(0)
    tiny_llada2_moe(head_dim=4, **sizes, **ids).bfloat16().save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    (folder / "configuration_llada2_moe.py").touch()
    edit(folder / "config.json", auto_map={"AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig"})
    preset("llada2.1-quality", eos_token_id=[156892, 156900]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "my model's folder"))


def edit(path: Path, **values) -> None:
    """Sets keys of a JSON file, and removes those that are None."""
    settings = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}), encoding="utf-8")


def rewrite(folder: Path, change) -> None:
    """Passes the tensors of a folder through a function."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})


def shard(folder: Path) -> list[Path]:
    """Splits the weights of a folder into several files."""
    LLaDA2MoeModelLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="3MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def problems(folder: Path, **arguments) -> str:
    with pytest.raises(ValueError, match=r"SGLang 0\.5\.23 would not serve .* correctly:\n- ") as error:
        prepare_sglang(folder, **arguments)
    return str(error.value).partition("\n- ")[2]


def notes(launch: SGLangLaunch) -> str:
    return "\n".join(launch.notes)


def run_printed(message: str) -> None:
    """Runs the Python code of the command in a message."""
    words = shlex.split(message[message.index("python -c ") :].partition("\n")[0])
    exec(words[2], {})


def test_published_tensors_are_those_of_the_releases() -> None:
    # arXiv 2512.15745 and the indices of the releases: 16,255,643,392 parameters, of which the biases are float32
    mini, flash = published_tensors(LLaDA2MoeConfig()), published_tensors(LLaDA2MoeConfig(**FLASH))
    assert (len(mini), len(flash)) == (14813, 24161)
    num_parameters = {"mini": 16_255_643_392, "flash": 102_889_705_216}
    for name, tensors in (("mini", mini), ("flash", flash)):
        assert sum(torch.Size(shape).numel() for shape in tensors.values()) == num_parameters[name]
    golden = load_golden("llada2_moe").folder
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(golden / "model.safetensors").items()}
    assert published_tensors(LLaDA2MoeConfig.from_pretrained(golden)) == stored


def test_a_published_folder(folder: Path) -> None:
    launch = prepare_sglang(folder)
    assert launch.command == [
        *("python", "-m", "sglang.launch_server", "--model-path", str(folder), "--trust-remote-code"),
        *("--tp-size", "1"),
        *("--dllm-algorithm", "JointThreshold", "--dllm-algorithm-config", "sglang.yaml"),
    ]
    assert launch.algorithm_config == {
        "threshold": 0.7,
        "block_size": 32,
        "edit_threshold": 0.5,
        "max_post_edit_steps": 16,
    }
    size = (folder / "model.safetensors").stat().st_size / 1e9
    assert launch.notes == [
        "Read off the sources of SGLang 0.5.23, and not run there.",
        f"{size:.1f} GB of weights over 1 GPU(s), and room for the cache of keys and values.",
        "One request at a time unless you add --max-running-requests.",
    ]
    # what the engine itself reads of it
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [156892, 156900]


def test_the_script_runs(folder: Path, tmp_path: Path) -> None:
    launch = prepare_sglang(folder, tp_size=2, algorithm_file="my settings.yaml")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    command = ["bash", "-eu", "-c", launch.script()]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == launch.command[1:]
    assert launch.command[launch.command.index("--tp-size") + 1] == "2"
    assert yaml.safe_load((tmp_path / "my settings.yaml").read_text()) == launch.algorithm_config


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "sglang", str(folder), "--preset", "llada2.1-speed", "--tp-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed == prepare_sglang(folder, preset="llada2.1-speed", tp_size=2).script() + "\n"
    assert main(["export", "sglang", str(folder / "nowhere")]) == 1
    assert "download it first" in capsys.readouterr().err


def test_the_documentation_is_of_the_same_release() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\d+\.\d+\.\d+", text)) == {SGLANG_VERSION}


class TestAlgorithm:
    def test_without_editing(self, folder: Path) -> None:
        preset("llada2", block_length=16, threshold=0.9, max_denoising_steps=16).save_pretrained(folder)
        launch = prepare_sglang(folder)
        assert "LowConfidence" in launch.command
        assert launch.algorithm_config == {"threshold": 0.9, "block_size": 16}
        assert "nothing like" not in notes(launch)
        assert "[156892] as the end of a text, and not 156900" in notes(launch)
        # the bias is what tells the releases apart
        assert "as in LLaDA2.1 and 2.2, but the settings edit no token" in notes(launch)

    def test_a_preset_goes_before_the_file(self, folder: Path) -> None:
        launch = prepare_sglang(folder, preset="llada2.1-speed")
        assert launch.algorithm_config == {
            "threshold": 0.5,
            "block_size": 32,
            "edit_threshold": 0.0,
            "max_post_edit_steps": 16,
        }
        # the ids stay those of the file
        assert "end of a text" not in notes(launch)
        with pytest.raises(ValueError, match="There is no preset 'speed'"):
            prepare_sglang(folder, preset="speed")

    @pytest.mark.parametrize("file", ["missing", "published"])
    def test_model_cards_fill_in(self, folder: Path, file: str) -> None:
        path = folder / "generation_config.json"
        path.unlink()
        if file == "published":
            path.write_text(json.dumps({"eos_token_id": [156892, 156900], "transformers_version": "5.2.0"}))
        launch = prepare_sglang(folder)
        assert launch.algorithm_config == {"threshold": 0.95, "block_size": 32}
        assert "No `threshold` in generation_config.json: settings of the model card, preset 'llada2'." in notes(
            launch
        )
        edit(folder / "config.json", **BLOCK_ROUTING)
        launch = prepare_sglang(folder)
        assert launch.algorithm_config == {
            "threshold": 0.5,
            "block_size": 32,
            "edit_threshold": 0.0,
            "max_post_edit_steps": 16,
        }
        assert "preset 'llada2.2'" in notes(launch)

    def test_insertions_and_deletions(self, folder: Path) -> None:
        edit(folder / "config.json", **BLOCK_ROUTING)
        launch = prepare_sglang(folder)
        assert "JointThresholdInDel" in launch.command
        assert launch.algorithm_config["edit_threshold"] == 0.5
        assert "on CUDA only" in notes(launch)
        # the control tokens must not be written where nothing is edited either
        DiffusionConfig = type(preset("llada2"))
        DiffusionConfig(threshold=0.6).save_pretrained(folder)
        launch = prepare_sglang(folder)
        assert "JointThresholdInDel" in launch.command
        assert launch.algorithm_config == {
            "threshold": 0.6,
            "block_size": 32,
            "edit_threshold": 1.0,
            "max_post_edit_steps": 16,
        }

    def test_what_cannot_be_carried_over_is_named(self, folder: Path) -> None:
        edit(folder / "generation_config.json", max_denoising_steps=8, do_sample=True, temperature=0.5)
        assert "nothing like `max_denoising_steps=8`, `do_sample=True`: it takes the likeliest" in notes(
            prepare_sglang(folder)
        )

    def test_blocks_are_those_of_the_experts(self, folder: Path) -> None:
        edit(folder / "config.json", **BLOCK_ROUTING)
        edit(folder / "generation_config.json", block_length=64)
        assert "`block_length=64`, but experts are chosen for blocks of 32" in problems(folder)


class TestConfig:
    def test_not_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="download it first: hf download inclusionAI/LLaDA2.1-mini --local-dir"):
            prepare_sglang("inclusionAI/LLaDA2.1-mini")
        with pytest.raises(ValueError, match="not a folder with a config.json"):
            prepare_sglang(tmp_path)

    @pytest.mark.parametrize("name", ["llada", "illada", "llada_moe"])
    def test_other_families(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"serves LLaDA2MoeModelLM only, .* docs/checkpoints\.md"):
            prepare_sglang(load_golden(name).folder)

    @pytest.mark.parametrize("architectures", [None, [], ["LLaDA2MoeModel"]])
    def test_wrong_architectures(self, folder: Path, architectures: list[str] | None) -> None:
        edit(folder / "config.json", architectures=architectures)
        with pytest.raises(ValueError, match="`architectures` in config.json begins with"):
            prepare_sglang(folder)

    def test_a_config_of_no_model(self, folder: Path) -> None:
        edit(folder / "config.json", score_function="softmax")
        with pytest.raises(ValueError, match=r"`score_function='softmax'` \(write 'sigmoid'\)"):
            prepare_sglang(folder)

    def test_every_problem_of_a_golden_folder(self) -> None:
        found = problems(load_golden("llada2_moe").folder).split("\n- ")
        assert [problem[:60] for problem in found] == [
            "config.json has an `auto_map` to configuration_llada2_moe.LL",
            "SGLang takes 156895 as the mask token of LLaDA2MoeModelLM, b",
            "tokenizer.json and tokenizer_config.json missing: AutoTokeni",
        ]

    def test_remote_code(self, folder: Path) -> None:
        edit(folder / "config.json", auto_map=None)
        found = problems(folder)
        assert "no `auto_map`" in found
        # what it says to write
        target = json.loads("{" + found.partition("Name it, `")[2].partition("`")[0] + "}")
        edit(folder / "config.json", **target)
        prepare_sglang(folder)
        edit(folder / "config.json", auto_map={"AutoConfig": "configuration_other.LLaDA2MoeConfig"})
        assert "an `auto_map` to configuration_other.LLaDA2MoeConfig, which is not there" in problems(folder)

    def test_another_mask_token(self, folder: Path) -> None:
        edit(folder / "config.json", mask_token_id=7)
        assert "`mask_token_id` 7 and `vocab_size` 157184" in problems(folder)

    @pytest.mark.parametrize("name", ["delete_token_id", "split_token_id"])
    def test_control_tokens(self, folder: Path, name: str) -> None:
        edit(folder / "config.json", **BLOCK_ROUTING | {name: None})
        assert "`delete_token_id` and `split_token_id` are missing" in problems(folder)

    @pytest.mark.parametrize("tp_size", [0, 3])
    def test_heads_are_shared_out(self, folder: Path, tp_size: int) -> None:
        assert f"`tp_size={tp_size}` does not divide the 2 attention heads" in problems(folder, tp_size=tp_size)

    def test_tokenizer(self, folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        assert "no chat template" in notes(prepare_sglang(folder))
        edit(folder / "tokenizer_config.json", chat_template="{{ messages }}")
        assert "no chat template" not in notes(prepare_sglang(folder))
        (folder / "tokenizer.json").unlink()
        assert problems(folder).startswith("tokenizer.json missing: AutoTokenizer")


class TestWeights:
    def test_shards(self, folder: Path) -> None:
        first, *others = shard(folder)
        assert others
        prepare_sglang(folder)
        first.write_bytes(first.read_bytes()[:-1])
        assert f"{first.name} is not a complete file" in problems(folder)
        first.unlink()
        # and nothing of the tensors that were in it
        assert problems(folder) == f"{first.name} is missing, which the index names: copy or download it again."

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "There is no model.safetensors" in problems(folder)
        (folder / "adapter_config.json").touch()
        assert "It holds an adapter" in problems(folder)
        assert "model.merge_and_unload()" in problems(folder)

    def test_names_in_memory(self, folder: Path) -> None:
        before = load_file(folder / "model.safetensors")
        model = LLaDA2MoeModelLM.from_pretrained(folder)
        model.save_pretrained(folder, save_original_format=False)
        found = problems(folder)
        assert "names they have in memory, which SGLang skips" in found
        run_printed(found)
        after = load_file(f"{folder}-published/model.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_merged_experts(self, folder: Path) -> None:
        before = load_file(folder / "model.safetensors")

        def merge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            experts = "model.layers.1.mlp.experts"
            for half in ("gate_proj", "up_proj", "down_proj"):
                parts = [tensors.pop(f"{experts}.{index}.{half}.weight") for index in range(8)]
                tensors[f"{experts}.{half}"] = torch.stack(parts)
            return tensors

        rewrite(folder, merge)
        text = notes(prepare_sglang(folder))
        assert "merged as dFactory trains them" in text
        run_printed(text)
        after = load_file(f"{folder}-published/model.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        rewrite(folder, lambda tensors: {k: v[:7] if v.ndim == 3 else v for k, v in tensors.items()})
        assert "3 tensors are missing: model.layers.1.mlp.experts.7.gate_proj.weight, " in problems(folder)

    def test_fused_experts(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: tensors | {"model.layers.1.mlp.w1": torch.zeros(8, 32, 8)})
        assert "fused as dInfer wants them" in problems(folder)

    def test_missing_wrong_and_unknown_tensors(self, folder: Path) -> None:
        fused = "model.layers.0.attention.query_key_value.weight"
        rewrite(folder, lambda tensors: tensors | {fused: tensors[fused][:-1]})
        assert problems(folder) == f"1 tensors do not fit config.json: {fused} is (15, 8) and not (16, 8)."
        rewrite(folder, lambda tensors: {"lm_head.bias": tensors.pop(fused)[0]} | tensors)
        assert problems(folder) == f"1 tensors are missing: {fused}."
        rewrite(folder, lambda tensors: tensors | {fused: torch.zeros(16, 8, dtype=torch.bfloat16)})
        assert "1 tensors belong to no LLaDA2, and SGLang skips them: lm_head.bias." in notes(prepare_sglang(folder))

    def test_a_tied_head_is_not_stored(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
        assert problems(folder) == "1 tensors are missing: lm_head.weight."
        edit(folder / "config.json", tie_word_embeddings=True)
        prepare_sglang(folder)

    def test_no_shared_expert(self, folder: Path) -> None:
        edit(folder / "config.json", num_shared_experts=0)
        assert "3 tensors belong to no LLaDA2" in notes(prepare_sglang(folder))

    def test_rounded_biases(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: {k: v.bfloat16() for k, v in tensors.items()})
        assert "biases of the routers are BF16, and F32 in LLaDA2.1 and 2.2 as published" in notes(
            prepare_sglang(folder)
        )
        # LLaDA2.0 is published so
        preset("llada2").save_pretrained(folder)
        assert "biases" not in notes(prepare_sglang(folder))

    def test_weights_in_float32(self, folder: Path) -> None:
        rewrite(folder, lambda tensors: {k: v.float() for k, v in tensors.items()})
        launch = prepare_sglang(folder)
        assert launch.command[launch.command.index("--dtype") + 1] == "bfloat16"
        assert "The weights are F32, the releases BF16" in notes(launch)

    def test_names_stay_in_their_comment(self, folder: Path, tmp_path: Path) -> None:
        name = "x\ntouch run_by_the_shell\n\033]0;title\007"
        rewrite(folder, lambda tensors: tensors | {name: torch.zeros(1, dtype=torch.bfloat16)})
        script = prepare_sglang(folder).script()

        assert r"skips them: x\ntouch run_by_the_shell\n\x1b]0;title\x07." in script
        assert "touch run" not in [line[:9] for line in script.splitlines()]
        fused = "model.layers.0.attention.query_key_value.weight"
        index = {"weight_map": {fused: "model\n- all is well.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        assert (
            problems(folder)
            == r"model\n- all is well.safetensors is missing, which the index names: copy or download it again."
        )
