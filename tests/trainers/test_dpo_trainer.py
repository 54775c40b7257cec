"""Preference optimisation: shared noise, the two passes, batches in parts, resumption, and what is refused."""

import math
import weakref
from itertools import product

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import as_block_causal, tiny_llada2_moe, tiny_llada_moe
from training_probes import parameters_of
from trl import DPOConfig

from llada import DataCollatorForMaskedPreference, LLaDADPOConfig, LLaDADPOTrainer
from llada.modeling_llada.likelihood_bound import content_keys, likelihood_bound
from llada.modeling_llada.masked_diffusion import masked_cross_entropy


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")

LOSSES = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"]
LOSSES += ["apo_zero", "apo_down", "discopop", "sigmoid_norm"]


@pytest.fixture
def preferences():
    """Six preferences of different lengths."""
    rows = range(6)
    return Dataset.from_dict(
        {
            "prompt": [f"{n}+{n}=" for n in rows],
            "chosen": [str(2 * n) for n in rows],
            "rejected": [str(10 ** (n % 4) + n) for n in rows],
        }
    )


@pytest.fixture
def make_dpo(make_model, make_args, tiny_tokenizer, preferences):
    """Makes a trainer. Keywords are arguments of the trainer, or of its configuration."""

    def make(model=None, train_dataset=None, **settings):
        names = ("ref_model", "data_collator", "eval_dataset", "peft_config", "processing_class", "compute_metrics")
        given = {name: settings.pop(name) for name in names if name in settings}
        settings = {"num_draws": 4, "lr_scheduler_type": "constant", **settings}
        return LLaDADPOTrainer(
            model=make_model() if model is None else model,
            args=settings.pop("args", None) or make_args(LLaDADPOConfig, **settings),
            train_dataset=preferences if train_dataset is None else train_dataset,
            **{"processing_class": tiny_tokenizer, **given},
        )

    return make


