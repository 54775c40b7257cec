"""Trainers by block diffusion: what they show a model, what they evaluate, and that it is what `generate` writes."""

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_llada2_moe
from torch.nn.functional import cross_entropy
from training_probes import parameters_of, record_inputs
from transformers import AutoModelForMaskedLM

from llada import LLaDAPreTrainer, LLaDAPreTrainingConfig, LLaDASFTTrainer
from llada.modeling_llada.likelihood_bound import bound_masks, content_keys, enumerate_masks
from llada.modeling_llada.masked_diffusion import MaskedBatch


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")

BLOCK, EOS, MASK = 4, 299, 300


@pytest.fixture
def make_llada2():
    def make(block_length=BLOCK, **settings):
        torch.manual_seed(0)
        model = tiny_llada2_moe(
            vocab_size=320, mask_token_id=MASK, bos_token_id=295, eos_token_id=EOS, pad_token_id=EOS, **settings
        )
        model.generation_config.block_length = block_length
        return model

    return make


@pytest.fixture
def rows():
    """Prompts of 1 to 5 tokens with an answer each, tokenised."""
    ids = [[10 + n, *range(20, 20 + n), *range(30 + n, 36 - n), EOS] for n in range(4)]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[-100] * (n + 1) + row[n + 1 :] for n, row in enumerate(ids)]}
    )


@pytest.fixture
def make_pre_trainer(make_args):
    def make(model, documents, **settings):
        args = make_args(LLaDAPreTrainingConfig, **{"sequence_length": 12, "random_length_probability": 0} | settings)
        dataset = Dataset.from_dict({"input_ids": documents})
        return LLaDAPreTrainer(model, args=args, train_dataset=dataset, eval_dataset=dataset)

    return make


def mask_a_part(start: int, stop: int):
    """A forward process that masks every other token of these positions."""

    def process(input_ids, maskable, *args, **kwargs):
        places = torch.arange(input_ids.shape[1])
        masked = maskable & (places >= start) & (places < stop) & (places % 2 == 0)
        weight = torch.ones(len(input_ids))
        return MaskedBatch(input_ids.masked_fill(masked, MASK), masked, weight, weight)

    return process


@torch.no_grad()
def block_losses(model, ids, noisy, start, block_length) -> torch.Tensor:
    """Cross entropy of one noisy block behind clean ones, as `generate` computes its logits."""
    end = min(start + block_length, ids.shape[1])
    text = torch.cat([ids[:, :start], noisy[:, start:end]], dim=1)
    logits = model(text, block_length=block_length).logits[:, start:end]
    return cross_entropy(logits.transpose(1, 2), ids[:, start:end], reduction="none")


