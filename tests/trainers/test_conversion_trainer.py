"""Training that makes a diffusion model of a causal one."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from training_probes import mask_every_other
from transformers import AutoModelForMaskedLM, Qwen2Config, Qwen2ForCausalLM

from llada import LLaDASFTConfig, LLaDASFTTrainer, from_causal
from llada.trainers.conversion_config import LLaDAConversionConfig
from llada.trainers.conversion_trainer import LLaDAConversionTrainer, TimeLimit, anneal_attention


@pytest.fixture
def make(make_args, make_model, tiny_tokenizer):
    def make_trainer(callbacks=None, right_shift_logits=False, **settings):
        settings = {"sequence_length": 16, **settings}
        text = [chr(97 + number) * 6 + "0123456789" * 4 for number in range(8)]
        return LLaDAConversionTrainer(
            make_model("illada", right_shift_logits=right_shift_logits),
            make_args(LLaDAConversionConfig, **settings),
            train_dataset=Dataset.from_dict({"text": text}),
            processing_class=tiny_tokenizer,
            callbacks=callbacks,
        )

    return make_trainer


def test_attention_opens_by_a_share():
    def opened(share):
        return anneal_attention(64, share, torch.Generator().manual_seed(0))

    lower = torch.ones(64, 64, dtype=torch.bool).tril()
    assert torch.equal(opened(0.0), lower)
    assert opened(1.0).all()
    half = opened(0.5)
    assert half[lower].all()
    assert half[~lower].float().mean() == pytest.approx(0.5, abs=0.05)


def test_annealing_is_of_training_alone_and_ends(make):
    trainer = make(attention_annealing_steps=4, max_steps=5)
    ids = torch.zeros(2, 16, dtype=torch.long)
    seen = []
    for step in range(4):
        trainer.state.global_step = step
        mask = trainer._lay_out(ids, ids == 1, ids, {}).get("attention_mask")
        seen.append(None if mask is None else mask[0].float().triu(1).sum().item() / 120)
    assert seen[:3] == pytest.approx([0.25, 0.5, 0.75], abs=0.15)
    assert seen[3] is None
    trainer.state.global_step = 0
    trainer.model.eval()
    assert "attention_mask" not in trainer._lay_out(ids, ids == 1, ids, {})
    trainer.model.train()
    padded = torch.ones(2, 16, dtype=torch.long)
    padded[1, 12:] = 0
    mask = trainer._lay_out(ids, ids == 1, ids, {"attention_mask": padded})["attention_mask"]
    assert not mask[1, :, 12:].any()
    assert mask[0].tril().sum() == 136


@pytest.mark.parametrize("right_shift_logits", [False, True], ids=["in place", "shifted"])
def test_the_causal_loss_is_that_of_the_next_token(make, right_shift_logits):
    plain, joint = (make(causal_loss_weight=weight, right_shift_logits=right_shift_logits) for weight in (0.0, 0.3))
    inputs = {"input_ids": torch.arange(32).view(2, 16) + 97, "labels": torch.arange(32).view(2, 16) + 97}
    losses = []
    for trainer in (plain, joint):
        trainer.forward_process = mask_every_other
        trainer._rows_in_step = 2
        losses.append(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=32).item())
    with torch.no_grad():
        lower = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
        joint.model.config.right_shift_logits = False
        logits = joint.model(inputs["input_ids"], attention_mask=lower).logits[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="sum"
    )
    assert losses[1] - losses[0] == pytest.approx(0.3 * by_hand.item() / 32, rel=1e-4)


def test_the_blocks_of_a_step_are_those_of_the_schedule(make):
    """They grow from single tokens, stay away, and come back by halves; evaluations are in those of the end."""
    settings = {"block_warmup_lengths": [1, 4], "block_warmup_steps": 2, "block_decay_steps": 0.4, "block_length": 4}
    trainer = make(max_steps=5, **settings)
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs), with_kwargs=True)
    trainer.train()
    assert [inputs["block_length"] for inputs in seen] == [1, 4, 0, 8, 4]
    assert [inputs["input_ids"].shape[1] for inputs in seen] == [32, 32, 16, 32, 32]
    noisy, clean = trainer._lay_out(*[torch.zeros(1, 16, dtype=torch.long)] * 3, {})["input_ids"].chunk(2, dim=1)
    assert noisy.shape == clean.shape
    trainer.model.eval()
    assert trainer._lay_out(*[torch.zeros(1, 16, dtype=torch.long)] * 3, {})["block_length"] == 4
    # and the checkpoint says so
    assert trainer.model.config.block_causal and trainer.model.generation_config.block_length == 4
    assert trainer._describe_objective()["blocks"] == "1, 4 in the warm-up, then the whole row, 8, 4 at the end"
    assert trainer.args.separate_documents and "document_ids" in trainer.data_collator([trainer.train_dataset[0]])


def test_blocks_of_a_warm_up_may_have_ratios_of_their_own(make):
    trainer = make(max_steps=2, block_warmup_steps=1, block_warmup_lengths=[4], mask_ratio_per_block=True)
    drawn, process = [], trainer.forward_process
    trainer.forward_process = lambda ids, *args, **kwargs: drawn.append(ids.shape) or process(ids, *args, **kwargs)
    trainer.train()
    # four rows of at least four blocks; in the second step they are whole again
    assert drawn[0][0] >= 16 and drawn[0][1] == 4 and tuple(drawn[1]) == (4, 16)


def test_blocks_of_one_token_are_a_causal_model(make):
    """Where the warm-up begins: what is under a mask is predicted from the tokens before it, and no other."""
    trainer = make(max_steps=1, block_warmup_steps=1)
    trainer.state.max_steps = 1
    ids = torch.arange(16).unsqueeze(0) + 97
    everything = torch.ones_like(ids, dtype=torch.bool)
    masked = torch.full_like(ids, trainer.mask_token_id)
    with torch.no_grad():
        found = trainer.model(**trainer._lay_out(masked, everything, ids, {}), token_losses=True).token_losses[0]
        for place in range(16):
            text = torch.cat([ids[:, :place], masked[:, :1]], dim=1)
            lower = torch.ones(1, place + 1, place + 1, dtype=torch.bool).tril()
            logits = trainer.model(text, attention_mask=lower).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[:, place])
            assert found[place].item() == pytest.approx(loss.item(), abs=1e-5)


def test_it_trains_and_stops_when_the_time_is_over(make, make_args, tiny_tokenizer, pairs):
    trainer = make([TimeLimit(minutes=0)], attention_annealing_steps=2, causal_loss_weight=0.3, max_steps=50)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 1
    assert all((weight != before[name]).any() for name, weight in trainer.model.named_parameters())
    assert trainer._describe_objective()["attention opened"] == "in 2 steps"
    # what comes out can be tuned
    tuned = LLaDASFTTrainer(
        trainer.model, make_args(LLaDASFTConfig, max_steps=1), train_dataset=pairs, processing_class=tiny_tokenizer
    )
    assert tuned.train().global_step == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_annealing_steps": -1}, "is no number of steps"),
        ({"causal_loss_weight": -0.3}, "is no weight"),
        ({"block_warmup_steps": 2, "attention_annealing_steps": 2}, "both say what is seen; leave one of them out"),
    ],
    ids=["annealing", "weight", "both"],
)
def test_settings_that_mean_nothing_are_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(LLaDAConversionConfig, **settings)


def test_blocks_and_a_shift_are_refused(make):
    with pytest.raises(ValueError, match="Leave out `block_warmup_steps` and `block_decay_steps`, or convert without"):
        make(right_shift_logits=True, block_warmup_steps=2)


@pytest.mark.parametrize("right_shift_logits", [False, True], ids=["in place", "shifted"])
def test_an_adapter_learns_on_what_was_converted(make_args, tiny_tokenizer, tmp_path, right_shift_logits):
    """Biases, a tied head and a row for a new mask token included; merged, it is a checkpoint as any other."""
    torch.manual_seed(0)
    tiny_tokenizer.mask_token = None
    config = Qwen2Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=295, eos_token_id=299, pad_token_id=299,
        initializer_range=0.2,
    )  # fmt: skip
    converted = from_causal(Qwen2ForCausalLM(config), tiny_tokenizer, "<|new|>", right_shift_logits)
    assert converted.config.mask_token_id >= 302
    converted.save_pretrained(tmp_path / "converted")
    tiny_tokenizer.save_pretrained(tmp_path / "converted")

    rows = Dataset.from_dict({"prompt": ["ab", "cd"] * 4, "completion": ["xyz", "uvw"] * 4})
    trainer = LLaDASFTTrainer(
        str(tmp_path / "converted"),
        make_args(
            max_steps=12, learning_rate=1e-2, recipe="stable", eos_fill_length=4, lr_scheduler_type="constant",
            per_device_train_batch_size=8,
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(tmp_path / "adapter")

    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {f"{part}_proj" for part in "q k v o gate up down".split()}
    base = AutoModelForMaskedLM.from_pretrained(tmp_path / "converted")
    assert all(torch.equal(weight, base.state_dict()[name]) for name, weight in converted.state_dict().items())
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    losses = [entry["content_ce"] for entry in trainer.state.log_history if "content_ce" in entry]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    prompts = tiny_tokenizer(["ab", "cd"], return_tensors="pt")
    found = []
    for folder in ("converted", "adapter", "merged"):
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / folder).eval()
        assert model.config.right_shift_logits == right_shift_logits
        with torch.no_grad():
            found.append(model(**prompts).logits)
        assert (model.generate(**prompts, max_new_tokens=4) != model.config.mask_token_id).all()
    torch.testing.assert_close(found[1], found[2], atol=1e-4, rtol=1e-4)
    assert (found[0] - found[2]).abs().max() > 0.1
