"""The README that a model gets on the Hub."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from golden import Golden, load_golden
from hub_standin import Hub, card_data
from huggingface_hub import ModelCard
from markdown_code import python_blocks, run_blocks
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from llada import LLaDAModelLM
from llada.export.model_card import create_model_card


@pytest.fixture
def model(golden_llada: Golden) -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(golden_llada.folder)


def card_of(hub: Hub, repo_id: str) -> str:
    return hub.repos[repo_id].files["README.md"].decode()


def test_card_says_what_the_model_is(model: LLaDAModelLM) -> None:
    model.add_model_tags(["biology"])
    card = create_model_card(
        model,
        "ada/leaf",
        base_model="GSAI-ML/LLaDA-8B-Base",
        dataset_name="ada/leaves",
        tags=["sft"],
        training={"steps": 70, "peak learning rate": 2.5e-5},
    )

    assert yaml.safe_load(card.data.to_yaml()) == {
        "base_model": "GSAI-ML/LLaDA-8B-Base",
        "datasets": "ada/leaves",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["biology", "llada", "masked-diffusion", "sft"],
    }
    first, *_ = card.text.split("## How to run it")
    expected = f"""
        # leaf

        A masked diffusion language model of the [LLaDA](https://arxiv.org/abs/2502.09992) family, trained from
        [GSAI-ML/LLaDA-8B-Base](https://huggingface.co/GSAI-ML/LLaDA-8B-Base) on ada/leaves.
        It does not write from left to right: it starts from masks and replaces them in any order, each choice seeing
        the text on both of its sides. So it can continue a prompt and fill in gaps in the middle of a text alike.

        {model.num_parameters():,} parameters, 3 layers of width 64, at most 512 positions, mask token id 300.
    """
    assert first.split() == expected.split()
    assert "| steps | 70 |\n| peak learning rate | 2.5e-05 |\n" in card.text
    assert '"ada/leaf"' in card.text


def test_card_says_nothing_it_does_not_know(model: LLaDAModelLM) -> None:
    # loaded from a folder, trained on something that is not on the Hub
    card = create_model_card(model, "ada/leaf", dataset_name="my notes")

    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "on my notes." in card.text
    assert "trained from" not in card.text and "How it was trained" not in card.text
    assert "None" not in card.content and "More Information Needed" not in card.content


def test_card_names_the_family(golden_illada: Golden) -> None:
    card = create_model_card(AutoModelForMaskedLM.from_pretrained(golden_illada.folder), "ada/leaf")

    assert "[iLLaDA](https://arxiv.org/abs/2606.25331) family." in card.text
    assert "mask token id 5." in card.text


@pytest.mark.parametrize(
    ("name", "family", "writes"),
    [
        (
            "llada_moe",
            "[LLaDA-MoE](https://arxiv.org/abs/2509.24389)",
            "It does not write from left to right: it starts",
        ),
        ("llada2_moe", "[LLaDA2](https://arxiv.org/abs/2512.15745)", "It writes one block of tokens after the other."),
    ],
)
def test_card_of_a_model_with_experts(
    hub: Hub, tiny_tokenizer: PreTrainedTokenizerFast, name: str, family: str, writes: str
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(load_golden(name).folder, mask_token_id=300, eos_token_id=299)
    model.push_to_hub("ada/tiny")
    tiny_tokenizer.push_to_hub("ada/tiny")

    card = card_of(hub, "ada/tiny")
    assert f"A masked diffusion language model of the {family} family." in card
    assert f"\n{writes}" in card
    number, chosen = (8, 3) if name == "llada_moe" else (16, 4)
    assert f"parameters, {number} experts per layer of which a token sees {chosen}, 3 layers of width 64" in card
    names, printed = run_blocks(card, "card")
    assert type(names["model"]) is type(model)
    assert names["sequences"].shape[1] > len("The capital of France is")
    assert " of France is Paris." in printed


def test_code_of_a_pushed_card_runs(hub: Hub, model: LLaDAModelLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model.push_to_hub("ada/tiny")
    tiny_tokenizer.push_to_hub("ada/tiny")

    assert len(python_blocks(card_of(hub, "ada/tiny"))) == 2
    names, printed = run_blocks(card_of(hub, "ada/tiny"), "card")
    assert "ada/tiny/model.safetensors" in hub.downloads
    assert type(names["model"]) is LLaDAModelLM
    assert names["sequences"].shape == (1, len("The capital of France is") + 32)
    assert printed.startswith("The capital of France is")
    assert " of France is Paris." in printed


def test_base_model_is_where_the_model_came_from(hub: Hub, model: LLaDAModelLM) -> None:
    model.push_to_hub("ada/base")
    pulled = AutoModelForMaskedLM.from_pretrained("ada/base")
    pulled.push_to_hub("ada/base")
    pulled.push_to_hub("ada/child")

    assert "base_model" not in card_data(card_of(hub, "ada/base"))
    assert card_data(card_of(hub, "ada/child"))["base_model"] == "ada/base"


def test_cards_that_people_wrote_stay(hub: Hub, model: LLaDAModelLM) -> None:
    written = "---\ntags:\n- mine\n---\n\n# All about my model\n"
    ModelCard(written).push_to_hub(hub.create_repo("ada", "mine")["id"])
    model.push_to_hub("ada/mine", tags=["new"])

    assert "# All about my model" in card_of(hub, "ada/mine")
    assert card_data(card_of(hub, "ada/mine")) == {"tags": ["mine", "new"]}


def test_placeholder_of_the_tokenizer_is_replaced(
    hub: Hub, model: LLaDAModelLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_tokenizer.push_to_hub("ada/tiny", tags=["kept"])
    assert "Model Card for Model ID" in card_of(hub, "ada/tiny")
    model.push_to_hub("ada/tiny")

    assert "Model Card for Model ID" not in card_of(hub, "ada/tiny")
    assert card_data(card_of(hub, "ada/tiny"))["tags"] == ["kept", "llada", "masked-diffusion"]


def test_push_is_one_commit(hub: Hub, model: LLaDAModelLM) -> None:
    model.push_to_hub("ada/tiny")

    assert hub.repos["ada/tiny"].messages == ["initial commit", "Upload model"]


def test_adapter_has_a_card_too(hub: Hub, model: LLaDAModelLM, tmp_path: Path) -> None:
    model.push_to_hub("ada/base")
    base = AutoModelForMaskedLM.from_pretrained("ada/base")
    adapter = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    # as the documentation of `create_model_card` says
    create_model_card(adapter, "ada/adapter").push_to_hub(hub.create_repo("ada", "adapter")["id"])
    adapter.push_to_hub("ada/adapter")

    data = card_data(card_of(hub, "ada/adapter"))
    assert data["library_name"] == "peft"
    assert data["base_model"] == "ada/base"
    assert {"llada", "masked-diffusion"} <= set(data["tags"])
    card = card_of(hub, "ada/adapter")
    assert "A PEFT adapter for a masked diffusion language model" in card
    assert 'pip install ".[train]"' in card
    # its count would be the base model's
    assert "parameters" not in card


@pytest.mark.usefixtures("adapters_inside")
def test_adapter_inside_the_model_has_a_card_too(hub: Hub, model: LLaDAModelLM) -> None:
    model.push_to_hub("ada/base")
    model = AutoModelForMaskedLM.from_pretrained("ada/base")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
    model.push_to_hub("ada/adapter")

    assert "adapter_model.safetensors" in hub.repos["ada/adapter"].files
    assert "A PEFT adapter for a masked diffusion language model" in card_of(hub, "ada/adapter")


def test_names_are_only_names(model: LLaDAModelLM) -> None:
    name = 'leaf"); import os; os.abort(("\n---\n# x\033[2J\u202e<img src=x>|[a](b)'
    card = create_model_card(model, name, dataset_name=name, tags=["a: b\n- c"], training={name: name}, prompt=name)

    for block in python_blocks(card.content):
        tree = ast.parse(block)
        assert not any(isinstance(node, ast.Import) and node.names[0].name == "os" for node in ast.walk(tree))
    first = ast.parse(python_blocks(card.content)[0])
    assert [node.value for node in ast.walk(first) if isinstance(node, ast.Constant)].count(name) == 3
    assert all(char.isprintable() or char == "\n" for char in card.content)
    prose = re.sub("^```.*?^```$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"\\<img src=x\\>\\\|\\\[a\\\]", prose)) == prose.count("<img") == 4
    assert set(card.data.tags) == {r"a: b\n- c", "llada", "masked-diffusion"}
    assert len(re.findall("^# ", prose, re.MULTILINE)) == 1
    (row,) = re.findall(r"^\| leaf.*$", prose, re.MULTILINE)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_tags_cannot_reorder_the_metadata(model: LLaDAModelLM) -> None:
    card = create_model_card(model, "ada/leaf", tags=["left\u202eright\u2066", "a: b\n- c"])

    assert "\u202e" not in card.content and "\u2066" not in card.content
    assert {r"left\u202eright\u2066", r"a: b\n- c"} < set(card.data.tags)


@pytest.mark.parametrize("place", ["absolute", "relative", "nested", "home"])
def test_paths_of_this_machine_stay_here(
    model: LLaDAModelLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    secret = tmp_path / "home" / "ada" / "secret-project"
    secret.mkdir(parents=True)
    (secret / "rows.jsonl").touch()
    monkeypatch.chdir(secret.parent)
    monkeypatch.setenv("HOME", str(secret.parent))
    folder = {
        "absolute": str(secret),
        "relative": "secret-project",
        "nested": "gone/by/secret-project",
        "home": "~/secret-project",
    }[place]
    parts = {"base_model": folder, "dataset_name": f"{folder}/rows.jsonl"}
    card = create_model_card(model, f"{folder}/leaf", **parts)

    assert "on rows.jsonl." in card.text
    assert 'from_pretrained("leaf")' in card.text or place == "relative"
    assert str(tmp_path) not in card.content and "~" not in card.content and "gone" not in card.content
    assert "base_model" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