class TestWhatIsSeen:
    def test_the_clean_half_holds_prompt_and_answer(self, make_llada2, make_trainer, rows):
        model = make_llada2()
        trainer = make_trainer(model, rows, eval_dataset=rows, max_steps=1)
        seen = record_inputs(model)
        trainer.train()
        trainer.evaluate()
        assert len(seen) > 2
        for inputs in seen:
            noisy, clean = inputs["input_ids"].chunk(2, dim=1)
            # whole blocks
            assert noisy.shape[1] % BLOCK == 0 and noisy.shape == inputs["labels"].shape
            masked = inputs["logits_to_keep"]
            assert torch.equal(noisy, clean.masked_fill(masked, MASK)) and (clean != MASK).all()
            assert not masked[:, 0].any() and masked.any() and (inputs["labels"][:, 0] == -100).all()
            assert inputs["position_ids"].tolist() == [[*range(noisy.shape[1])] * 2] * len(inputs["position_ids"])

    def test_rows_end_with_a_block(self, make_llada2, make_trainer, rows):
        short, long = {"input_ids": [5, 6], "labels": [-100, 6]}, rows[0]
        for fill, lengths in (("none", [4, 8]), ("longest", [8, 8])):
            trainer = make_trainer(make_llada2(), rows, eos_fill=fill)
            batch = trainer.data_collator([short, long])
            assert (batch["labels"] != -100).sum(1).tolist() == [length - 1 for length in lengths]
        # and those that are evaluated, where the fill depends on nothing else
        batch = trainer.data_collator.for_evaluation()([short, long])
        assert batch["attention_mask"].sum(1).tolist() == [4, 8]
        assert batch["labels"][0].tolist() == [-100, 6, EOS, EOS, -100, -100, -100, -100]
        # no further than rows are truncated to
        trainer = make_trainer(make_llada2(), rows, max_length=3)
        assert trainer.data_collator([short])["input_ids"].shape == (1, 3)

    @pytest.mark.parametrize("block_length", [None, 0, 2])
    def test_the_argument_decides(self, make_llada2, make_model, make_trainer, rows, block_length):
        for model in (make_llada2(), make_model()):
            of_family = 0 if model.config.model_type == "llada" else BLOCK
            expected = of_family if block_length is None else block_length
            trainer = make_trainer(model, rows, max_steps=1, block_length=block_length)
            seen = record_inputs(model)
            trainer.train()
            assert [inputs["block_length"] for inputs in seen] == [expected]
            halves = 2 if expected else 1
            assert seen[0]["input_ids"].shape[1] == halves * seen[0]["labels"].shape[1]
            card = trainer._describe_objective()["objective"]
            assert card == ("block diffusion" if expected else "masked diffusion")

    def test_a_negative_length_is_refused(self, make_args):
        with pytest.raises(ValueError, match="`block_length=-1` is negative; write 1 or more, or 0 for no blocks"):
            make_args(block_length=-1)


class TestWhatIsEvaluated:
    def test_it_is_the_bound_of_text_that_is_written_block_by_block(self, make_llada2, make_trainer):
        """Summed over all masks of all tokens, and over the masks of each block alone."""
        model = make_llada2(block_length=2)
        ids = torch.tensor([[5, 6, 7, 8]])
        trainer = make_trainer(model, Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}))
        masks, weights = enumerate_masks(4)
        texts = ids.expand(len(masks), -1)
        with torch.no_grad():
            inputs = trainer._lay_out(texts.masked_fill(masks, MASK), masks, texts, {})
            losses = model(**inputs, token_losses=True).token_losses
        found = (weights * losses.sum(1)).sum()

        masks, weights = enumerate_masks(2)
        expected = 0.0
        for start in (0, 2):
            texts = ids.expand(len(masks), -1)
            noisy = texts.clone()
            noisy[:, start : start + 2].masked_fill_(masks, MASK)
            expected += (weights * (block_losses(model, texts, noisy, start, 2) * masks).sum(1)).sum()
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)

    def test_an_evaluation_is_what_its_masks_give_block_by_block(self, make_llada2, make_trainer):
        model = make_llada2()
        ids = torch.randint(0, 290, (3, 8))
        labels = ids.clone()
        labels[:, :3] = -100
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
        trainer = make_trainer(model, rows, eval_dataset=rows, num_eval_draws=3, min_eos=0, max_length=8)
        found = trainer.evaluate()["eval_nll_bound"]
        total = 0.0
        for masked, weight in bound_masks(labels != -100, 3, content_keys(ids)):
            noisy = ids.masked_fill(masked, MASK)
            losses = torch.cat([block_losses(model, ids, noisy, start, BLOCK) for start in (0, 4)], dim=1)
            total += (weight[:, None] * losses * masked).sum().item() / 3
        assert found == pytest.approx(total / (labels != -100).sum().item(), abs=1e-5)


