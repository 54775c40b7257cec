"""Policy optimisation: rollouts, shared noise, batches in parts, resumption, and what is refused."""

import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from tiny_models import tiny_llada2_moe
from training_probes import parameters_of
from trl import GRPOConfig

from llada import LLaDAGRPOConfig, LLaDAGRPOTrainer
from llada.trainers.policy_losses import approximate_kl, bgpo_loss, gdsd_loss, grpo_loss, spg_loss, wd1_loss
from llada.trainers.policy_noise import ESTIMATORS, _choose_steps
from llada.trainers.rollouts import Rollouts


# transformers reads the config.json of a checkpoint without knowing its class
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")

MASK, EOS = 300, 299
# every estimator with a loss that takes it
LOSSES = {"bounds": {"loss_type": "spg"}, "blocks": {}}


def letters(completions, **kwargs) -> list[float]:
    """A reward that nearly every answer gets another value of."""
    return [sum(ord(letter) % 7 for letter in text) / 10 for text in completions]


@pytest.fixture
def prompts():
    return Dataset.from_dict({"prompt": [f"{n}+{n}=" for n in (3, 40, 500, 6)], "answer": ["6", "80", "1000", "12"]})


@pytest.fixture
def make_grpo(make_model, make_args, tiny_tokenizer, prompts):
    """Makes a trainer. Keywords are arguments of the trainer, or of its configuration."""

    def make(model=None, train_dataset=None, **settings):
        names = ("eval_dataset", "peft_config", "processing_class", "compute_metrics", "tools", "environment_factory")
        names += ("rollout_func",)
        given = {name: settings.pop(name) for name in names if name in settings}
        defaults = {"max_completion_length": 6, "num_generations": 4, "lr_scheduler_type": "constant"}
        return LLaDAGRPOTrainer(
            model=make_model() if model is None else model,
            reward_funcs=settings.pop("reward_funcs", letters),
            args=settings.pop("args", None) or make_args(LLaDAGRPOConfig, **(defaults | settings)),
            train_dataset=prompts if train_dataset is None else train_dataset,
            **{"processing_class": tiny_tokenizer, **given},
        )

    return make


def roll_out(trainer) -> dict[str, torch.Tensor]:
    """The rollouts of the first batch of prompts."""
    trainer.model.train()
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def loss_of(trainer, inputs) -> torch.Tensor:
    trainer.current_gradient_accumulation_steps = 1
    return trainer.compute_loss(trainer.model, inputs)


def estimate(trainer, rollouts, iteration=0):
    return trainer._estimate(trainer.model, rollouts, iteration)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "blocks"])
@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_policies_are_trained(make_grpo, estimator, kind) -> None:
    settings = LOSSES.get(estimator, {"beta": 0.04})
    settings |= {"peft_config": LoraConfig()} if kind == "LoRA" else {}
    trainer = make_grpo(
        estimator=estimator, num_iterations=2, steps_per_generation=2, learning_rate=1e-2, max_steps=3, **settings
    )
    before = parameters_of(trainer.model)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3 and all(math.isfinite(entry["loss"]) for entry in logs)
    if "beta" in settings:
        # policy, old policy and reference see the same noise
        assert logs[0]["kl"] == 0 < logs[2]["kl"]
    assert "entropy" not in logs[0]
    trained = {name for name, value in parameters_of(trainer.model).items() if not torch.equal(value, before[name])}
    assert trained and all("lora" in name or kind == "full" for name in trained)


def test_blocks_are_trained(make_grpo) -> None:
    model = tiny_llada2_moe(vocab_size=320, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS, bos_token_id=295)
    model.generation_config.block_length = 4
    trainer = make_grpo(model, estimator="blocks", beta=0.1, gradient_accumulation_steps=2, max_steps=1)
    before = parameters_of(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0
    assert any(not torch.equal(value, before[name]) for name, value in parameters_of(trainer.model).items())
    with pytest.raises(ValueError, match="`estimator='blocks'` bounds the likelihood of what is written block by"):
        make_grpo(estimator="blocks")


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in ("blocks", "bounds")])
def test_old_and_new_policy_see_the_same_noise(make_grpo, estimator) -> None:
    trainer = make_grpo(estimator=estimator, num_iterations=3, temperature=0.7)
    inputs = roll_out(trainer)
    rollouts = Rollouts.of(inputs)
    for iteration in range(3):
        torch.testing.assert_close(estimate(trainer, rollouts, iteration).logps, inputs["old_logps"][:, iteration])
    is_drawn = estimator in ("diffu_grpo", "coupled", "elbo")
    assert torch.equal(inputs["old_logps"][:, 0], inputs["old_logps"][:, 1]) != is_drawn
    # neither other rows nor padding change it, other rollouts do
    later, first = rollouts[2:3], estimate(trainer, rollouts, 1)
    torch.testing.assert_close(estimate(trainer, later, 1).logps[0], first.logps[2])
    trainer._step = 3
    assert torch.allclose(estimate(trainer, rollouts, 1).logps, first.logps) != is_drawn


