"""What the trainers of masked diffusion models share: noise, loss, metrics and evaluation."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PromptLearningConfig
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedConfig
from transformers.trainer_utils import EvalLoopOutput, SchedulerType
from transformers.utils import logging

from ..export.model_card import create_model_card
from ..generation.configuration_diffusion import DEFAULTS
from ..modeling_llada.checkpoint_layouts import in_memory_names
from ..modeling_llada.masked_diffusion import (
    content_keys,
    likelihood_bound,
    masked_cross_entropy,
    noise_generator,
    reduce_loss,
)
from .data_collator import DataCollatorForMaskedDiffusion
from .diffusion_arguments import MaskedDiffusionArguments
from .resumption import ResumableTrainerMixin


logger = logging.get_logger(__name__)


def find_mask_token_id(config: PreTrainedConfig) -> int:
    """
    The id of the mask token.

    Raises:
        ValueError: If the model has none, that is, if it is no masked diffusion model.
    """
    mask_token_id = getattr(config, "mask_token_id", None)
    if mask_token_id is None:
        raise ValueError(
            f"The configuration of this `{config.model_type}` model has no `mask_token_id`, so it is no masked "
            "diffusion model. Set `model.config.mask_token_id`, or use TRL's own trainers for a causal model."
        )
    return mask_token_id


def refuse_virtual_tokens(*peft_configs: Any) -> None:
    """
    Complains about adapters that put tokens before those of the row.

    Raises:
        ValueError: If a configuration describes one.
    """
    for peft_config in peft_configs:
        if isinstance(peft_config, PromptLearningConfig):
            raise ValueError(
                f"The adapter is a {type(peft_config).__name__}, whose virtual tokens shift the positions that the "
                "masks refer to. Write a `LoraConfig`."
            )


def stage_factor(step: int, *, warmup: int, total: int, stages: Sequence[tuple[float, float]]) -> float:
    """
    Factor of the learning rate: linear warm-up, then straight lines between the points `(share of training, factor)`.
    """
    shares, factors = zip(*stages, strict=True)
    warm = min(1.0, step / warmup) if warmup else 1.0
    return warm * float(np.interp(step / max(total, 1), shares, factors))


def _token_sums(losses: torch.Tensor, correct: torch.Tensor, masked: torch.Tensor, eos: torch.Tensor) -> torch.Tensor:
    """Per row, for content and for end-of-text tokens: cross entropy, right answers and number of masked tokens."""
    values = torch.stack([losses, correct.to(losses.dtype), masked.to(losses.dtype)])
    of_eos = (values * eos).sum(dim=2)
    return torch.stack([values.sum(dim=2) - of_eos, of_eos]).permute(2, 0, 1)  # [batch, 2, 3]


class MaskedDiffusionTrainerMixin(ResumableTrainerMixin):
    """
    Turns a trainer into one of masked diffusion models. To be inherited before [`~transformers.Trainer`] or a
    subclass; `__init__` has to call `_init_diffusion` when the base is initialised.

    - **Noise** is a function of (seed, step, micro-step, data-parallel rank), so that a resumed run repeats it and no
      two processes share it. Strata of the mask ratio span the micro-batches and processes of a step.
    - **The loss** is divided by what the whole accumulated batch of all processes holds: gradients are those of one
      large batch, also if its last part is smaller.
    - **Attention** is that of generation. A block-causal model (LLaDA2) attends to its own block and to earlier ones,
      in blocks of the length that it generates with. In generation earlier blocks are clean; here they are as noisy as
      the rest, so that the loss bounds the likelihood, but is not the published objective of block diffusion.
    - **Evaluation** gives the bound on the negative log-likelihood, the same in every call and for every batch size.
    """

    args: MaskedDiffusionArguments
    # `compute_loss` divides by the whole accumulated batch
    loss_is_scaled_for_ga = True
    # learning rate of the paper, as points (share of training, factor of the peak)
    _stages: Sequence[tuple[float, float]] = ((0.0, 1.0), (1.0, 1.0))
    _tag_names = ["llada", "masked-diffusion"]

    def _init_diffusion(self, eos_token_id: int | None) -> None:
        self.mask_token_id = find_mask_token_id(self.model.config)
        self.forward_process = self.args.forward_process(self.mask_token_id)
        # no token has this id if there is no end of text
        self._eos_token_id = -1 if eos_token_id is None else eos_token_id
        # the items of a batch are counted here: the base shifts labels if the class is called "...ForCausalLM"
        self.model_accepts_loss_kwargs = False
        self._attention = {}
        config = self.model.config
        if getattr(config, "block_causal", False):
            length = self.model.generation_config.block_length or config.block_size or DEFAULTS["block_length"]
            self._attention["block_length"] = length
        self._micro_step = self._rows_before = self._rows_in_step = 0
        self._train_sums: torch.Tensor | None = None
        self._evaluated_rows: list[torch.Tensor] = []
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "Context and sequence parallelism are not supported: both assume causal attention. Write `cp_size=1` "
                "and `sp_size=1` in the parallelism configuration; data and tensor parallelism work."
            )

    @property
    def _data_parallel(self) -> tuple[int, int]:
        """Rank and number of the processes that hold different data."""
        group = self.get_tp_size()
        return self.accelerator.process_index // group, self.accelerator.num_processes // group

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        if self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not self.args.lr_scheduler_kwargs:
            factor = partial(stage_factor, warmup=warmup, total=num_training_steps, stages=self._stages)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        if 4 * warmup > num_training_steps:
            self._report_warmup(warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _report_warmup(self, warmup: int, total: int) -> None:
        peak = self.args.learning_rate
        if warmup < total:
            outcome = f"the peak of {peak:g} is reached for {total - warmup} of them at most"
        else:
            outcome = (
                f"the learning rate stays below {peak * total / warmup:.3g} and never reaches its peak of {peak:g}"
            )
        logger.warning(
            f"`warmup_steps={self.args.warmup_steps:g}` takes {warmup} of the {total} steps of this run: {outcome}. A "
            f"short run needs a shorter warm-up, e.g. `warmup_steps={max(total // 10, 1)}`, or a share of all steps, "
            "`warmup_steps=0.1`."
        )

    def _adapt_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Hook for what must be the same for all micro-batches and processes of a step."""
        return batches

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self._adapt_batches(batches)
        self._micro_step = self._rows_before = 0
        self._rows_in_step = sum(len(batch["labels"]) for batch in batches)
        if self.args.loss_normalization == "token":
            num_items = sum((batch["labels"] != -100).sum() for batch in batches)
        else:
            num_items = self._rows_in_step
        num_items = torch.as_tensor(num_items, device=device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            num_items = self.accelerator.reduce(num_items, "sum") // self.get_tp_size()
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        The training loss of one micro-batch. A model with experts adds what keeps their load even, if its
        configuration has `output_router_logits`, which TRL's trainers set if `router_aux_loss_coef` is not 0.

        Args:
            model (`torch.nn.Module`):
                The model, possibly wrapped.
            inputs (`dict`):
                A batch of [`DataCollatorForMaskedDiffusion`].
            return_outputs (`bool`, *optional*, defaults to `False`):
                Not supported.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Sequences or, with `loss_normalization="token"`, trainable tokens of the accumulated batch.

        Returns:
            `torch.Tensor`: The loss, a scalar.

        Raises:
            ValueError: If outputs are asked for: logits are computed for masked tokens only.
        """
        if return_outputs:
            raise ValueError("`return_outputs=True` is not supported: logits are computed for masked tokens only.")
        inputs = dict(inputs)
        input_ids, labels = inputs.pop("input_ids"), inputs.pop("labels")
        maskable = labels != -100
        rank, num_ranks = self._data_parallel
        key = (self.args.seed, "train", self.state.global_step)
        batch = self.forward_process(
            input_ids,
            maskable,
            noise_generator(*key, self._micro_step, rank),
            noise_generator(*key),
            offset=rank * self._rows_in_step + self._rows_before,
            total=max(num_ranks * self._rows_in_step, len(input_ids)),
        )
        self._micro_step += 1
        self._rows_before += len(input_ids)
        copies = len(batch.masked) // len(input_ids)
        if copies > 1:
            labels = labels.repeat(copies, 1)
            inputs = {name: torch.cat([value] * copies) for name, value in inputs.items()}

        inputs |= self._attention
        outputs = []

        def record(**arguments):
            outputs.append(model(**arguments))
            return outputs[0]

        losses, correct = masked_cross_entropy(record, batch.input_ids, batch.masked, labels, **inputs)
        row_losses = (batch.weight * losses.sum(dim=1)).view(copies, -1).mean(dim=0)
        loss = reduce_loss(row_losses, maskable.sum(dim=1), self.args.loss_normalization, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # the items are those of all processes, and the gradient is averaged over them
            loss = loss * num_ranks
        # a mean over the tokens of the micro-batch
        aux_loss = getattr(outputs[0], "aux_loss", None)
        if aux_loss is not None:
            loss = loss + aux_loss * (1 if num_items_in_batch is None else len(input_ids) / self._rows_in_step)
        if self.model.training:
            self._watch(loss)
            self._add_train_sums(losses.detach(), correct, batch.masked, batch.ratio, labels, inputs, aux_loss)
        return loss

    def _add_train_sums(self, losses, correct, masked, ratio, labels, inputs, aux_loss=None) -> None:
        rows = _token_sums(losses, correct, masked, labels == self._eos_token_id)
        quartiles = rows.new_zeros(4, 3).index_add_(0, (ratio * 4).long().clamp(max=3), rows.sum(dim=1))
        trainable = labels != -100
        visible = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(trainable)
        counts = torch.stack([trainable.sum(), visible.sum()]).to(rows.dtype)
        aux = rows.new_zeros(2) if aux_loss is None else torch.stack([aux_loss.detach(), aux_loss.new_ones(())])
        sums = torch.cat([rows.sum(dim=0).flatten(), quartiles.flatten(), counts, aux.to(rows.dtype)])
        self._train_sums = sums if self._train_sums is None else self._train_sums + sums

    def _run_epoch(self, **kwargs) -> None:
        if isinstance(self.data_collator, DataCollatorForMaskedDiffusion):
            # it draws other answers of a conversation than in the last pass. A stream has more of them than epochs
            self.data_collator.epoch.fill_(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _init_training_state(self, *args) -> tuple[int, int]:
        # an earlier run may have ended between two logging steps
        self._train_sums = None
        return super()._init_training_state(*args)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # an evaluation logs too, and has no sums to add
        if "loss" in logs and self._train_sums is not None:
            sums = self.accelerator.reduce(self._train_sums, "sum").double().cpu()
            self._train_sums = None
            kinds, quartiles, others = sums[:6].view(2, 3), sums[6:18].view(4, 3), sums[18:].tolist()
            trainable, visible, aux_loss, aux_count = others
            for name, (loss, correct, count) in zip(("content", "eos"), kinds.tolist(), strict=True):
                if count:
                    logs[f"{name}_ce"] = loss / count
                    logs[f"{name}_accuracy"] = correct / count
            for number, (loss, _, count) in enumerate(quartiles.tolist(), start=1):
                if count:
                    logs[f"ce_q{number}"] = loss / count
            if aux_count:
                logs["aux_loss"] = aux_loss / aux_count
            logs["mask_ratio"] = kinds[:, 2].sum().item() / max(trainable, 1)
            # also of the steps before a resumption
            seen = next(
                (entry["num_tokens"] for entry in reversed(self.state.log_history) if "num_tokens" in entry), 0
            )
            logs["num_tokens"] = seen + int(visible) // self.get_tp_size()
        super().log(logs, start_time)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # a sharded checkpoint is compared by its published names, although it is loaded, and a tied head is not saved
        names = in_memory_names(load_result.unexpected_keys, self.model.config.model_type)
        found = {*chain(*names.values()), *getattr(self.model, "all_tied_weights_keys", ())}
        missing = [name for name in load_result.missing_keys if name not in found]
        unexpected = [published for published, new in names.items() if not {*new} <= {*load_result.missing_keys}]
        super()._issue_warnings_after_load(type(load_result)(missing, unexpected))

    @contextmanager
    def _evaluation_collator(self):
        collator = self.data_collator
        if isinstance(collator, DataCollatorForMaskedDiffusion):
            self.data_collator = collator.for_evaluation()
        try:
            yield
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_test_dataloader(*args, **kwargs)

    @torch.no_grad()
    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        inputs = dict(self._prepare_inputs(inputs))
        input_ids, labels = inputs.pop("input_ids"), inputs.pop("labels")
        inputs |= self._attention
        maskable = labels != -100
        eos = labels == self._eos_token_id
        sums = torch.zeros((), device=labels.device)

        def score(noisy_ids: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
            nonlocal sums
            losses, correct = masked_cross_entropy(model, noisy_ids, masked, labels, **inputs)
            sums = sums + _token_sums(losses, correct, masked, eos)
            return losses

        with self.compute_loss_context_manager():
            bound = likelihood_bound(
                score,
                input_ids,
                maskable,
                self.mask_token_id,
                num_draws=self.args.num_eval_draws,
                row_keys=content_keys(input_ids, inputs.get("attention_mask")),
                seed=self.args.eval_seed,
            )
        values = torch.stack([bound, maskable.to(bound.dtype)])
        of_eos = (values * eos).sum(dim=2)
        rows = torch.stack([values.sum(dim=2) - of_eos, of_eos]).permute(2, 0, 1)  # [batch, 2, 2]
        rows = torch.cat([rows, sums[:, :, 1:]], dim=2)
        # without the rows that fill the last batch of every process
        self._evaluated_rows.append(self.accelerator.gather_for_metrics(rows).double().cpu())
        return reduce_loss(bound.sum(dim=1), maskable.sum(dim=1), self.args.loss_normalization), None, None

    def evaluation_loop(
        self,
        dataloader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._evaluated_rows = []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        if self._evaluated_rows:
            metrics = self._bound_metrics(torch.cat(self._evaluated_rows))
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _bound_metrics(self, rows: torch.Tensor) -> dict[str, float]:
        """From per row, for content and end-of-text: bound in nats, tokens, right answers, masked tokens."""
        row_bounds, lengths = rows[:, :, 0].sum(dim=1), rows[:, :, 1].sum(dim=1)
        per_token = (row_bounds.sum() / lengths.sum()).item()
        metrics = {
            # that of the base is a mean over batches
            "loss": reduce_loss(row_bounds, lengths, self.args.loss_normalization).item(),
            "nll_bound": per_token,
            "ppl_bound": math.exp(per_token) if per_token < 700 else math.inf,
        }
        for name, (bound, tokens, correct, masked) in zip(("content", "eos"), rows.sum(dim=0).tolist(), strict=True):
            if tokens:
                metrics[f"{name}_nll_bound"] = bound / tokens
            if masked:
                metrics[f"{name}_accuracy"] = correct / masked
        return metrics

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Writes `README.md` to `args.output_dir`: what the model is, how to run it, how it was trained.

        Args:
            model_name (`str`, *optional*):
                Not used, the card is named after the repository.
            dataset_name (`str`, *optional*):
                What the model was trained on.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        _, num_ranks = self._data_parallel
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_ranks
        card = create_model_card(
            self.model,
            self.hub_model_id or args.output_dir,
            dataset_name=dataset_name,
            tags={*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())},
            training={
                "trainer": type(self).__name__,
                "steps": self.state.global_step,
                "global batch": batch,
                "peak learning rate": args.learning_rate,
                "mask ratio": f"{args.mask_schedule}, {args.min_mask_ratio} to {args.max_mask_ratio}",
                "attention": ", ".join(f"blocks of {length}" for length in self._attention.values()) or "full",
                "masks": f"{args.mask_sampling}{', complementary' if args.complementary_masks else ''}",
                "loss": f"{args.loss_weighting} weight, mean per {args.loss_normalization}",
            },
        )
        card.save(Path(args.output_dir) / "README.md")


__all__ = ["MaskedDiffusionTrainerMixin", "find_mask_token_id", "refuse_virtual_tokens", "stage_factor"]