class TestWhatIsLearned:
    @pytest.mark.parametrize("family", ["llada2", "dense"])
    def test_generation_writes_what_was_learned(self, make_llada2, make_model, make_trainer, rows, family, tmp_path):
        model = make_llada2() if family == "llada2" else make_model(initializer_range=0.2)
        settings = {} if family == "llada2" else {"block_length": BLOCK}
        trainer = make_trainer(
            model,
            rows,
            max_steps=80,
            learning_rate=1e-2,
            mask_sampling="exact",
            ratio_sampling="stratified",
            lr_scheduler_type="constant",
            logging_steps=40,
            **settings,
        )
        trainer.train()
        trainer.save_model(tmp_path / "tuned")
        written = AutoModelForMaskedLM.from_pretrained(tmp_path / "tuned")
        assert written.config.block_causal and written.generation_config.kv_cache == "block"
        assert written.generation_config.block_length == BLOCK
        for row in rows:
            length = row["labels"].count(-100)
            prompt = torch.tensor([row["input_ids"][:length]])
            answer = written.generate(prompt, max_new_tokens=8 - length)
            assert answer[0].tolist() == row["input_ids"]

    def test_a_checkpoint_that_is_not_block_causal_says_nothing_of_it(self, make_model, make_trainer, rows):
        model = make_model()
        for block_length in (None, 0):
            make_trainer(model, rows, block_length=block_length)
            assert "block_causal" not in model.config.to_dict()


class TestRatiosOfBlocks:
    SETTINGS = {"mask_sampling": "exact", "ratio_sampling": "stratified", "mask_ratio_per_block": True}

    def test_every_block_has_its_own(self, make_llada2, make_trainer, make_args):
        """Strata span the blocks of the whole step: 2 micro-batches of 2 rows of 3 blocks, the last of 2 tokens."""
        ids = torch.randint(0, 290, (4, 10))
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
        args = make_args(
            max_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=2, min_eos=0, eos_fill="none",
            max_length=10, **self.SETTINGS,
        )  # fmt: skip
        trainer = make_trainer(make_llada2(), rows, args=args)
        drawn = []
        process = trainer.forward_process

        def record(*arguments, **keywords):
            drawn.append((process(*arguments, **keywords), keywords))
            return drawn[-1][0]

        trainer.forward_process = record
        seen = record_inputs(trainer.model)
        trainer.train()
        assert [(batch.masked.shape, keywords["offset"], keywords["total"]) for batch, keywords in drawn] == [
            ((6, BLOCK), 0, 12),
            ((6, BLOCK), 6, 12),
        ]
        for (batch, _), inputs in zip(drawn, seen, strict=True):
            masked = batch.masked.view(2, 12)[:, :10]
            assert torch.equal(inputs["logits_to_keep"], masked)
            assert (inputs["input_ids"][:, :10] == MASK).equal(masked)
        # of each third of the time, as many
        ratios = torch.cat([batch.ratio.view(2, 3)[:, :2] for batch, _ in drawn]).flatten()
        assert len(ratios.unique()) > 2
        logged = trainer.state.log_history[0]
        assert {f"ce_q{number}" for number in (1, 2, 3, 4)} & logged.keys()
        assert logged["mask_ratio"] == pytest.approx(
            sum(batch.masked.sum().item() for batch, _ in drawn) / 40, abs=1e-6
        )
        assert trainer._describe_objective()["mask ratio"] == "linear, 0.0 to 1.0, of each block"

    def test_the_loss_is_that_of_its_weights(self, make_llada2, make_trainer, rows):
        trainer = make_trainer(make_llada2(), rows, **self.SETTINGS)
        batch = trainer.data_collator([rows[0], rows[3]])
        noisy = trainer._add_noise(batch)
        assert noisy.weight.shape == batch["labels"].shape and len(noisy.weight[noisy.masked].unique()) > 1
        trainer._micro_step = 0
        with torch.no_grad():
            losses = torch.zeros_like(noisy.weight)
            for start in range(0, losses.shape[1], BLOCK):
                part = block_losses(trainer.model, batch["input_ids"], noisy.input_ids, start, BLOCK)
                losses[:, start : start + BLOCK] = part
            found = trainer.compute_loss(trainer.model, batch)
        lengths = (batch["labels"] != -100).sum(1)
        expected = ((noisy.weight * losses * noisy.masked).sum(1) / lengths).mean()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_without_blocks_it_is_refused(self, make_model, make_trainer, rows):
        with pytest.raises(ValueError, match="the model is not trained in blocks. Write their `block_length`"):
            make_trainer(make_model(), rows, mask_ratio_per_block=True)
        make_trainer(make_model(), rows, mask_ratio_per_block=True, block_length=2)