def disturb(model):
    """Moves the policy away from its reference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def step(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one micro-batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, batch, torch.tensor(len(batch["input_ids"]) // 2))
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["full", "LoRA", "adapter"])
def test_the_first_loss_is_ln_2_and_margins_rise(make_dpo, make_model, kind) -> None:
    model, settings = make_model(), {}
    if kind == "LoRA":
        settings["peft_config"] = LoraConfig()
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    trainer = make_dpo(model, max_steps=4, learning_rate=3e-3, **settings)
    before = parameters_of(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert logs[0]["rewards/margins"] == 0
    assert logs[-1]["loss"] < logs[0]["loss"] and logs[-1]["rewards/margins"] > 0
    assert not {"entropy", "logits/chosen", "mean_token_accuracy"} & logs[0].keys()
    trained = {name for name, value in parameters_of(trainer.model).items() if not torch.equal(value, before[name])}
    assert trained and all(("lora" in name and ".ref." not in name) or kind == "full" for name in trained)


def test_two_passes_give_the_gradient_of_one(make_dpo) -> None:
    trainer = make_dpo(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.05])
    disturb(trainer.model)
    trainer.label_smoothing = 0.1
    for loss_type in LOSSES:
        trainer.loss_types = [loss_type]
        trainer.args.two_pass = True
        loss, gradients = step(trainer)
        trainer.args.two_pass = False
        loss_of_one, expected = step(trainer)
        assert loss == pytest.approx(loss_of_one, rel=1e-5), loss_type
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-4, loss_type
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=loss_type)


def test_two_passes_give_the_gradient_of_one_in_mixed_precision(make_dpo) -> None:
    trainer = make_dpo(bf16=True)
    disturb(trainer.model)
    _, gradients = step(trainer)
    trainer.args.two_pass = False
    _, expected = step(trainer)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=0.05 * gradient.abs().max().item())


@pytest.mark.parametrize(("two_pass", "alive"), [(True, 1), (False, 6)])
def test_memory_is_that_of_one_mask(make_dpo, two_pass, alive) -> None:
    trainer = make_dpo(num_draws=6, two_pass=two_pass)
    graphs, most = [], [0]

    def count(module, args, output):
        if args[0].requires_grad:
            graphs.append(weakref.ref(args[0]))
            most[0] = max(most[0], sum(reference() is not None for reference in graphs))

    # what a layer takes in lives as long as the graph of its forward pass
    trainer.model.lm_head.register_forward_hook(count)
    step(trainer)
    assert len(graphs) == 6
    assert most[0] == alive


def test_noise_is_shared_and_depends_on_rows_and_step(make_dpo, preferences) -> None:
    seen = {"policy": [], "reference": []}

    def watch(trainer):
        for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
            model.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: seen[name].append(kwargs["input_ids"].tolist()),
                with_kwargs=True,
            )

    trainer = make_dpo(num_draws=3, two_pass=False, per_device_train_batch_size=2)
    watch(trainer)
    step(trainer)
    assert seen["policy"] == seen["reference"] and len(seen["policy"]) == 3
    assert len({str(draw) for draw in seen["policy"]}) == 3
    # other rows beside them change nothing, another step does
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(4)])
    alone = trainer.data_collator([trainer.train_dataset[0]])
    width = alone["input_ids"].shape[1]
    draws = [trainer._draw_views(inputs, True) for inputs in (batch, alone)]
    for (masked, weight), (own, own_weight) in zip(*draws, strict=True):
        assert torch.equal(masked[[0, 4], :width], own) and torch.equal(weight[[0, 4]], own_weight)
    trainer.state.global_step = 1
    later = trainer._draw_views(alone, True)
    assert any(not torch.equal(new[0], old[0]) for new, old in zip(later, draws[1], strict=True))


def test_scores_are_bounds_on_the_likelihood(make_dpo, preferences) -> None:
    trainer = make_dpo(num_draws=5, eval_dataset=preferences.select([2]))
    metrics = trainer.evaluate()
    batch = next(iter(trainer.get_eval_dataloader()))
    ids, mask = batch["input_ids"], batch["completion_mask"].bool()
    bound = likelihood_bound(
        lambda noisy, masked: masked_cross_entropy(trainer.model, noisy, masked, ids)[0],
        ids,
        mask,
        300,
        num_draws=5,
        row_keys=content_keys(ids, batch["attention_mask"]),
        seed=trainer.args.seed,
    )
    sums = -bound.sum(dim=1)
    assert metrics["eval_logps/chosen"] == pytest.approx(sums[0].item(), rel=1e-5)
    assert metrics["eval_logps/rejected"] == pytest.approx(sums[1].item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"] == pytest.approx(math.log(2))
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == metrics["eval_loss"]


def test_blocks_are_scored_behind_clean_blocks(make_dpo, make_model) -> None:
    model = as_block_causal(make_model())
    model.generation_config.block_length = 4
    trainer = make_dpo(model, num_draws=2, per_device_train_batch_size=2)
    batch = next(iter(trainer.get_train_dataloader()))
    ids, visible = batch["input_ids"], batch["attention_mask"]
    assert (visible.sum(dim=1) % 4 == 0).all() and (ids[:, 4:8] == 299).any(), "filled to the end of a block"
    views = trainer._draw_views(batch, True)
    bounds, _ = trainer._bounds(trainer.model, batch, views)
    expected = torch.zeros_like(bounds)
    for masked, weight in views:
        noisy = ids.masked_fill(masked, 300)
        for row, start in product(range(len(ids)), range(0, ids.shape[1], 4)):
            text = torch.cat([ids[row, :start], noisy[row, start : start + 4]])
            with torch.no_grad():
                logps = model(text.unsqueeze(0), block_length=4).logits[0, start:].log_softmax(1)
            logps = logps.gather(1, ids[row, start : start + 4].unsqueeze(1)).squeeze(1)
            expected[row, start : start + 4] += weight[row] * logps * masked[row, start : start + 4] / 2
    torch.testing.assert_close(bounds, expected, rtol=1e-4, atol=1e-4)

    disturb(trainer.model)
    loss, gradients = step(trainer)
    trainer.args.two_pass = False
    loss_of_one, expected = step(trainer)
    assert loss == pytest.approx(loss_of_one, rel=1e-5) and loss != pytest.approx(math.log(2), rel=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_llada2_learns_preferences(make_dpo) -> None:
    ids = {"vocab_size": 320, "mask_token_id": 300, "eos_token_id": 299, "pad_token_id": 299, "bos_token_id": 295}
    model = tiny_llada2_moe(**ids, block_size=4)
    trainer = make_dpo(model, max_steps=4, learning_rate=1e-3, per_device_train_batch_size=6)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[0]["loss"] == pytest.approx(math.log(2), rel=1e-6) and logs[-1]["rewards/margins"] > 0


def test_a_model_that_was_trained_before_has_a_reference_of_its_own(make_dpo, make_trainer, preferences) -> None:
    trained = make_trainer().model
    trainer = make_dpo(trained, eval_dataset=preferences)
    disturb(trainer.model)
    assert abs(trainer.evaluate()["eval_rewards/margins"]) > 1e-3


def test_hooks_of_a_model_stay(make_dpo, make_model) -> None:
    class Count(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, hook = make_model(), Count()
    # what accelerate does to a model on several devices
    add_hook_to_module(model, hook)
    step(make_dpo(model, num_draws=1))
    assert hook.calls == 1, "once for the policy; the reference has a hook of its own"


def test_a_batch_in_parts_has_the_same_gradient(make_dpo) -> None:
    shared = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0, "num_train_epochs": 1}
    shared |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}
    results = []
    for size, parts in ((6, 1), (4, 2)):
        trainer = make_dpo(per_device_train_batch_size=size, gradient_accumulation_steps=parts, **shared)
        trainer.train()
        results.append((trainer.state.log_history[0]["loss"], parameters_of(trainer.model)))
    for loss, parameters in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        for name, value in parameters.items():
            torch.testing.assert_close(value, results[0][1][name], rtol=1e-4, atol=1e-6)


def test_a_resumed_run_repeats_the_other_bit_for_bit(make_dpo, tmp_path) -> None:
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = make_dpo(**settings)
    whole.train()
    resumed = make_dpo(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in parameters_of(whole.model).items():
        assert torch.equal(resumed.model.get_parameter(name), value), name
    logs = [[entry for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_routers_are_kept_even(make_dpo) -> None:
    model = tiny_llada_moe(vocab_size=320, mask_token_id=300, eos_token_id=299, pad_token_id=299, bos_token_id=295)
    trainer = make_dpo(model, router_aux_loss_coef=0.5)
    loss, gradients = step(trainer)
    trainer.args.two_pass = False
    loss_of_one, expected = step(trainer)
    assert loss == pytest.approx(loss_of_one, rel=1e-5) and loss > math.log(2) + 0.1
    name = next(name for name in expected if "gate.weight" in name or "router" in name)
    torch.testing.assert_close(gradients[name], expected[name], rtol=1e-3, atol=1e-6)
    assert trainer._metrics["train"]["aux_loss"][0] == pytest.approx(loss - math.log(2), rel=1e-4)


@pytest.mark.parametrize("kind", ["messages", "implicit prompt", "stream"])
def test_datasets_of_preferences_are_read(make_dpo, preferences, kind) -> None:
    def message(role, text):
        return {"role": role, "content": text}

    rows = preferences.to_list()
    if kind != "stream":
        rows = [
            {
                "prompt": [message("user", row["prompt"])],
                "chosen": [message("assistant", row["chosen"])],
                "rejected": [message("assistant", row["rejected"])],
            }
            for row in rows
        ]
    if kind == "implicit prompt":
        rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    dataset = IterableDataset.from_generator(lambda: iter(rows)) if kind == "stream" else Dataset.from_list(rows)
    trainer = make_dpo(train_dataset=dataset, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)


EXAMPLES = [
    {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5, 6]},
    {"prompt_ids": [7], "chosen_ids": [8, 0], "rejected_ids": [9]},
]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, [[1, 2, 3, 0, 0, 0], [7, 8, 0], [1, 2, 4, 5, 6, 0], [7, 9, 0]]),
        (
            {"eos_fill": "longest"},
            [[1, 2, 3, 0, 0, 0], [7, 8, 0, 0, 0, 0], [1, 2, 4, 5, 6, 0], [7, 9, 0, 0, 0, 0]],
        ),
        (
            {"eos_fill": "multiple", "eos_fill_length": 4},
            [[1, 2, 3, 0, 0, 0], [7, 8, 0, 0, 0], [1, 2, 4, 5, 6, 0], [7, 9, 0, 0, 0]],
        ),
        ({"eos_fill": "none"}, [[1, 2, 3, 0], [7, 8, 0], [1, 2, 4, 5, 6, 0], [7, 9, 0]]),
        ({"eos_fill": "none", "max_length": 4}, [[1, 2, 3, 0], [7, 8, 0], [1, 2, 4, 5], [7, 9, 0]]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_answers_are_filled_with_end_of_text(settings, rows) -> None:
    batch = DataCollatorForMaskedPreference(eos_token_id=0, pad_token_id=99, pad_to_multiple_of=7, **settings)(
        EXAMPLES
    )
    assert batch["input_ids"].shape == (4, 7)
    for row, (ids, prompt) in enumerate(zip(rows, (2, 1, 2, 1), strict=True)):
        padding = 7 - len(ids)
        assert batch["input_ids"][row].tolist() == ids + [99] * padding
        assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * padding
        assert batch["completion_mask"][row].tolist() == [0] * prompt + [1] * (len(ids) - prompt) + [0] * padding


def test_an_unknown_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="`eos_fill='all'` is unknown; write 'pair', 'longest'"):
        DataCollatorForMaskedPreference(eos_token_id=0, eos_fill="all")


@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precompute_ref_log_probs": True}, "`precompute_ref_log_probs=True` is not supported: the reference is"),
        ({"use_weighting": True}, "`use_weighting=True` is not supported"),
        ({"padding_free": True}, "`padding_free=True` is not supported"),
        ({"ld_alpha": 0.5}, "`ld_alpha=0.5` is not supported"),
        ({"truncation_mode": "keep_end"}, "`truncation_mode='keep_end'` is not supported"),
        ({"disable_dropout": False}, "`disable_dropout=False` is not supported"),
        ({"num_draws": 0}, "`num_draws=0` gives no estimate; write at least 1"),
        ({"use_liger_kernel": True}, "`use_liger_kernel=True` is not supported"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1` is not supported"),
        ({"loss_type": ["aot"]}, "`loss_type='aot'` is not supported: it sorts the pairs"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, "`loss_type='aot_unpaired'` is not supported"),
        ({"loss_type": "sft"}, r"`loss_type=\['sft'\]` alone has no use for preferences"),
        ({"sample_steps": 1}, "write `sample_prompts`"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work_are_refused(make_args, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_args(LLaDADPOConfig, **settings)


def test_arguments_of_trl_are_taken(make_dpo, make_args) -> None:
    trainer = make_dpo(args=make_args(DPOConfig, beta=0.3))
    assert isinstance(trainer.args, LLaDADPOConfig) and trainer.beta == 0.3


def test_what_a_trainer_cannot_use_is_refused(make_dpo, make_model, preferences, tiny_tokenizer, monkeypatch) -> None:
    with pytest.raises(ValueError, match="`compute_metrics` is not supported"):
        make_dpo(compute_metrics=lambda prediction: {})
    with pytest.raises(ValueError, match="The adapter is a PromptTuningConfig"):
        make_dpo(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="`router_aux_loss_coef=0.1` keeps the load of experts even"):
        make_dpo(router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match="`processing_class` is a str; write the tokenizer"):
        make_dpo(processing_class="tokenizer")
    with pytest.raises(ValueError, match="and lacks `rejected`. A preference has"):
        make_dpo(train_dataset=preferences.remove_columns("rejected"))
    masked = Dataset.from_dict({"prompt": ["a"], "chosen": ["b<|mdm_mask|>"], "rejected": ["c"]})
    with pytest.raises(ValueError, match=r"chosen answer 'b.*: chosen_ids, token 1 is the mask token"):
        make_dpo(train_dataset=masked)
    model = make_model()
    model.config.mask_token_id = None
    with pytest.raises(ValueError, match="has no `mask_token_id`"):
        make_dpo(model)
    trainer = make_dpo()
    with pytest.raises(ValueError, match="`return_outputs=True` is not supported"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(ValueError, match="Write `two_pass=False`"):
        trainer._refuse_deepspeed()
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="The tokenizer has no end-of-text token"):
        make_dpo()
