"""Adapters merged into checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER
from golden import load_golden
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from llada.modeling_llada.adapters import lora_target_modules
from llada_cli import main


IDS = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def save_adapter(base: Path, folder: Path, peft_config=None, **settings) -> PeftModel:
    """An adapter that changes something, without a tokenizer."""
    model = AutoModelForMaskedLM.from_pretrained(base)
    settings = {"target_modules": lora_target_modules(model.config), **settings}
    torch.manual_seed(0)
    adapted = get_peft_model(model, peft_config or LoraConfig(r=2, init_lora_weights=False, **settings))
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize("family", ["llada", "illada", "llada_moe", "llada2_moe"])
def test_the_checkpoint_is_the_adapted_model_under_published_names(family: str, tmp_path: Path) -> None:
    base = load_golden(family).folder
    experts = {"target_parameters": EXPERTS} if family.endswith("moe") else {}
    adapted = save_adapter(base, tmp_path / "adapter", **experts)
    AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path / "adapter")

    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, adapted.float()(IDS).logits, atol=2e-4, rtol=2e-3)
    assert "| merged | LORA adapter |" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


def test_an_adapter_of_published_code_is_merged(tmp_path: Path) -> None:
    """Its layers have other names, and one name stands for the down-projections and for the head."""
    base = load_golden("llada").folder
    ours = save_adapter(base, tmp_path / "ours", target_modules=["o_proj"])
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["attn_out"]}))
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    renamed = {
        name.replace("model.layers.", "model.transformer.blocks.").replace("self_attn.o_proj", "attn_out"): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "theirs" / "adapter_model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path / "theirs")

    assert main(["merge", str(tmp_path / "theirs"), str(tmp_path / "merged")]) == 0
    merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, ours(IDS).logits, atol=2e-4, rtol=2e-3)


def test_the_tokenizer_may_be_that_of_the_model(tmp_path: Path) -> None:
    save_adapter(DEMO_FOLDER, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--dtype", "bfloat16"]) == 0
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (DEMO_FOLDER, tmp_path / "merged")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture, tmp_path: Path):
    """What `merge` says to an adapter that it refuses, and that it wrote nothing."""

    def refuse(*options: str, adapter: str = str(tmp_path / "adapter")) -> str:
        assert main(["merge", adapter, str(tmp_path / "merged"), *options]) == 1
        assert not (tmp_path / "merged").exists()
        return capsys.readouterr().err

    return refuse


def test_what_cannot_be_merged_is_refused(refusal, tmp_path: Path) -> None:
    assert "it is a whole model, and nothing is to be merged" in refusal(adapter=str(DEMO_FOLDER))
    assert "There is no folder" in refusal(adapter=str(tmp_path / "none"))

    sizes = {"num_virtual_tokens": 2, "num_attention_heads": 4, "num_layers": 2, "token_dim": 64}
    save_adapter(DEMO_FOLDER, tmp_path / "adapter", PromptTuningConfig(task_type="CAUSAL_LM", **sizes))
    assert "PromptTuningConfig, whose virtual tokens" in refusal()

    save_adapter(DEMO_FOLDER, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "does not say which model it is for; name it with `--base`" in refusal()
    assert "There is no folder" in refusal("--base", str(tmp_path / "no-such"))

    tied = load_golden("illada").folder
    save_adapter(tied, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    assert "which are one matrix in this model" in refusal()


def test_a_quantised_model_is_refused(refusal, tmp_path: Path) -> None:
    from transformers import TorchAoConfig

    quantisation = TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    AutoModelForMaskedLM.from_pretrained(DEMO_FOLDER, quantization_config=quantisation).save_pretrained(tmp_path / "8")
    save_adapter(DEMO_FOLDER, tmp_path / "adapter")
    assert "is quantised: an update would be rounded" in refusal("--base", str(tmp_path / "8"))


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_adapter(DEMO_FOLDER, tmp_path)
    for target in (tmp_path, tmp_path / "adapter_config.json"):
        assert main(["merge", str(tmp_path), str(target)]) == 1
        assert "holds something already; name another folder" in capsys.readouterr().err
