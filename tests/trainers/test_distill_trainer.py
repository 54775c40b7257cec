"""Distillation: a student that writes more tokens in a step, and answers as its teacher."""

import pytest
import torch
from datasets import Dataset
from demo_checkpoint import load_demo
from torch import nn
from training_probes import parameters_of

from llada import LLaDA2MoeConfig, LLaDA2MoeModelLM, LLaDADistillConfig, LLaDADistillTrainer
from llada.trainers.distill_trainer import DataCollatorForTrajectories
from llada.trainers.trajectories import vocabulary_of


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.fixture
def make_distiller(make_args, demo, traces):
    def make(model=None, train_dataset=None, **settings):
        settings = {"block_lengths": [4], "per_device_train_batch_size": 60, "max_steps": 3} | settings
        given = {name: settings.pop(name) for name in ("eval_dataset", "peft_config") if name in settings}
        return LLaDADistillTrainer(
            model=load_demo()[0] if model is None else model,
            args=make_args(LLaDADistillConfig, **settings),
            train_dataset=traces if train_dataset is None else train_dataset,
            processing_class=demo[1],
            **given,
        )

    return make


def _answer(model, tokenizer, questions):
    """Share of right answers, and tokens per forward, with the rule of Fast-dLLM."""
    model.eval()
    inputs = tokenizer([question for question, _ in questions], return_tensors="pt", padding=True)
    output = model.generate(**inputs, threshold=0.9, return_dict_in_generate=True, output_trace=True)
    texts = tokenizer.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(text.strip() == answer for text, (_, answer) in zip(texts, questions, strict=True))
    tokens = sum(len(trace.final) - trace.step_of.count(-1) for trace in output.trace)
    return right / len(questions), tokens / sum(len(trace.events) for trace in output.trace)


@pytest.mark.parametrize("block_masks", ["random", "trajectory"])
def test_a_student_writes_more_tokens_in_a_step_and_answers_as_before(block_masks, demo, questions, make_distiller):
    before, slow = _answer(*demo[:2], questions)
    trainer = make_distiller(block_masks=block_masks, max_steps=40, learning_rate=5e-4)
    trainer.train()
    after, fast = _answer(trainer.model, demo[1], questions)
    assert after >= before - 1 / 60
    assert slow < 1.4 and fast > 3.2
    logs = trainer.state.log_history[-2]
    assert logs["entropy"] < 0.1 and logs["content_accuracy"] > 0.95


def test_the_loss_is_the_papers(make_distiller, demo, traces):
    """Cross entropy and entropy of a complementary pair, from full logits and from the formula."""
    trainer = make_distiller(block_masks="random", per_device_train_batch_size=8)
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    batches, num_items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batches[0], num_items_in_batch=num_items)
    trainer._micro_step = 0
    noisy = trainer._add_noise(batch)
    labels, attention = batch["labels"].repeat(2, 1), batch["attention_mask"].repeat(2, 1)
    # the pair hides each token of the answers once
    assert torch.equal(noisy.masked[:8] ^ noisy.masked[8:], batch["labels"] != -100)
    logits = trainer.model(input_ids=noisy.input_ids, attention_mask=attention).logits[noisy.masked]
    labels = labels[noisy.masked]
    entropy = torch.distributions.Categorical(logits=logits / 0.5).entropy()
    right = logits.argmax(dim=-1) == labels
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum") + 2 * entropy[right].sum()
    torch.testing.assert_close(loss, expected / len(labels))


def test_the_ratio_rises_and_blocks_grow_with_the_steps(make_args):
    args = make_args(LLaDADistillConfig)
    noise = [args.make_noise(9, vocab_size=40, progress=step / 6) for step in range(6)]
    assert [process.block_length for process in noise] == [16, 16, 24, 24, 32, 32]
    assert [round(process.min_mask_ratio, 4) for process in noise] == [0, 0.1333, 0.2667, 0.4, 0.5333, 0.6667]
    assert {process.max_mask_ratio for process in noise} == {0.8} and not noise[0].complementary_masks
    noise = make_args(LLaDADistillConfig, block_masks="random").make_noise(9, vocab_size=40, progress=0.7)
    assert (noise.block_length, noise.min_mask_ratio, noise.max_mask_ratio) == (32, 0.5, 0.5)
    assert noise.complementary_masks