def test_what_follows_the_end_stays_on_the_canvas(make_grpo) -> None:
    model_inputs = []
    trainer = make_grpo(
        estimator="elbo",
        reward_funcs=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
        max_completion_length=12,
    )
    # an end of text is likely, so that answers have different lengths
    trainer.model.lm_head.weight.data[EOS] *= 60
    inputs = roll_out(trainer)
    lengths = inputs["completion_mask"].sum(dim=1)
    assert inputs["completion_ids"].shape == (4, 12) and len(lengths.unique()) > 1
    for tokens, length in zip(inputs["completion_ids"].tolist(), lengths.tolist(), strict=True):
        assert EOS not in tokens[: length - 1] and tokens[length:] == [EOS] * (12 - length)
    assert inputs["num_items_in_batch"] == lengths.sum()
    trainer.model.register_forward_pre_hook(lambda module, args, kwargs: model_inputs.append(kwargs), with_kwargs=True)
    loss_of(trainer, inputs)
    (seen,) = model_inputs
    prompt = inputs["prompt_mask"].shape[1]
    answers = seen["input_ids"][:, prompt:].unflatten(0, (4, -1))
    after = inputs["completion_mask"].unsqueeze(1).expand_as(answers) == 0
    assert seen["attention_mask"][:, prompt:].all() and (answers[after] == MASK).all()
    assert not seen["logits_to_keep"][:, prompt:].unflatten(0, (4, -1))[after].any()


def test_steps_are_those_of_the_sampler(make_grpo, monkeypatch) -> None:
    trainer = make_grpo(
        estimator="trajectory", temperature=0.8, top_k=5, generation_kwargs={"block_length": 6, "steps": 3}
    )
    traces = []
    generate = trainer.model.generate

    def record(**kwargs):
        output = generate(**kwargs, output_trace=True)
        traces.extend(output.trace)
        return output.sequences

    monkeypatch.setattr(trainer.model, "generate", record)
    inputs = roll_out(trainer)
    assert [row[-6:] for row in (trace.step_of for trace in traces)] == inputs["step_of"].tolist()
    logps = estimate(trainer, Rollouts.of(inputs)).logps
    for row, trace in enumerate(traces):
        start, frames = len(trace.start) - 6, list(trace.frames())
        for event in trace.events:
            logits = trainer.model(torch.tensor([frames[event.step]])).logits[0].double() / 0.8
            logits[:, MASK] = -math.inf
            for position, token in zip(event.positions, event.tokens, strict=True):
                best = logits[position].topk(5)
                place = best.indices.tolist().index(token)
                expected = best.values.log_softmax(0)[place]
                assert logps[row, position - start].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("estimator", ["trajectory", "left_to_right"])
def test_some_steps_stand_for_all(make_grpo, estimator) -> None:
    trainer = make_grpo(estimator=estimator, generation_kwargs={"steps": 6} if estimator == "trajectory" else None)
    inputs = roll_out(trainer)
    rollouts = Rollouts.of(inputs)
    everything = estimate(trainer, rollouts)
    assert (everything.weights == 1).all()
    inputs["advantages"] = torch.tensor([1.0, 2.0, -0.5, 0.3])
    exact = loss_of(trainer, inputs)
    trainer._settings.num_draws = 2
    part = estimate(trainer, rollouts)
    looked_at = part.weights > 0
    assert (looked_at.sum(dim=1) == 2).all()
    torch.testing.assert_close(part.logps[looked_at], everything.logps[looked_at])
    torch.testing.assert_close(loss_of(trainer, inputs), exact)
    # each is looked at as often as it counts less
    step_of = torch.tensor([[0, 0, 1, 2, -1, 3]])
    total = torch.zeros(6)
    for key in range(2000):
        steps, factor = _choose_steps(step_of, [str(key).encode()], 3)
        total += torch.isin(step_of[0], steps[0]) * factor[0]
    torch.testing.assert_close(total / 2000, (step_of[0] >= 0).float(), rtol=0, atol=0.05)


