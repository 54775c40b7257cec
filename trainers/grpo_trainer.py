"""Policy optimisation of masked diffusion language models on top of TRL: rollouts, their estimates, a loss."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models.utils import disable_gradient_checkpointing, unwrap_model_for_generation
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import RepeatSampler, get_config_model_id, pad, use_adapter

from ..generation.arguments import merge_settings
from .data.data_checks import first_row
from .diffusion_arguments import as_arguments
from .diffusion_trainer import (
    DiffusionTrainerMixin,
    complete_adapter,
    read_model,
    refuse_virtual_tokens,
    refuse_what_needs_logits,
)
from .grpo_config import OWN_LOSSES, LLaDAGRPOConfig
from .policy_losses import approximate_kl, bgpo_loss, gdsd_loss, grpo_loss, spg_loss, wd1_loss
from .policy_noise import BY_SEQUENCE, ESTIMATORS, Estimate, Settings
from .rollouts import RolloutRecorder, Rollouts, row_generators


# arguments of TRL's trainer that cannot work here -> why
_REFUSED = {
    "tools": "a tool is called between two parts of an answer, which is written as a whole",
    "environment_factory": "an environment is played in turns; reward whole answers with `reward_funcs`",
    "rollout_func": "rollouts come from the sampler of this package; write `generation_kwargs` in the arguments",
}


class _EpochSampler(RepeatSampler):
    """As the base draws prompts, and in every pass over the data what an uninterrupted run would draw in it."""

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class LLaDAGRPOTrainer(DiffusionTrainerMixin, GRPOTrainer):
    """
    Group relative policy optimisation (arXiv 2402.03300) with what a masked diffusion model has in place of log π.

    A drop-in for [`~trl.GRPOTrainer`]: the same prompts, reward functions, groups, losses, PEFT and callbacks. What is
    different:

    - **Rollouts** come from the sampler of the model, with any generation config. Answers draw from generators that
      depend on the seed, the prompt and the place in the batch of all processes, so that neither the number of
      processes nor an interruption changes them. They keep the canvas that the sampler had, filled with end-of-text
      tokens.
    - **Estimates** of log π are those of [`LLaDAGRPOConfig.estimator`], of logits divided by the temperature.
    - **Noise** of an estimate depends on the seed, the row, the rollouts it belongs to and the iteration over them,
      and on nothing else. Old policy, new policy and reference are looked at under the same masks: all ratios are 1
      before the first update.
    - **The loss** is the same however a batch is split over micro-batches and processes.
    - **Checkpoints** hold the rollouts in use, so that a resumed run is the uninterrupted one, bit for bit.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, or the id or path of one.
        reward_funcs (`Callable`, `str`, [`~transformers.PreTrainedModel`] or a list of these):
            Rewards, as TRL's trainer takes them.
        args ([`LLaDAGRPOConfig`], *optional*):
            Arguments. A [`~trl.GRPOConfig`] or [`~transformers.TrainingArguments`] keeps its values.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts: `prompt` as text or messages. Other columns are given to the reward functions.
        eval_dataset (*optional*):
            As `train_dataset`, or a `dict` of such.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. Loaded from where the model comes from if not given.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train. A [`~peft.LoraConfig`] without `target_modules` gets the linear layers of every block or,
            in a model with experts, those of attention.
        kwargs (*optional*):
            Further arguments of [`~trl.GRPOTrainer`]: `reward_processing_classes`, `callbacks`, `optimizers`,
            `quantization_config`.

    Raises:
        ValueError: If a setting cannot work with masked diffusion, or the dataset has no prompts, with what to write
            instead.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from llada import LLaDAGRPOConfig, LLaDAGRPOTrainer

    >>> def right(completions, answer, **kwargs):
    ...     return [float(text.strip() == wanted) for text, wanted in zip(completions, answer)]

    >>> trainer = LLaDAGRPOTrainer(
    ...     model="GSAI-ML/LLaDA-8B-Instruct",
    ...     reward_funcs=right,
    ...     args=LLaDAGRPOConfig("llada-sums", generation_kwargs={"block_length": 32, "steps": 128}),
    ...     train_dataset=Dataset.from_dict({"prompt": ["2 + 2 ="], "answer": ["4"]}),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["llada", "masked-diffusion", "grpo", "trl"]
    _name = "LLaDA-GRPO"

    def __init__(
        self,
        model: "str | PreTrainedModel | Any",
        reward_funcs: Any = None,
        args: LLaDAGRPOConfig | TrainingArguments | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        refuse_what_needs_logits(kwargs)
        for name, reason in _REFUSED.items():
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"`{name}` is not supported: {reason}. Leave it out.")
        model_id = model if isinstance(model, str) else get_config_model_id(model.config)
        if type(args) is GRPOConfig:
            # it has worked out one of the two, and would not take both
            derived: Any = copy.copy(args)
            derived.generation_batch_size = None
            args = derived
        args = as_arguments(args, LLaDAGRPOConfig, f"{Path(model_id).name or 'LLaDA'}-GRPO")
        refuse_virtual_tokens(peft_config, *getattr(model, "peft_config", {}).values())
        config, processing_class = read_model(model, model_id, args, processing_class)
        if processing_class.eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-text token; set `tokenizer.eos_token`.")
        self._check_prompts(train_dataset)
        ref_model, given = None, args
        if args.beta and peft_config is None and isinstance(model, PreTrainedModel):
            # the base loads what the model was loaded from, which may be nothing, or something else by now
            ref_model, args = copy.deepcopy(model), copy.copy(args)
            args.beta, args.sync_ref_model = 0.0, False
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=complete_adapter(peft_config, config),
            **kwargs,
        )
        self._init_diffusion(processing_class.eos_token_id)
        if ref_model is not None:
            args.beta, args.sync_ref_model = given.beta, given.sync_ref_model
            self._take_reference(ref_model)
        # what is estimated of answers has no divergence of tokens
        self.beta = 0.0 if args.estimator in BY_SEQUENCE else args.beta
        # estimates have no logits of all tokens, which a loss of routers would be computed with
        self.aux_loss_enabled = False
        self._refuse_dropout()
        self.generation_config = args.rollout_config(
            eos_token_id=self.eos_token_ids, pad_token_id=processing_class.pad_token_id
        )
        sampled = merge_settings(self._bare_model(), self.generation_config, {})
        args.check_rollouts(sampled)
        if args.estimator == "blocks" and not self.block_length:
            raise ValueError(
                "`estimator='blocks'` bounds the likelihood of what is written block by block, and this model attends "
                "to the whole canvas. Write `estimator='elbo'`."
            )
        self._estimator = ESTIMATORS[args.estimator]
        self._settings = Settings(
            self.mask_token_id,
            num_draws=args.num_draws,
            prompt_mask_ratio=args.prompt_mask_ratio,
            spg_beta=args.spg_beta,
            temperature=args.temperature,
            top_k=args.top_k or None,
            top_p=args.top_p,
            inputs={"block_length": sampled.block_length} if self.block_length else {},
        )
        self._recorder = RolloutRecorder()

    def _bare_model(self) -> PreTrainedModel:
        return self.model.get_base_model() if is_peft_model(self.model) else self.model

    @staticmethod
    def _check_prompts(dataset: Any) -> None:
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise ValueError(
                f"`train_dataset` is a {type(dataset).__name__}; write a `Dataset` or an `IterableDataset` with a "
                "column `prompt`."
            )
        columns = first_row(dataset, "train").keys()
        if "prompt" not in columns:
            raise ValueError(
                f"The train dataset has the columns {sorted(columns)} and lacks `prompt`, text or messages; rename or "
                "map the columns."
            )
        images = sorted({"image", "images"} & columns)
        if images:
            raise ValueError(
                f"The train dataset has the column `{images[0]}`, and the models of this package read text only; "
                "remove it."
            )

    def _take_reference(self, ref_model: PreTrainedModel) -> None:
        self.ref_model = self.accelerator.prepare_model(ref_model.requires_grad_(False), evaluation_mode=True)
        if self.args.sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    def _refuse_dropout(self) -> None:
        rates = [module.p for module in self.model.modules() if isinstance(module, torch.nn.Dropout)]
        rates.append(getattr(self.model.config, "attention_dropout", None) or 0.0)
        if any(rates) and not (self.args.disable_dropout and not rates[-1]):
            raise ValueError(
                f"The model drops out with probability {max(rates)}, and old and new policy are compared under the "
                "same noise. Write `disable_dropout=True` and `model.config.attention_dropout = 0.0`."
            )

    def _describe_objective(self) -> dict[str, Any]:
        args = self.args
        return {
            "loss": args.loss_type,
            "estimate of log π": args.estimator,
            "answers per prompt": args.num_generations,
            "temperature": args.temperature,
        }

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return _EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    @property
    def _round(self) -> int | str:
        """Which rollouts these are."""
        if not self.model.training:
            return "eval"
        return self._step // (self.args.steps_per_generation * self.num_iterations)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], None]:
        rows = [torch.tensor(ids) for ids in prompt_ids]
        padding = {"padding_side": "left", "pad_to_multiple_of": self.pad_to_multiple_of}
        inputs = {
            "input_ids": pad(rows, padding_value=self._tokenizer.pad_token_id, **padding),
            "attention_mask": pad([torch.ones_like(row) for row in rows], padding_value=0, **padding),
        }
        # that of the base generates
        inputs = Trainer._prepare_inputs(self, inputs)
        prompt_length, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
        rank, _ = self._data_parallel
        generators = row_generators(prompt_ids, rank * len(prompt_ids), device, self.args.seed, "rollout", self._round)
        with (
            profiling_context(self, "transformers.generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            model.generate(
                **inputs,
                generation_config=self.generation_config,
                tokenizer=self._tokenizer,
                generator=generators,
                listeners=[self._recorder],
            )
        recorder, places = self._recorder, slice(prompt_length, None)
        answers = recorder.canvas.tokens[:, places]
        ended = torch.isin(answers, torch.tensor(self.eos_token_ids, device=device))
        lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, answers.shape[1])
        # a canvas of whole blocks is longer than what was asked for
        lengths = torch.minimum(lengths, recorder.canvas.ends - prompt_length).clamp(max=self.max_completion_length)
        after = torch.arange(answers.shape[1], device=device) >= lengths.unsqueeze(1)
        canvas_mask = recorder.canvas.attention_mask
        self._canvas = {
            "completion_ids": answers.masked_fill(after, self._tokenizer.eos_token_id),
            "completion_mask": (~after).long(),
            "canvas_mask": torch.ones_like(answers) if canvas_mask is None else canvas_mask[:, places],
        }
        if self.args.estimator == "trajectory":
            self._canvas |= {"drawn": recorder.drawn[:, places], "step_of": recorder.step_of[:, places]}
        cut = zip(answers.tolist(), lengths.tolist(), strict=True)
        return [tokens[:length] for tokens, length in cut], None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # what the base made of estimates that it does not have
        output = {name: value for name, value in output.items() if not name.endswith("per_token_logps")}
        counts = output["completion_mask"].any(dim=1, keepdim=True)
        output |= self._canvas | {"completion_mask": self._canvas["completion_mask"] * counts}
        args, advantages = self.args, self.accelerator.gather(output["advantages"])
        output["log_total"], output["log_total_of_opposites"] = advantages.logsumexp(0), (-advantages).logsumexp(0)
        if args.estimator == "trajectory":
            output["num_items_in_batch"] = self.accelerator.gather(((output["step_of"] >= 0) & counts).sum()).sum()
        rollouts = Rollouts.of(output)
        is_old = args.gradient_accumulation_steps % (args.steps_per_generation * self.num_iterations) != 0
        if is_old and self.model.training and args.loss_type not in ("spg", "wd1"):
            output["old_logps"] = self._estimate_all(self.model, rollouts)
        if args.beta:
            with self._reference() as reference:
                output["ref_logps"] = self._estimate_all(reference, rollouts)
        return output

    @contextmanager
    def _reference(self) -> Iterator[torch.nn.Module]:
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield self.model

    @torch.no_grad()
    def _estimate_all(self, model: torch.nn.Module, rollouts: Rollouts) -> torch.Tensor:
        """Estimates under the noise of each iteration, `(batch, iterations, length)` or `(batch, iterations)`."""
        training = self.model.training
        args, num_rows = self.args, len(rollouts.prompt_ids)
        size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
        parts = [rollouts[start : start + size] for start in range(0, num_rows, size)]
        iterations = range(self.num_iterations if training else 1)
        with self.accelerator.autocast(), disable_gradient_checkpointing(model, args.gradient_checkpointing_kwargs):
            estimates = [
                torch.cat([self._estimate(model, part, iteration).logps for part in parts]) for iteration in iterations
            ]
        # what is cast without gradients must not be found when there are some
        torch.clear_autocast_cache()
        return torch.stack(estimates, dim=1)

    def _estimate(self, model: Callable, rollouts: Rollouts, iteration: int) -> Estimate:
        keys = rollouts.keys(self.args.seed, self._round, iteration)
        return self._estimator(model, rollouts, keys, self._settings)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        The loss of one micro-batch.

        Args:
            model (`torch.nn.Module`):
                The policy, possibly wrapped.
            inputs (`dict`):
                Rollouts, their advantages, and estimates of the old policy and the reference.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Not supported.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Not used, the rollouts say how many tokens they have.

        Returns:
            `torch.Tensor`: The loss, a scalar.

        Raises:
            ValueError: If outputs are asked for.
        """
        if return_outputs:
            raise ValueError("`return_outputs=True` is not supported: logits are computed for masked tokens only.")
        loss = self._compute_loss(model, inputs)
        if self.model.training:
            self._watch(loss)
        return loss

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        training = self.model.training
        iteration = self._step // self.args.steps_per_generation % self.num_iterations if training else 0
        estimate = self._estimate(model, Rollouts.of(inputs), iteration)
        old, ref = (inputs[name][:, iteration] if name in inputs else None for name in ("old_logps", "ref_logps"))
        if self.args.loss_type in OWN_LOSSES or (estimate.logps.dim() == 1 and self.args.loss_type == "grpo"):
            return self._own_loss(estimate, old, ref, inputs)
        return self._loss_of_base(estimate, old, ref, inputs)

    def _loss_of_base(
        self, estimate: Estimate, old: torch.Tensor | None, ref: torch.Tensor | None, inputs: dict[str, Any]
    ) -> torch.Tensor:
        def by_token(logps: torch.Tensor) -> torch.Tensor:
            if logps.dim() == 2:
                return logps
            return (logps / estimate.lengths.clamp(min=1)).unsqueeze(1) * (estimate.weights > 0)

        advantages = inputs["advantages"]
        if self.args.loss_type in ("grpo", "sapo"):
            # they divide by the tokens that are looked at, which are some of an answer
            advantages = advantages * estimate.weights.sum(dim=1) / estimate.lengths.clamp(min=1)
        given = inputs | {"completion_mask": estimate.weights, "advantages": advantages}
        if old is not None:
            given["old_per_token_logps"] = by_token(old)
        if ref is not None:
            given["ref_per_token_logps"] = by_token(ref)
        loss = super()._compute_loss(by_token(estimate.logps), given)
        for metrics in self._metrics.values():
            # of logits that do not exist here
            metrics.pop("entropy", None)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        # the base asks of rollouts that lack their canvas, and in its loss, which gets the estimates for a model
        nothing = input_ids.new_zeros((len(input_ids), logits_to_keep), dtype=torch.float32)
        return model if isinstance(model, torch.Tensor) else nothing, nothing, None

    def _own_loss(
        self, estimate: Estimate, old: torch.Tensor | None, ref: torch.Tensor | None, inputs: dict[str, Any]
    ) -> torch.Tensor:
        args, training, num_processes = self.args, self.model.training, self._data_parallel[1]
        advantages, lengths = inputs["advantages"], estimate.lengths
        parts = self.current_gradient_accumulation_steps if training else 1
        # of the answers of all processes, which share one generation, how many belong to a step
        share = parts / args.steps_per_generation if training else 1
        if args.loss_type == "spg":
            assert estimate.upper is not None, "of `bounds`, which this loss needs"
            loss = spg_loss(estimate.logps, estimate.upper, advantages, lengths, args.spg_mix) * lengths.sum()
            return loss * num_processes / (inputs["num_items_in_batch"].clamp(min=1) * share)
        if args.loss_type == "wd1":
            logps, weights = estimate.logps, estimate.weights
            if logps.dim() == 1:
                logps, weights = logps.unsqueeze(1), (lengths > 0).unsqueeze(1)
            log_totals = (inputs["log_total"], inputs["log_total_of_opposites"])
            return wd1_loss(logps * weights, advantages, weights, log_totals) * num_processes / share

        def by_sequence(logps: torch.Tensor) -> torch.Tensor:
            return logps if logps.dim() == 1 else (logps * estimate.weights).sum(dim=1)

        logps = by_sequence(estimate.logps)
        old = logps.detach() if old is None else by_sequence(old)
        clip = {"epsilon_low": self.epsilon_low, "epsilon_high": self.epsilon_high}
        if args.loss_type == "bgpo":
            return bgpo_loss(logps, old, advantages, lengths, **clip) / parts
        if args.loss_type == "gdsd":
            return gdsd_loss(logps, old, advantages, lengths, args.gdsd_psi, **clip) / parts
        if ref is not None:
            kl = (approximate_kl(logps.detach(), ref, args.kl) / lengths.clamp(min=1)).mean()
            self._metrics["train" if training else "eval"]["kl"].append(self.accelerator.gather(kl).mean().item())
        return (
            grpo_loss(logps, old, advantages, None, **clip, ref_logps=ref, beta=args.beta, kl=args.kl, lengths=lengths)
            / parts
        )

    def _state_file(self, folder: str) -> Path:
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(folder) / f"rollouts{rank}.pt"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        is_used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        state = {
            "step": self._step,
            "rollouts": None if is_used_up else self._buffered_inputs,
            "metrics": dict(self._metrics["train"]),
        }
        torch.save(state, self._state_file(output_dir))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        self._step, self._buffered_inputs = 0, None
        self._metrics["train"].clear()
        if resume_from_checkpoint is not None:
            path = self._state_file(resume_from_checkpoint)
            if not path.exists():
                raise ValueError(
                    f"The checkpoint {resume_from_checkpoint} lacks {path.name}: every process goes on with the "
                    "rollouts that it has written. Resume with as many processes as there were."
                )
            state = torch.load(path, map_location=self.args.device, weights_only=True)
            self._step, self._buffered_inputs = state["step"], state["rollouts"]
            self._metrics["train"].update(state["metrics"])
        return super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )


__all__ = ["LLaDAGRPOTrainer"]
