"""Preference optimisation of masked diffusion language models on top of TRL (VRPO, arXiv 2505.19223)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig
from transformers import (
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from trl import DPOTrainer
from trl.trainer.utils import get_config_model_id, use_adapter

from ..modeling_llada.likelihood_bound import bound_masks, content_keys
from ..modeling_llada.noisy_and_clean import lay_out_noisy_and_clean
from .data.data_checks import TokenChecks, first_row
from .data.preference_collator import DataCollatorForMaskedPreference
from .diffusion_arguments import as_arguments
from .diffusion_trainer import (
    DiffusionTrainerMixin,
    complete_adapter,
    find_mask_token_id,
    read_model,
    refuse_virtual_tokens,
    refuse_what_needs_logits,
)
from .dpo_config import LLaDADPOConfig


# what the base measures of logits that do not exist here
_MEANINGLESS = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")

# masks and weights of one draw, of shapes `(rows, length)` and `(rows,)`
View = tuple[torch.Tensor, torch.Tensor]


class LLaDADPOTrainer(DiffusionTrainerMixin, DPOTrainer):
    """
    Direct preference optimisation with bounds on the likelihood in place of likelihoods (VRPO, arXiv 2505.19223).

    A drop-in for [`~trl.DPOTrainer`]: the same datasets of preferences, losses, chat templates, PEFT and callbacks.
    What is different:

    - **Likelihoods** are estimated from [`LLaDADPOConfig.num_draws`] masks per answer, each with a number of masked
      tokens of its own.
    - **Noise** is shared by policy and reference: it depends on the seed, the step and the tokens of a row, and on
      nothing else. Their difference has much less variance then, and is 0 as long as they are equal: the first loss of
      DPO is ln 2.
    - **Memory** is that of one mask, see [`LLaDADPOConfig.two_pass`].
    - **The loss** is a mean over the pairs of the accumulated batch of all processes, also if its last part is
      smaller. `"sft"` is the bound on the chosen answer per token, mean over pairs.
    - **Answers** are filled with end-of-text tokens, see [`LLaDADPOConfig.eos_fill`].
    - **A block-causal model** (LLaDA2) sees the block that it fills in, and clean blocks before it. The estimate
      bounds the likelihood of an answer written block by block. Complete answers are filled to the end of a block.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, or the id or path of one.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference. If not given: the policy as it is before training, without its adapter if there is one.
        args ([`LLaDADPOConfig`], *optional*):
            Arguments. A [`~trl.DPOConfig`] or [`~transformers.TrainingArguments`] keeps its values.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForMaskedPreference`] with the settings of `args`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Preferences: `chosen` and `rejected`, with or without `prompt`, text or messages.
        eval_dataset (*optional*):
            As `train_dataset`, or a `dict` of such. Its masks depend on the seed and the rows alone.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. Loaded from where the model comes from if not given.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train. A [`~peft.LoraConfig`] without `target_modules` gets the linear layers of every block or,
            in a model with experts, those of attention.
        kwargs (*optional*):
            Further arguments of [`~trl.DPOTrainer`]: `callbacks`, `optimizers`, `quantization_config`, ...

    Raises:
        ValueError: If a setting cannot work with masked diffusion, or a row of a dataset cannot be read, with what
            to write instead.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from llada import LLaDADPOConfig, LLaDADPOTrainer

    >>> dataset = Dataset.from_dict({"prompt": ["2 + 2 ="], "chosen": [" 4"], "rejected": [" 5"]})
    >>> trainer = LLaDADPOTrainer(
    ...     model="GSAI-ML/LLaDA-8B-Instruct", args=LLaDADPOConfig("llada-sums"), train_dataset=dataset
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["llada", "masked-diffusion", "dpo", "trl"]
    _name = "LLaDA-DPO"
    # `compute_loss` divides by the whole accumulated batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: "str | PreTrainedModel | Any",
        ref_model: PreTrainedModel | None = None,
        args: LLaDADPOConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        refuse_what_needs_logits(kwargs)
        model_id = model if isinstance(model, str) else get_config_model_id(model.config)
        args = as_arguments(args, LLaDADPOConfig, f"{Path(model_id).name or 'LLaDA'}-DPO")
        refuse_virtual_tokens(peft_config, *getattr(model, "peft_config", {}).values())
        config, processing_class = read_model(model, model_id, args, processing_class)
        if args.router_aux_loss_coef and "sparse" not in config.mlp_layer_types:
            raise ValueError(
                f"`router_aux_loss_coef={args.router_aux_loss_coef}` keeps the load of experts even, and this model "
                "has none; leave it out."
            )
        if processing_class.eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-text token; set `tokenizer.eos_token`.")
        own_collator = None
        if data_collator is None:
            data_collator = own_collator = DataCollatorForMaskedPreference(
                eos_token_id=processing_class.eos_token_id,
                pad_token_id=processing_class.pad_token_id,
                eos_fill=args.eos_fill,
                eos_fill_length=args.eos_fill_length,
                min_eos=args.min_eos,
                max_length=args.max_length,
                pad_to_multiple_of=args.pad_to_multiple_of,
            )
        if ref_model is None and peft_config is None and isinstance(model, PreTrainedModel):
            # the base loads what the model was loaded from, which may be nothing, or something else by now
            ref_model = copy.deepcopy(model)
        self._model_config = config
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=complete_adapter(peft_config, config),
            **kwargs,
        )
        self._init_diffusion(processing_class.eos_token_id)
        if own_collator is not None:
            in_blocks: Any = replace(own_collator, block_length=self.block_length or None)
            self.data_collator = in_blocks
        self.model_accepts_loss_kwargs = False
        # the losses of routers, which the model has weighted, are added here
        self._trains_routers, self.aux_loss_enabled = self.aux_loss_enabled, False
        if args.router_aux_loss_coef is not None:
            self.model.config.router_aux_loss_coef = args.router_aux_loss_coef
        # that of the base is a mean over the tokens of a micro-batch
        weighted = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._sft_weight = sum(weight for name, weight in weighted if name == "sft")
        self.loss_types, self.loss_weights = zip(*(pair for pair in weighted if pair[0] != "sft"), strict=True)
        self._refuse_deepspeed()

    def _refuse_deepspeed(self) -> None:
        if self.is_deepspeed_enabled and self.args.two_pass and self.args.num_draws > 1:
            raise ValueError(
                "DeepSpeed takes a step after every backward pass, and `two_pass=True` makes one for each mask. Write "
                "`two_pass=False`."
            )

    def _prepare_dataset(
        self, dataset: Dataset | IterableDataset, processing_class: Any, args: LLaDADPOConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        columns = first_row(dataset, dataset_name).keys()
        lacking = [f"`{name}`" for name in ("chosen", "rejected") if name not in columns]
        if lacking:
            raise ValueError(
                f"The {dataset_name} dataset has the columns {sorted(columns)} and lacks {' and '.join(lacking)}. A "
                "preference has a `prompt`, a `chosen` and a `rejected` answer; rename or map the columns."
            )
        config = self._model_config
        checks = TokenChecks(max(config.vocab_size, len(processing_class)), find_mask_token_id(config))

        def check(row: dict[str, Any]) -> dict[str, Any]:
            for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
                try:
                    checks.check(row[column])
                except ValueError as error:
                    shown = f"{row['chosen']!r}"[:60]
                    raise ValueError(
                        f"In the {dataset_name} dataset, the row with the chosen answer {shown}: {column}, {error}."
                    ) from error
            return {}

        return super()._prepare_dataset(dataset, processing_class, args, dataset_name).map(check)

    def _describe_objective(self) -> dict[str, Any]:
        return {
            "loss": ", ".join(self.args.loss_type),
            "beta": self.args.beta,
            "masks per answer": self.args.num_draws,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_pairs = torch.tensor(sum(len(batch["input_ids"]) // 2 for batch in batches), device=device)
        if self.accelerator.num_processes > 1:
            num_pairs = self.accelerator.reduce(num_pairs, "sum") // self.get_tp_size()
        return batches, num_pairs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        The loss of one micro-batch. In two passes, all gradients but that of the last mask are added up here.

        Args:
            model (`torch.nn.Module`):
                The policy, possibly wrapped.
            inputs (`dict`):
                A batch of [`DataCollatorForMaskedPreference`].
            return_outputs (`bool`, *optional*, defaults to `False`):
                Not supported.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Pairs of the accumulated batch of all processes.

        Returns:
            `torch.Tensor`: The loss, a scalar.

        Raises:
            ValueError: If outputs are asked for: logits are computed for masked tokens only.
        """
        if return_outputs:
            raise ValueError("`return_outputs=True` is not supported: logits are computed for masked tokens only.")
        trains = self.model.training and torch.is_grad_enabled()
        share: torch.Tensor | float = 1.0
        if num_items_in_batch is not None:
            # the gradient is averaged over processes
            share = len(inputs["input_ids"]) // 2 * self._data_parallel[1] / num_items_in_batch
        views = self._draw_views(inputs, trains)
        with torch.no_grad(), self._reference(model) as reference_model:
            reference, _ = self._bounds(reference_model, inputs, views)
        two_pass = trains and self.args.two_pass and len(views) > 1
        with torch.set_grad_enabled(trains and not two_pass):
            bounds, aux_loss = self._bounds(model, inputs, views, self._trains_routers)
        # what is cast without gradients must not be found when there are some
        torch.clear_autocast_cache()
        if not two_pass:
            loss = share * (self._preference_loss(bounds, reference.sum(dim=1), inputs) + aux_loss)
        else:
            bounds.requires_grad_()
            preference = share * self._preference_loss(bounds, reference.sum(dim=1), inputs)
            (slopes,) = torch.autograd.grad(preference, bounds)

            def part(view: View) -> torch.Tensor:
                terms, aux_term = self._bounds(model, inputs, [view], self._trains_routers)
                return ((slopes * terms).sum() + share * aux_term) / len(views)

            for view in views[:-1]:
                with self.accelerator.no_sync(model):
                    self.accelerator.backward(part(view))
            last = part(views[-1])
            loss = (preference + share * aux_loss).detach() + (last - last.detach())
        if self._trains_routers:
            self._metrics["train" if trains else "eval"]["aux_loss"].append(aux_loss.detach().item())
        if trains:
            # the base forgets how many tokens there were
            self.state.num_input_tokens_seen = self._total_train_tokens
            self._watch(loss)
        return loss

    def _draw_views(self, inputs: dict[str, torch.Tensor], trains: bool) -> list[View]:
        """The masks of policy and reference: a function of the seed, the step and the tokens of each row."""
        step = str(self.state.global_step).encode() if trains else b""
        keys = [key + step for key in content_keys(inputs["input_ids"], inputs["attention_mask"])]
        return list(bound_masks(inputs["completion_mask"].bool(), self.args.num_draws, keys, self.args.seed))

    @contextmanager
    def _reference(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        if self.ref_model is not None:
            yield self.ref_model
            return
        unwrapped = self.accelerator.unwrap_model(model)
        assert is_peft_model(unwrapped), "without an adapter there is a reference"
        with use_adapter(unwrapped, "ref" if "ref" in unwrapped.peft_config else None):
            yield model

    def _bounds(
        self, model: Callable, inputs: dict[str, torch.Tensor], views: list[View], trains_routers: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each token contributes to the bounds, mean over draws, and the loss of the routers."""
        input_ids = inputs["input_ids"]
        bounds, aux_loss = torch.zeros((), device=input_ids.device), torch.zeros((), device=input_ids.device)
        for masked, weight in views:
            noisy_ids, visible = input_ids.masked_fill(masked, self.mask_token_id), inputs["attention_mask"]
            seen = {"input_ids": noisy_ids, "attention_mask": visible}
            if self.block_length:
                config = self.model.config
                seen = lay_out_noisy_and_clean(config, noisy_ids, input_ids, self.block_length, visible)
            output = model(
                **seen,
                labels=input_ids,
                logits_to_keep=masked,
                token_losses=True,
                output_router_logits=trains_routers,
            )
            bounds = bounds - weight[:, None] * output.token_losses
            if trains_routers:
                aux_loss = aux_loss + output.aux_loss
        return bounds / len(views), aux_loss / len(views)

    def _preference_loss(
        self, bounds: torch.Tensor, reference: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss and the metrics of the base, which takes what it is given for log-probabilities of next tokens."""
        nothing = torch.zeros_like(bounds)
        output = SimpleNamespace(log_probs=bounds, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        chosen, rejected = reference.chunk(2)
        # it leaves out the first token, which nothing predicts there
        shifted = {name: torch.nn.functional.pad(inputs[name], (1, 0)) for name in ("input_ids", "completion_mask")}
        given = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        self.precompute_ref_logps = True
        try:
            loss = super()._compute_loss(
                lambda **_: output, {"attention_mask": inputs["attention_mask"], **shifted, **given}, False
            )
        finally:
            self.precompute_ref_logps = False
        for metrics in self._metrics.values():
            for name in _MEANINGLESS:
                metrics.pop(name, None)
        if self._sft_weight:
            chosen_bounds, lengths = bounds.chunk(2)[0].sum(dim=1), inputs["completion_mask"].chunk(2)[0].sum(dim=1)
            loss = loss - self._sft_weight * (chosen_bounds / lengths.clamp(min=1)).mean()
        return loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        return super().prediction_step(model, inputs, True, ignore_keys)

    def _init_training_state(self, *args) -> tuple[int, int]:
        result = super()._init_training_state(*args)
        self._total_train_tokens = self.state.num_input_tokens_seen
        return result


__all__ = ["LLaDADPOTrainer"]