@pytest.mark.parametrize("loss_type", ["grpo", "wd1", "bgpo", "gdsd"])
@pytest.mark.parametrize("estimator", ["diffu_grpo", "elbo"])
def test_losses_are_those_of_policy_losses(make_grpo, estimator, loss_type) -> None:
    beta = 0.3 if loss_type == "grpo" else 0.0
    trainer = make_grpo(
        estimator=estimator, loss_type=loss_type, num_iterations=2, beta=beta, use_bias_correction_kl=False
    )
    inputs = roll_out(trainer)
    for parameter in trainer.model.parameters():
        parameter.data *= 1.05
    said = estimate(trainer, Rollouts.of(inputs))
    mask, advantages = inputs["completion_mask"], inputs["advantages"]
    lengths, old = mask.sum(dim=1), inputs["old_logps"][:, 0] if "old_logps" in inputs else None
    if loss_type == "wd1":
        of_tokens = (said.logps, mask) if estimator == "diffu_grpo" else (said.logps[:, None], lengths[:, None] > 0)
        expected = wd1_loss(of_tokens[0], advantages, of_tokens[1])
    elif loss_type == "grpo":
        ref = inputs["ref_logps"][:, 0]
        if estimator == "elbo":
            expected = grpo_loss(said.logps, old, advantages, lengths=lengths, ref_logps=ref, beta=beta, kl="k2")
            kl = (approximate_kl(said.logps, ref, "k2") / lengths).mean()
        else:
            rows = [
                grpo_loss(said.logps[[n]], old[[n]], advantages[[n]], mask[[n]], ref_logps=ref[[n]], beta=beta)
                for n in range(4)
            ]
            expected, kl = sum(rows) / 4, (approximate_kl(said.logps, ref, "k3") * mask).sum() / mask.sum()
    else:
        sums = [logps if estimator == "elbo" else (logps * mask).sum(dim=1) for logps in (said.logps, old)]
        expected = {"bgpo": bgpo_loss, "gdsd": gdsd_loss}[loss_type](
            *sums, advantages, lengths, epsilon_low=0.2, epsilon_high=0.2
        )
    assert loss_of(trainer, inputs).item() == pytest.approx(expected.item(), rel=1e-5)
    if loss_type == "grpo":
        assert trainer._metrics["train"]["kl"][-1] == pytest.approx(kl.item(), rel=1e-4)


