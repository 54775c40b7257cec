"""Pushing to a hub and loading from it by repository id, through the real huggingface_hub client."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from golden import Golden, rounding
from hub_standin import Hub, card_data
from huggingface_hub.errors import HfHubHTTPError
from markdown_code import run_blocks
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from llada import DiffusionGenerationConfig, LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer


INPUT_IDS = torch.tensor([[40, 41, 300, 300, 42, 43]])


@pytest.fixture
def model(golden_llada: Golden) -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(golden_llada.folder).eval()


@pytest.fixture
def pushed(hub: Hub, model: LLaDAModelLM, tiny_tokenizer: PreTrainedTokenizerFast) -> str:
    """The id of a repository with a model and its tokenizer."""
    model.push_to_hub("ada/tiny-llada")
    tiny_tokenizer.push_to_hub("ada/tiny-llada")
    return "ada/tiny-llada"


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=INPUT_IDS).logits


def assert_same_answers(pulled: torch.nn.Module, model: torch.nn.Module) -> None:
    expected = logits(model)
    torch.testing.assert_close(logits(pulled.eval()), expected, **rounding(expected))


@pytest.mark.parametrize("name", ["golden_llada", "golden_illada"])
def test_model_comes_back_as_it_was_published(name: str, hub: Hub, request: pytest.FixtureRequest) -> None:
    golden: Golden = request.getfixturevalue(name)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder).eval()
    model.push_to_hub("ada/copy")

    files = hub.repos["ada/copy"].files
    assert set(files) == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    ours, published = load(files["model.safetensors"]), load((golden.folder / "model.safetensors").read_bytes())
    assert ours.keys() == published.keys()
    for key, tensor in published.items():
        assert torch.equal(ours[key], tensor), key

    pulled, loading = AutoModelForMaskedLM.from_pretrained("ada/copy", output_loading_info=True)
    assert {"ada/copy/config.json", "ada/copy/model.safetensors"} <= set(hub.downloads)
    assert type(pulled) is type(model)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_same_answers(pulled, model)


def test_sharded_model_comes_back(hub: Hub, model: LLaDAModelLM) -> None:
    model.push_to_hub("ada/shards", max_shard_size="200KB")

    files = hub.repos["ada/shards"].files
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    index = json.loads(files["model.safetensors.index.json"])
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards

    pulled = AutoModelForMaskedLM.from_pretrained("ada/shards").eval()
    assert {f"ada/shards/{shard}" for shard in shards} <= set(hub.downloads)
    assert_same_answers(pulled, model)


def test_save_pretrained_pushes(hub: Hub, model: LLaDAModelLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="ada/saved")

    assert "# saved" in hub.repos["ada/saved"].files["README.md"].decode()
    assert_same_answers(AutoModelForCausalLM.from_pretrained("ada/saved"), model)


def test_generation_config_travels_with_the_model(hub: Hub, model: LLaDAModelLM) -> None:
    model.generation_config.update(max_new_tokens=24, block_length=8, steps=6, suppress_eos="confidence")
    model.push_to_hub("ada/settings")

    pulled = AutoModelForMaskedLM.from_pretrained("ada/settings").generation_config
    assert type(pulled) is DiffusionGenerationConfig
    assert (pulled.max_new_tokens, pulled.block_length, pulled.steps) == (24, 8, 6)
    assert pulled.suppress_eos == "confidence"


def test_generation_config_travels_alone(hub: Hub, pushed: str) -> None:
    DiffusionGenerationConfig(max_new_tokens=16, block_length=4).push_to_hub(pushed)

    assert {"model.safetensors", "tokenizer.json"} <= set(hub.repos[pushed].files)
    assert DiffusionGenerationConfig.from_pretrained(pushed).block_length == 4
    assert AutoModelForMaskedLM.from_pretrained(pushed).generation_config.max_new_tokens == 16


def test_tokenizer_comes_back(hub: Hub, pushed: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    pulled = AutoTokenizer.from_pretrained(pushed)

    assert f"{pushed}/tokenizer.json" in hub.downloads
    messages = [{"role": "user", "content": "naïve?"}, {"role": "assistant", "content": "non"}]
    assert pulled.apply_chat_template(messages) == tiny_tokenizer.apply_chat_template(messages)
    assert (pulled.mask_token_id, pulled.eos_token_id, pulled.pad_token_id) == (300, 299, 299)


def test_pipeline_by_repository_id(hub: Hub, pushed: str) -> None:
    # without a task: the pipeline tag of the card names it
    generate = pipeline(model=pushed)

    assert generate.task == "text-generation"
    assert type(generate.model) is LLaDAModelLM
    settings = {"max_new_tokens": 8, "block_length": 4, "steps": 4}
    (result,) = generate("Hello", return_full_text=True, **settings)
    inputs = generate.tokenizer("Hello", return_tensors="pt")
    sequences = generate.model.generate(**inputs, **settings)
    assert result["generated_text"] == generate.tokenizer.decode(sequences[0], skip_special_tokens=True)


@pytest.fixture
def adapter(hub: Hub, pushed: str) -> PeftModel:
    """A pushed adapter that changes what the model answers."""
    base = AutoModelForMaskedLM.from_pretrained(pushed)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    adapter = get_peft_model(base, config).eval()
    adapter.push_to_hub("ada/adapter")
    return adapter


@pytest.mark.parametrize(
    "pull",
    [
        lambda base: PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), "ada/adapter"),
        lambda base: AutoPeftModelForCausalLM.from_pretrained("ada/adapter"),
        lambda base: AutoModelForMaskedLM.from_pretrained("ada/adapter"),
    ],
    ids=["PeftModel", "AutoPeftModelForCausalLM", "AutoModelForMaskedLM"],
)
def test_adapter_comes_back(pull, hub: Hub, pushed: str, adapter: PeftModel, model: LLaDAModelLM) -> None:
    files = hub.repos["ada/adapter"].files
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == pushed

    pulled = pull(pushed).eval()
    assert "ada/adapter/adapter_model.safetensors" in hub.downloads
    torch.testing.assert_close(logits(pulled), logits(adapter), atol=1e-5, rtol=0)
    assert (logits(pulled) - logits(model)).abs().max() > 1e-2


def test_branch_leaves_main_alone(hub: Hub, pushed: str, model: LLaDAModelLM) -> None:
    before = dict(hub.repos[pushed].files)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.push_to_hub(pushed, revision="draft")

    assert hub.repos[pushed].files == before
    assert logits(AutoModelForMaskedLM.from_pretrained(pushed, revision="draft")).abs().max() == 0
    assert logits(AutoModelForMaskedLM.from_pretrained(pushed)).abs().max() > 0


def test_private_repository_needs_its_owner(hub: Hub, model: LLaDAModelLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub("ada/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")

    for token in (None, "hf_bob"):
        with pytest.raises(OSError, match="ada/secret is not a local folder"):
            AutoModelForMaskedLM.from_pretrained("ada/secret", token=token)
    assert hub.downloads == []
    pulled = AutoModelForMaskedLM.from_pretrained("ada/secret", token="hf_ada").eval()
    assert_same_answers(pulled, model)


def test_refusals_reach_the_user(hub: Hub, pushed: str, model: LLaDAModelLM) -> None:
    with pytest.raises(OSError, match="ada/nothing is not a local folder"):
        AutoModelForMaskedLM.from_pretrained("ada/nothing")
    with pytest.raises(OSError, match="no-such-branch is not a valid git identifier"):
        AutoModelForMaskedLM.from_pretrained(pushed, revision="no-such-branch")
    with pytest.raises(HfHubHTTPError, match="401"):
        model.push_to_hub("ada/new", token="hf_nobody")
    with pytest.raises(HfHubHTTPError, match="403"):
        model.push_to_hub(pushed, token="hf_bob")
    assert set(hub.repos) == {pushed}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_training_run_comes_back(
    lora: bool, hub: Hub, pushed: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = AutoModelForMaskedLM.from_pretrained(pushed)
    before = logits(base)
    trainer = LLaDASFTTrainer(
        model=base,
        args=LLaDASFTConfig(
            output_dir=str(tmp_path / "run"),
            hub_model_id="ada/run",
            learning_rate=1e-2,
            max_steps=2,
            per_device_train_batch_size=2,
            warmup_steps=0,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "1 + 1 =", "completion": " 2"}] * 4),
        processing_class=tiny_tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4) if lora else None,
    )
    trainer.train()
    trainer.push_to_hub(dataset_name="ada/sums")

    files = hub.repos["ada/run"].files
    assert ("adapter_model.safetensors" in files, "model.safetensors" in files) == (lora, not lora)
    pulled = AutoModelForMaskedLM.from_pretrained("ada/run").eval()
    torch.testing.assert_close(logits(pulled), logits(trainer.model.eval()), atol=1e-5, rtol=0)
    assert (logits(pulled) - before).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained("ada/run").mask_token_id == 300

    card = files["README.md"].decode()
    data = card_data(card)
    assert (data["base_model"], data["datasets"]) == (pushed, "ada/sums")
    assert data["library_name"] == ("peft" if lora else "transformers")
    assert {"llada", "masked-diffusion", "sft", "trl"} <= set(data["tags"])
    assert "| steps | 2 |" in card
    _, printed = run_blocks(card, "card")
    assert " of France is Paris." in printed