@pytest.mark.parametrize("settings", [{}, {"block_masks": "random"}, {"gradient_accumulation_steps": 2}])
def test_a_resumed_run_is_the_uninterrupted_one(settings, make_distiller, tmp_path):
    settings = {"per_device_train_batch_size": 8, "max_steps": 6, "block_lengths": [2, 4], "save_steps": 3} | settings
    whole = make_distiller(save_strategy="steps", **settings)
    whole.train()
    resumed = make_distiller(save_strategy="steps", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    expected = parameters_of(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in parameters_of(resumed.model).items())
    assert not torch.equal(expected["lm_head.weight"], load_demo()[0].lm_head.weight)


def test_accumulation_is_one_large_batch(make_distiller):
    losses = []
    for batch, accumulated in ((12, 1), (4, 3)):
        trainer = make_distiller(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            block_masks="trajectory",
            min_mask_ratio=1.0,
            max_mask_ratio=1.0,
            max_steps=2,
            block_lengths=[4],
        )
        trainer.train()
        losses.append([logs["loss"] for logs in trainer.state.log_history if "loss" in logs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rows_without_a_teacher(make_distiller, make_args, demo, questions):
    pairs = Dataset.from_dict({"prompt": [q for q, _ in questions], "completion": [right for _, right in questions]})
    trainer = make_distiller(train_dataset=pairs, block_masks="random", eval_dataset=pairs, max_steps=1)
    trainer.train()
    assert trainer.evaluate()["eval_nll_bound"] > 0
    with pytest.raises(ValueError, match="lacks `input_ids`, `labels`, `step_of`, `vocabulary`: it holds no traces"):
        make_distiller(train_dataset=pairs)


def test_traces_of_another_tokenizer_are_refused(make_distiller, traces, tiny_tokenizer):
    rows = Dataset.from_list([traces[0], traces[1] | {"vocabulary": vocabulary_of(tiny_tokenizer)}])
    for block_masks in ("random", "trajectory"):
        with pytest.raises(ValueError, match="Row 1 of the train dataset is of a teacher with another tokenizer"):
            make_distiller(train_dataset=rows, block_masks=block_masks)


def test_a_block_causal_model_is_refused(make_distiller, demo):
    tokenizer = demo[1]
    model = LLaDA2MoeModelLM(
        LLaDA2MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            moe_intermediate_size=16,
            head_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=2,
            num_experts_per_tok=1,
            n_group=1,
            topk_group=1,
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            block_size=4,
        )
    )
    with pytest.raises(ValueError, match="attends in blocks of 32, .* `LLaDASFTTrainer` with `confidence_weight=2.0`"):
        make_distiller(model=model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_masks": "some"}, "`block_masks='some'` is unknown"),
        ({"block_lengths": []}, r"`block_lengths=\[\]` holds no length"),
        ({"block_lengths": [8, 0]}, "A block of 0 tokens"),
        ({"min_mask_ratio": 0.9}, r"limited to \[0.9, 0.8\]"),
        ({"max_mask_ratio": 1.2}, "limited to"),
        ({"loss_weighting": "elbo"}, "`loss_weighting='elbo'` with .* is not supported"),
        ({"loss_normalization": "token"}, "`loss_normalization='token'` is not supported"),
        ({"mask_sampling": "exact"}, "`mask_sampling='exact'` has no meaning for the noise of a block"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message, make_args):
    with pytest.raises(ValueError, match=message):
        make_args(LLaDADistillConfig, **settings)


def test_rows_are_collated_with_their_steps():
    collator = DataCollatorForTrajectories(eos_token_id=0, eos_fill="longest")
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "step_of": [-1, -1, 1, 0]},
        # cut to two tokens
        {"input_ids": [5, 6], "labels": [-100, 6], "step_of": [-1, 3, 2, 1]},
    ]
    batch = collator(rows)
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 0], [-100, 6, 0, 0, 0]]
    assert batch["step_of"].tolist() == [[-1, -1, 1, 0, 2], [-1, 3, 4, 4, 4]]
    del rows[0]["step_of"]
    assert "step_of" not in collator(rows)


def test_the_card_says_what_was_done(make_distiller, tmp_path):
    trainer = make_distiller(max_steps=1, block_lengths=[2, 4])
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "trajectory, in one block of 2 then 4 tokens" in card and "0.0 to 0.8" in card
