"""Supervised fine-tuning of masked diffusion language models on top of TRL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig
from transformers import (
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.trainer_utils import PredictionOutput
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from .data.data_checks import TokenChecks, first_row
from .data.data_collator import DataCollatorForMaskedDiffusion
from .data.sft_rows import MASK_COLUMNS, tokenize_rows
from .diffusion_arguments import as_arguments
from .diffusion_trainer import (
    complete_adapter,
    find_mask_token_id,
    read_model,
    refuse_virtual_tokens,
    refuse_what_needs_logits,
)
from .masked_objective import MaskedDiffusionTrainerMixin
from .sft_config import LLaDASFTConfig


class LLaDASFTTrainer(MaskedDiffusionTrainerMixin, SFTTrainer):
    """
    Supervised fine-tuning of a masked diffusion language model (arXiv 2502.09992, §2.3): only tokens of the response
    are masked, and the model learns to predict them from the prompt and from what is left of the response.

    A drop-in for [`~trl.SFTTrainer`]: the same datasets, chat templates, PEFT and callbacks. What is different:

    - `prompt` and `completion` data trains the completion; `messages` data trains answers, see
      [`LLaDASFTConfig.multi_turn`]; `text` data trains every token, which is the objective of pre-training.
    - Complete responses are filled with end-of-text tokens that are trained, see [`LLaDASFTConfig.eos_fill`].
    - Models with block-causal attention (LLaDA2) are trained by block diffusion, as they were: every block of a
      response is predicted from its noisy self, and from the prompt and earlier blocks, clean. See
      [`MaskedDiffusionArguments.block_length`], which also turns it on for other models, and off. Rows are filled to a
      multiple of the block, too.
    - Logs hold the cross entropy (`*_ce`) and accuracy of the masked tokens, separately for content and end-of-text,
      and by quartile of the mask ratio (`ce_q1` ... `ce_q4`). Evaluations hold `nll_bound`, a bound on the negative
      log-likelihood in nats per response token, and `ppl_bound`. The response there ends with `min_eos` end-of-text
      tokens, without the fill.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, or the id or path of one.
        args ([`LLaDASFTConfig`], *optional*):
            Arguments. A [`~trl.SFTConfig`] or [`~transformers.TrainingArguments`] keeps its values.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForMaskedDiffusion`] with the settings of `args`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Examples of one of the types above, or tokenised: `input_ids`, and what is trained of them as `labels`,
            `completion_mask`, `assistant_masks` or `prompt_lengths`. Where `attention_mask` is 0 is padding, which is
            cut off. With `edit_ratio`, labels may be other tokens than `input_ids`, which are to be corrected.
        eval_dataset (*optional*):
            As `train_dataset`, or a `dict` of such.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer. Loaded from where the model comes from if not given.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train. A [`~peft.LoraConfig`] without `target_modules` gets the linear layers of every block or,
            in a model with experts, those of attention.
        kwargs (*optional*):
            Further arguments of [`~trl.SFTTrainer`]: `callbacks`, `optimizers`, `quantization_config`, ...

    Raises:
        ValueError: If a setting cannot work with masked diffusion, or a row of a dataset cannot be read, with what
            to write instead.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from llada import LLaDASFTConfig, LLaDASFTTrainer

    >>> dataset = Dataset.from_dict({"prompt": ["2 + 2 ="], "completion": [" 4"]})
    >>> trainer = LLaDASFTTrainer(
    ...     model="GSAI-ML/LLaDA-8B-Base", args=LLaDASFTConfig("llada-sums"), train_dataset=dataset
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["llada", "masked-diffusion", "sft", "trl"]
    _name = "LLaDA-SFT"
    _collator_class = DataCollatorForMaskedDiffusion
    # constant, then linear to a tenth over the last tenth
    _stages = ((0.0, 1.0), (0.9, 1.0), (1.0, 0.1))

    def __init__(
        self,
        model: "str | PreTrainedModel | Any",
        args: LLaDASFTConfig | TrainingArguments | None = None,
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
        args = as_arguments(args, LLaDASFTConfig, f"{Path(model_id).name or 'LLaDA'}-SFT")
        refuse_virtual_tokens(peft_config, *getattr(model, "peft_config", {}).values())
        config, processing_class = read_model(model, model_id, args, processing_class)
        eos_token_id = processing_class.eos_token_id
        if args.eos_token is not None:
            eos_token_id = processing_class.get_vocab().get(args.eos_token)
            if eos_token_id is None:
                raise ValueError(
                    f"`eos_token={args.eos_token!r}` is no token of the tokenizer. Write one that it has, such as "
                    f"{processing_class.eos_token!r}, or leave it out."
                )
        if eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-text token; set `tokenizer.eos_token` or `args.eos_token`.")
        if args.pad_token is not None:
            if args.pad_token not in processing_class.get_vocab():
                raise ValueError(
                    f"`pad_token={args.pad_token!r}` is no token of the tokenizer. Write one that it has, such as "
                    f"{processing_class.pad_token or processing_class.eos_token!r}, or leave it out."
                )
            processing_class.pad_token = args.pad_token
        makes_collator = data_collator is None
        if data_collator is None:
            data_collator = self._collator_class(
                eos_token_id=eos_token_id,
                pad_token_id=processing_class.pad_token_id,
                eos_fill=args.eos_fill,
                eos_fill_length=args.eos_fill_length,
                min_eos=args.min_eos,
                max_length=args.max_length,
                multi_turn=args.multi_turn,
                pad_to_multiple_of=args.pad_to_multiple_of,
                seed=args.seed,
            )

        self._model_config = config
        if train_dataset is not None:
            first_row(train_dataset, "train")
        # the base wants marked answers and looks at the training set only, see `tokenize_rows`
        self._assistant_only_loss, args.assistant_only_loss = args.assistant_only_loss, None
        # and packs datasets, for attention that knows where documents end
        packing, args.packing = args.packing, False
        try:
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=complete_adapter(peft_config, config),
                **kwargs,
            )
        finally:
            args.assistant_only_loss, args.packing = self._assistant_only_loss, packing
        self._init_diffusion(processing_class.eos_token_id)
        if makes_collator:
            # a chat template that is cloned from another tokenizer brings its end of text along
            data_collator.eos_token_id = processing_class.eos_token_id
            data_collator.block_length = self.block_length or None

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: LLaDASFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        # a cloned chat template adds tokens
        num_tokens = max(self._model_config.vocab_size, len(processing_class))
        checks = TokenChecks(
            num_tokens, find_mask_token_id(self._model_config), may_differ=args.edit_ratio is not None
        )
        # the base refuses datasets with a transform, and truncates and shuffles what is tokenised
        if not (isinstance(dataset, Dataset) and dataset.format["type"] == "custom"):
            with global_then_local_main_first():
                dataset = tokenize_rows(
                    dataset,
                    processing_class,
                    checks,
                    args,
                    self._assistant_only_loss,
                    dataset_name,
                    formatting_func,
                )
        return super()._prepare_dataset(dataset, processing_class, args, False, None, dataset_name)

    def _packs_rows(self, training: bool) -> bool:
        args = self.args
        return args.packing if training or args.eval_packing is None else args.eval_packing

    def predict(
        self,
        test_dataset: Dataset | IterableDataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        # the base prepares what is given to `evaluate` only
        if not self._skip_prepare_dataset:
            test_dataset = self._prepare_dataset(
                test_dataset, self.processing_class, self.args, False, self._formatting_func, metric_key_prefix
            )
        self._reject_skip_prepare_without_labels({metric_key_prefix: test_dataset}, self.data_collator)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _reject_skip_prepare_without_labels(self, datasets: dict[str, Any], data_collator: DataCollator) -> None:
        if not self._skip_prepare_dataset or not isinstance(data_collator, DataCollatorForMaskedDiffusion):
            return
        for name, dataset in datasets.items():
            row = first_row(dataset, name)
            unread = [column for column in MASK_COLUMNS if column in row]
            if "attention_mask" in unread or (unread and "labels" not in row):
                raise ValueError(
                    f"`skip_prepare_dataset` leaves {', '.join(f'`{column}`' for column in unread)} of the {name} "
                    "dataset unread, so that prompts and padding would be trained. Cut padding off and add a `labels` "
                    "column with -100 outside the response, or drop `skip_prepare_dataset`."
                )


__all__ = ["LLaDASFTTrainer"]