class TestPreTraining:
    FIRST = [[5, 6, 7, EOS], [8, 9, 10, EOS]]

    @pytest.mark.parametrize("block_length", [None, 0])
    @pytest.mark.parametrize("separates", [None, True, False])
    def test_documents_do_not_see_each_other(self, make_llada2, make_pre_trainer, block_length, separates):
        """As in the training of LLaDA2, unless told otherwise; without blocks, as told."""
        losses = []
        for first in self.FIRST:
            documents = [[*first, 21, 22, 23, 24, 25, 26, 27, EOS]] * 4
            trainer = make_pre_trainer(
                make_llada2(), documents, block_length=block_length, separate_documents=separates
            )
            trainer.forward_process = mask_a_part(6, 12)
            batch = trainer.data_collator([trainer.train_dataset[0]])
            losses.append(trainer.compute_loss(trainer.model.eval(), batch).item())
        isolated = separates or (separates is None and block_length is None)
        assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) is isolated

    def test_a_document_is_as_it_would_be_alone(self, make_llada2, make_pre_trainer):
        """Its blocks begin where it does, also if others stand before it."""
        model = make_llada2()
        document = [21, 22, 23, 24, 25, EOS]
        packed = make_pre_trainer(model, [[5, EOS, *document, 8, 9, 10, EOS]])
        packed.forward_process = mask_a_part(2, 8)
        alone = make_pre_trainer(model, [document], sequence_length=6)
        alone.forward_process = mask_a_part(0, 6)
        losses = [
            trainer.compute_loss(model, trainer.data_collator([trainer.train_dataset[0]])) * count
            for trainer, count in ((packed, 12), (alone, 6))
        ]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)

    def test_training_and_evaluation_run(self, make_llada2, make_pre_trainer):
        trainer = make_pre_trainer(make_llada2(), [[*range(n, n + 9), EOS] for n in range(20)], max_steps=3)
        before = trainer.evaluate()["eval_nll_bound"]
        trainer.args.random_length_probability = 1.0
        trainer.train()
        assert trainer.evaluate()["eval_nll_bound"] < before

    def test_documents_need_an_end(self, make_llada2, make_pre_trainer):
        model = make_llada2()
        model.config.eos_token_id = None
        with pytest.raises(ValueError, match="`separate_documents=True`, but there is no end-of-text token"):
            make_pre_trainer(model, [[1] * 12], separate_documents=True)
        assert not make_pre_trainer(model, [[1] * 12]).data_collator.separate_documents


class TestFrozenRouters:
    @pytest.mark.parametrize("frozen", [True, False])
    def test_routers_keep_their_weights(self, make_llada2, make_trainer, rows, frozen):
        model = make_llada2()
        before = parameters_of(model)
        make_trainer(model, rows, freeze_routers=frozen).train()
        unmoved = {name for name, weight in parameters_of(model).items() if torch.equal(weight, before[name])}
        gates = {name for name in before if name.endswith("mlp.gate.weight")}
        assert unmoved == (gates if frozen else set()) and gates

    def test_a_model_without_experts_has_none(self, make_model, make_trainer):
        with pytest.raises(ValueError, match="`freeze_routers=True`, but no layer of this model has experts"):
            make_trainer(make_model(), freeze_routers=True)


def test_a_resumed_run_is_an_uninterrupted_one(make_llada2, make_trainer, rows, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path)}

    def trainer() -> LLaDASFTTrainer:
        return make_trainer(make_llada2(), rows, per_device_train_batch_size=2, freeze_routers=True, **settings)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    logged = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry][-2:] == logged[-2:]
    for name, weight in parameters_of(whole.model).items():
        torch.testing.assert_close(parameters_of(resumed.model)[name], weight, rtol=0, atol=1e-7, msg=name)
