"""The objective of pre-training and fine-tuning: the bound on the likelihood, its noise, its metrics."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_llada.block_ratios import mask_by_block
from ..modeling_llada.likelihood_bound import content_keys, likelihood_bound
from ..modeling_llada.masked_diffusion import MaskedBatch, noise_generator, reduce_loss
from ..modeling_llada.noisy_and_clean import lay_out_noisy_and_clean
from ..modeling_llada.packed_documents import lay_out_documents, pack_rows
from ..modeling_llada.token_losses import TokenLossOutput
from .diffusion_arguments import MaskedDiffusionArguments
from .diffusion_trainer import DiffusionTrainerMixin, find_block_length, freeze_routers, write_in_blocks
from .token_metrics import TrainingSums, bound_metrics, score_rows, split_kinds


def _weights_of(reduce: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """What the loss of each token counts in a loss that is linear in them: its gradient."""
    with torch.enable_grad():
        losses = torch.zeros(labels.shape, device=labels.device, requires_grad=True)
        return torch.autograd.grad(reduce(losses), losses)[0]


class MaskedDiffusionTrainerMixin(DiffusionTrainerMixin):
    """
    Trains the bound on the likelihood, and evaluates it. To be inherited before [`~transformers.Trainer`] or a
    subclass; `__init__` has to call `_init_diffusion` when the base is initialised.

    - **Noise** is a function of (seed, step, micro-step, data-parallel rank), so that a resumed run repeats it and no
      two processes share it. Strata of the mask ratio span the micro-batches and processes of a step.
    - **The loss** is divided by what the whole accumulated batch of all processes holds: gradients are those of one
      large batch, also if its last part is smaller.
    - **Attention** is that of generation. A block-causal model (LLaDA2) sees the block that it fills in, and clean
      blocks before it: block diffusion, its published objective. Noise is drawn per row, as published, or per block
      (`mask_ratio_per_block`), and the loss bounds the likelihood of the text written block by block.
    - **Evaluation** gives the bound on the negative log-likelihood, the same in every call and for every batch size.
    """

    args: MaskedDiffusionArguments
    # `compute_loss` divides by the whole accumulated batch
    loss_is_scaled_for_ga = True

    def _init_diffusion(self, eos_token_id: int | None) -> None:
        super()._init_diffusion(eos_token_id)
        self.block_length = find_block_length(self.model, self.args.block_length)
        if self.args.block_length:
            write_in_blocks(self.model, self.args.block_length)
        if self.args.mask_ratio_per_block and not self._has_blocks():
            raise ValueError(
                "`mask_ratio_per_block=True`, but the model is not trained in blocks. Write their `block_length`, "
                "such as 32, or leave it out."
            )
        if self.args.freeze_routers:
            freeze_routers(self.model)
        self.forward_process = self.args.make_noise(self.mask_token_id, self.model.config.vocab_size)
        # the items of a batch are counted here: the base shifts labels if the class is called "...ForCausalLM"
        self.model_accepts_loss_kwargs = False
        self._micro_step = self._rows_before = self._rows_in_step = 0
        self._train_sums: TrainingSums | None = None
        self._num_tokens = 0
        self._evaluated_rows: list[torch.Tensor] = []

    def _describe_objective(self) -> dict[str, Any]:
        args = self.args
        return {
            "objective": "block diffusion" if self.block_length else "masked diffusion",
            "mask ratio": f"{args.mask_schedule}, {args.min_mask_ratio} to {args.max_mask_ratio}"
            + (", of each block" if args.mask_ratio_per_block else ""),
            "masks": f"{args.mask_sampling}{', complementary' if args.complementary_masks else ''}",
            "loss": f"{args.loss_weighting} weight, mean per {args.loss_normalization}",
            **({} if args.edit_ratio is None else {"editing": f"{args.edit_ratio} of the visible tokens are wrong"}),
            **({"confidence loss": args.confidence_weight} if args.confidence_weight else {}),
        }

    def _lay_out(
        self, noisy_ids: torch.Tensor, scored: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """
        What the model is given to see of a noisy batch, in training and in evaluation. A hook for objectives whose
        model sees more than that.

        Args:
            noisy_ids, scored, labels (of shape `(batch, length)`):
                Tokens with masks, which of them are predicted, and the right ones.
            inputs (`dict`):
                What else the collator gave: `attention_mask`, and `document_ids` of documents that are not to see each
                other.

        Returns:
            `dict`: Arguments of `forward`.
        """
        predicted = {"labels": labels, "logits_to_keep": scored}
        block_length = self._find_block_length(self.model.training)
        if block_length:
            clean_ids = torch.where(labels == -100, noisy_ids, labels)
            config = self.model.config
            return lay_out_noisy_and_clean(config, noisy_ids, clean_ids, block_length, **inputs) | predicted
        if "document_ids" in inputs:
            return lay_out_documents(noisy_ids, **inputs) | predicted
        return {"input_ids": noisy_ids, "block_length": 0, **inputs} | predicted

    def _find_block_length(self, training: bool) -> int:
        """The blocks of a step or of an evaluation, 0 for none. A hook for objectives in which they change."""
        return self.block_length

    def _has_blocks(self) -> bool:
        """Whether there are blocks in any step."""
        return self.block_length > 0

    def _packs_rows(self, training: bool) -> bool:
        """Whether several rows of a batch are shown to the model as one, none of which sees another. A hook."""
        return False

    def _predict(
        self,
        model: torch.nn.Module,
        noisy_ids: torch.Tensor,
        scored: torch.Tensor,
        labels: torch.Tensor,
        inputs: dict[str, Any],
        **options: Any,
    ) -> Any:
        """The [`TokenLossOutput`] of a noisy batch, from a model that may be wrapped. Arguments as in `_lay_out`."""
        packed = None
        if "attention_mask" in inputs and self._packs_rows(self.model.training):
            packed = pack_rows(inputs["attention_mask"])
        if packed is None:
            return model(**self._lay_out(noisy_ids, scored, labels, inputs), token_losses=True, **options)
        rows = torch.arange(len(labels), device=labels.device).unsqueeze(1).expand_as(labels)
        if (documents := inputs.get("document_ids")) is not None:
            # there are no more of them in a row than tokens
            rows = rows * labels.shape[1] + documents
        inputs = {name: packed.pack(value, 0) for name, value in {**inputs, "document_ids": rows}.items()}
        noisy_ids, scored, labels = packed.pack(noisy_ids, 0), packed.pack(scored, 0), packed.pack(labels, -100)
        if options.get("loss_weights") is not None:
            options["loss_weights"] = packed.pack(options["loss_weights"], 0)
        output = model(**self._lay_out(noisy_ids, scored, labels, inputs), token_losses=True, **options)
        for name in ("token_losses", "correct", "entropies"):
            if (values := getattr(output, name)) is not None:
                setattr(output, name, packed.unpack(values))
        return output

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
        num_items = torch.as_tensor(self._count_items(batches), device=device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            num_items = self.accelerator.reduce(num_items, "sum") / self.get_tp_size()
        return batches, num_items

    def _count_items(self, batches: list[dict[str, Any]]) -> torch.Tensor | int:
        """What the loss of a step is divided by, as far as it is in this process."""
        if self.args.loss_normalization == "token":
            return sum((batch["labels"] != -100).sum() for batch in batches)
        if self.args.loss_normalization == "masked":
            # noise is a function of its key, so that it can be looked at ahead
            counts = [self._add_noise(batch).count_scored(len(batch["labels"])).sum() for batch in batches]
            self._micro_step = self._rows_before = 0
            return sum(counts)
        return self._rows_in_step

    def _add_noise(self, inputs: dict[str, Any]) -> MaskedBatch:
        """The noise of the next micro-batch of a step, as the collator gave it. A hook for other noise."""
        input_ids, labels = inputs["input_ids"], inputs["labels"]
        rank, num_ranks = self._data_parallel
        key = (self.args.seed, "train", self.state.global_step)
        mask: Callable[..., MaskedBatch] = self.forward_process
        block_length = self._find_block_length(training=True)
        if self.args.mask_ratio_per_block and block_length:
            seen: dict[str, Any] = {name: inputs.get(name) for name in ("attention_mask", "document_ids")}
            mask = partial(mask_by_block, self.forward_process, block_length, **seen)
        batch = mask(
            input_ids,
            labels != -100,
            noise_generator(*key, self._micro_step, rank),
            noise_generator(*key),
            offset=rank * self._rows_in_step + self._rows_before,
            total=max(num_ranks * self._rows_in_step, len(input_ids)),
            labels=labels,
        )
        self._micro_step += 1
        self._rows_before += len(input_ids)
        return batch

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
                What the accumulated batch holds: sequences or, with `loss_normalization="token"`, trainable tokens,
                with `"masked"`, scored ones.

        Returns:
            `torch.Tensor`: The loss, a scalar.

        Raises:
            ValueError: If outputs are asked for: logits are computed for masked tokens only.
        """
        if return_outputs:
            raise ValueError("`return_outputs=True` is not supported: logits are computed for masked tokens only.")
        batch = self._add_noise(inputs)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        num_rows = len(inputs.pop("input_ids"))
        counts = self.args.loss_normalization == "masked"
        lengths = batch.count_scored(num_rows) if counts else (labels != -100).sum(dim=1)
        copies = len(batch.masked) // num_rows
        if copies > 1:
            labels = labels.repeat(copies, 1)
            inputs = {name: torch.cat([value] * copies) for name, value in inputs.items()}

        def reduce(row_losses: torch.Tensor) -> torch.Tensor:
            loss = reduce_loss(row_losses, lengths, self.args.loss_normalization, num_items_in_batch)
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                # the items are those of all processes, and the gradient is averaged over them
                loss = loss * self._data_parallel[1]
            return loss

        def reduce_tokens(losses: torch.Tensor) -> torch.Tensor:
            return reduce(batch.sum_losses(losses, num_rows))

        weight = self.args.confidence_weight
        # of a model that is spread over processes, no gradient can be taken before the backward pass
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        output = self._predict(
            model,
            batch.input_ids,
            batch.scored,
            labels,
            inputs,
            loss_weights=None if is_sharded else _weights_of(reduce_tokens, labels),
            entropy_temperature=self.args.confidence_temperature if weight else None,
        )
        aux_loss = getattr(output, "aux_loss", None)
        loss = reduce_tokens(output.token_losses) if is_sharded else output.loss
        if weight:
            entropies = output.entropies * (batch.masked & output.correct)
            loss = loss + weight * reduce(entropies.sum(dim=1).view(copies, -1).mean(dim=0))
        if aux_loss is not None:
            # a mean over the tokens of the micro-batch
            loss = loss + aux_loss * (1 if num_items_in_batch is None else num_rows / self._rows_in_step)
        if self.model.training:
            self._watch(loss)
            self._measure(batch, output, labels, inputs.get("attention_mask"))
        return loss

    def _measure(
        self, batch: MaskedBatch, output: TokenLossOutput, labels: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> None:
        """Adds what is logged of a micro-batch to the sums of the step."""
        assert output.token_losses is not None and output.correct is not None, "asked for"
        losses, correct, masked = output.token_losses.detach(), output.correct, batch.masked
        # a row has one ratio, or every token has that of its block
        shape = masked.shape if batch.ratio.ndim == 1 else (-1, 1)
        parts = losses * masked, correct & masked, masked, labels == self._eos_token_id
        rows = score_rows(*(part.reshape(shape) for part in parts))
        visible = torch.ones_like(masked) if attention_mask is None else attention_mask
        sums = TrainingSums.of_batch(
            rows, batch.ratio.flatten(), labels != -100, visible, getattr(output, "aux_loss", None)
        )
        if batch.scored is not masked:
            shown = batch.scored & ~masked
            sums.add_edits(losses, correct, shown & (batch.input_ids != labels), shown & (batch.input_ids == labels))
        if output.entropies is not None:
            sums.add_entropies(output.entropies.detach(), correct & masked)
        self._train_sums = sums if self._train_sums is None else self._train_sums + sums

    def _init_training_state(self, *args) -> tuple[int, int]:
        # an earlier run may have ended between two logging steps
        self._train_sums = None
        result = super()._init_training_state(*args)
        self._num_tokens = self.state.num_input_tokens_seen
        return result

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # between two logging steps there are tokens that are not logged yet
        self.state.num_input_tokens_seen = self._num_tokens
        if self._train_sums is not None:
            self.state.num_input_tokens_seen += self._count_visible(self._train_sums.gather(self.accelerator.reduce))
        super()._save_checkpoint(model, trial)

    def _count_visible(self, sums: TrainingSums) -> int:
        return int(sums.visible) // self.get_tp_size()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # an evaluation logs too, and has no sums to add
        if "loss" in logs and self._train_sums is not None:
            sums = self._train_sums.gather(self.accelerator.reduce)
            self._train_sums = None
            logs |= sums.logs()
            # also of the steps before a resumption
            self._num_tokens += self._count_visible(sums)
            logs["num_tokens"] = self._num_tokens
        super().log(logs, start_time)

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
        maskable = labels != -100
        # where editing is trained, a token may be wrong, and the bound is that of the right ones
        input_ids = torch.where(maskable, labels, input_ids)
        eos = labels == self._eos_token_id
        sums = torch.zeros((), device=labels.device)

        def score(noisy_ids: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
            nonlocal sums
            output = self._predict(model, noisy_ids, masked, labels, inputs)
            sums = sums + score_rows(output.token_losses, output.correct, masked, eos)
            return output.token_losses

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
        rows = split_kinds(torch.stack([bound, maskable.to(bound.dtype)]), eos)
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
            metrics = bound_metrics(torch.cat(self._evaluated_rows), self.args.loss_normalization)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output


__all__ = ["MaskedDiffusionTrainerMixin"]