def test_the_sandwich_is_that_of_policy_losses(make_grpo) -> None:
    trainer = make_grpo(estimator="bounds", loss_type="spg", num_draws=3, spg_mix=0.4)
    inputs = roll_out(trainer)
    said = estimate(trainer, Rollouts.of(inputs))
    expected = spg_loss(said.logps, said.upper, inputs["advantages"], said.lengths, 0.4)
    assert loss_of(trainer, inputs).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "loss_type"),
    [("diffu_grpo", "grpo"), ("trajectory", "dapo"), ("elbo", "grpo"), ("elbo", "wd1"), ("bounds", "spg")],
)
def test_a_batch_in_parts_has_the_same_gradient(make_grpo, estimator, loss_type) -> None:
    shared = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0}
    results = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = make_grpo(
            estimator=estimator,
            loss_type=loss_type,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            **shared,
        )
        trainer.train()
        results.append((trainer.state.log_history[0]["reward"], parameters_of(trainer.model)))
    (reward, expected), (reward_in_parts, parameters) = results
    assert reward == reward_in_parts
    for name, value in parameters.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_a_resumed_run_repeats_the_other_bit_for_bit(make_grpo, prompts, tmp_path, kind) -> None:
    # one pass has 8 steps: it goes on in the second, with rollouts that were used for one of two iterations
    settings = {"max_steps": 13, "save_strategy": "steps", "save_steps": 11, "logging_steps": 2, "num_iterations": 2}
    settings |= {"estimator": "coupled", "beta": 0.1, "learning_rate": 1e-2, "steps_per_generation": 1}

    def make():
        rows = prompts.to_list()
        stream = IterableDataset.from_generator(lambda: iter(rows))
        return make_grpo(train_dataset=stream if kind == "stream" else None, **settings)

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-11"))
    for name, value in parameters_of(whole.model).items():
        assert torch.equal(resumed.model.get_parameter(name), value), name
    # the loss is a mean over steps of which transformers forgets those before the checkpoint
    left_out = {"step_time", "loss"}
    logs = [
        [{key: value for key, value in entry.items() if key not in left_out} for entry in run.state.log_history[:-1]]
        for run in (whole, resumed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 6


def test_rollouts_of_a_checkpoint_have_to_be_there(make_grpo, tmp_path) -> None:
    trainer = make_grpo(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    state = checkpoint / "rollouts.pt"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="rollouts.pt was written in part"):
        make_grpo().train(resume_from_checkpoint=str(checkpoint))
    state.unlink()
    with pytest.raises(ValueError, match="lacks rollouts.pt: every process goes on with the rollouts"):
        make_grpo(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def test_evaluations_repeat_and_use_nothing_up(make_grpo, prompts) -> None:
    trainer = make_grpo(eval_dataset=prompts, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    again = trainer.evaluate()
    assert metrics["eval_reward"] == again["eval_reward"] and metrics["eval_loss"] == again["eval_loss"]
    assert trainer._step == 0


def test_conversations_and_columns_reach_the_reward(make_grpo, prompts) -> None:
    seen = []

    def reward(prompts, completions, answer, **kwargs):
        seen.append((prompts[0], completions[0], answer))
        return [0.0, 1.0] * (len(answer) // 2)

    rows = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    roll_out(make_grpo(train_dataset=rows, reward_funcs=reward))
    ((prompt, completion, answer),) = seen
    assert prompt[0]["content"] in prompts["prompt"] and completion[0]["role"] == "assistant"
    assert answer == [prompts["answer"][prompts["prompt"].index(prompt[0]["content"])]] * 4


@pytest.mark.parametrize("estimator", ["elbo", "left_to_right", "trajectory"])
def test_truncated_answers_can_be_left_out(make_grpo, estimator) -> None:
    trainer = make_grpo(mask_truncated_completions=True, estimator=estimator, loss_type="dapo", max_steps=1)
    trainer.model.lm_head.weight.data[EOS] = 0
    inputs = roll_out(trainer)
    assert not (inputs["completion_ids"] == EOS).any() and not inputs["completion_mask"].any()
    # there is nothing to learn from
    loss_of(trainer, inputs).backward()
    assert all(not parameter.grad.any() for parameter in trainer.model.parameters())


def test_arguments_of_trl_are_taken(make_grpo, make_args) -> None:
    trainer = make_grpo(args=make_args(GRPOConfig, beta=0.3, num_generations=4, max_completion_length=4))
    assert isinstance(trainer.args, LLaDAGRPOConfig) and trainer.beta == 0.3 and trainer.loss_type == "dapo"
    assert trainer.ref_model is not trainer.model


def test_a_reference_follows_if_it_is_asked_to(make_grpo) -> None:
    settings = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = make_grpo(max_steps=1, learning_rate=1e-2, **settings)
    trainer.train()
    for name, value in parameters_of(trainer.model).items():
        torch.testing.assert_close(trainer.ref_model.get_parameter(name), value)


def test_what_a_trainer_cannot_use_is_refused(make_grpo, make_model, prompts, tiny_tokenizer) -> None:
    with pytest.raises(ValueError, match="`compute_metrics` is not supported"):
        make_grpo(compute_metrics=lambda prediction: {})
    with pytest.raises(ValueError, match="`tools` is not supported: a tool is called between two parts"):
        make_grpo(tools=[len])
    with pytest.raises(ValueError, match="`environment_factory` is not supported: an environment is played in turns"):
        make_grpo(environment_factory=list)
    with pytest.raises(ValueError, match="`rollout_func` is not supported: rollouts come from the sampler"):
        make_grpo(rollout_func=print)
    with pytest.raises(ValueError, match="The adapter is a PromptTuningConfig"):
        make_grpo(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"has the columns \['answer'\] and lacks `prompt`"):
        make_grpo(train_dataset=prompts.remove_columns("prompt"))
    with pytest.raises(ValueError, match="has the column `image`, and the models of this package read text only"):
        make_grpo(train_dataset=prompts.rename_column("answer", "image"))
    with pytest.raises(ValueError, match="`train_dataset` is a list; write a `Dataset`"):
        make_grpo(train_dataset=[{"prompt": "a"}])
    model = make_model()
    model.config.attention_dropout = 0.1
    with pytest.raises(ValueError, match="The model drops out with probability 0.1"):
        make_grpo(model)
    with pytest.raises(ValueError, match="The model drops out with probability 0.2"):
        make_grpo(peft_config=LoraConfig(lora_dropout=0.2), disable_dropout=False)
    model = make_model()
    model.generation_config.cfg_scale = 1.0
    with pytest.raises(ValueError, match="`cfg_scale=1.0` is not supported with `estimator='trajectory'`"):
        make_grpo(model, estimator="trajectory")
    trainer = make_grpo()
    with pytest.raises(ValueError, match="`return_outputs=True` is not supported"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="The tokenizer has no end-of-text token"):
        make_grpo()
