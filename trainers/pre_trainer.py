"""Pre-training of masked diffusion language models."""

from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, get_peft_model
from pyarrow.compute import list_value_length
from transformers import (
    AutoModelForMaskedLM,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from ..modeling_llada.masked_diffusion import noise_generator
from .data.data_checks import TokenChecks, first_row, read_text, refuse_unknown_columns, refuse_unread_masks
from .data.data_collator import DataCollatorForMaskedDiffusion
from .diffusion_arguments import as_arguments
from .diffusion_trainer import (
    complete_adapter,
    find_block_length,
    find_mask_token_id,
    refuse_virtual_tokens,
    refuse_what_needs_logits,
)
from .masked_objective import MaskedDiffusionTrainerMixin
from .pretraining_config import LLaDAPreTrainingConfig


logger = logging.get_logger(__name__)


def chunk_documents(
    dataset: Dataset | IterableDataset,
    sequence_length: int,
    checks: TokenChecks,
    eos_token_id: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_field: str = "text",
    num_proc: int | None = None,
    name: str = "train",
) -> Dataset | IterableDataset:
    """
    Joins documents and cuts them into sequences of one length. Of every 1000 documents, the last incomplete sequence
    is dropped. If all of them are tokenised and as long as a sequence, they stay as they are.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Documents, as text or with `input_ids`.
        sequence_length (`int`):
            Tokens per sequence.
        checks ([`TokenChecks`]):
            What tokens may be.
        eos_token_id (`int`, *optional*):
            Token between documents, appended to each that does not end with it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Required for text.
        text_field (`str`, *optional*, defaults to `"text"`):
            Column that holds the text.
        num_proc (`int`, *optional*):
            Number of processes.
        name (`str`, *optional*, defaults to `"train"`):
            Of the dataset, for messages.

    Returns:
        The type of `dataset`: Rows of `input_ids`, `sequence_length` each.

    Raises:
        ValueError: If the dataset is empty, the column or the tokenizer is missing, a document cannot be read, or the
            documents are too short for one sequence.
    """
    first = first_row(dataset, name)
    is_tokenised = "input_ids" in first
    if is_tokenised:
        refuse_unread_masks(first, name)
    elif text_field not in first:
        refuse_unknown_columns(first, name, f"`input_ids`, or text in `{text_field}` (set `dataset_text_field`)")
    elif tokenizer is None:
        raise ValueError(
            "The dataset holds text; write `processing_class=tokenizer`, on the command line `--tokenizer_name`, or "
            "pass `input_ids`."
        )

    def read(row: dict[str, Any]) -> list[int]:
        if not is_tokenised:
            assert tokenizer is not None, "checked above"
            text = read_text(row, text_field)
            return checks.check(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids, labels = checks.read(row)
        if -100 in labels:
            raise ValueError(
                "a token is not to be trained, and pre-training trains every one. Leave such columns out, or write "
                "`LLaDASFTTrainer`"
            )
        return ids

    def chunk(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[list[int]]]:
        documents = []
        for number, index in enumerate(indices):
            try:
                documents.append(read({column: values[number] for column, values in batch.items()}))
            except ValueError as error:
                raise ValueError(f"Row {index} of the {name} dataset: {error}.") from error
        if is_tokenised and all(len(ids) == sequence_length for ids in documents):
            return {"input_ids": documents}
        tokens: list[int] = []
        for ids in documents:
            tokens.extend(ids)
            if eos_token_id is not None and (not ids or ids[-1] != eos_token_id):
                tokens.append(eos_token_id)
        return {
            "input_ids": [tokens[start : start + sequence_length] for start in range(0, len(tokens), sequence_length)]
        }

    options = {"num_proc": num_proc, "desc": f"Chunking {name} dataset"} if isinstance(dataset, Dataset) else {}
    chunks = dataset.map(chunk, batched=True, with_indices=True, remove_columns=list(first), **options)
    if isinstance(chunks, IterableDataset):
        return chunks.filter(lambda ids: len(ids) == sequence_length, input_columns="input_ids")
    lengths = list_value_length(chunks.data.column("input_ids")).to_numpy()
    is_whole = lengths == sequence_length
    if not is_whole.any():
        raise ValueError(
            f"The documents are too short for one sequence of {sequence_length} tokens; lower `sequence_length`."
        )
    left_out = int(lengths[~is_whole].sum())
    if left_out:
        logger.warning(
            f"{left_out} of {lengths.sum()} tokens of the {name} dataset did not fill a sequence and are left out."
        )
    return chunks.select(np.flatnonzero(is_whole))


class LLaDAPreTrainer(MaskedDiffusionTrainerMixin, Trainer):
    """
    Pre-training of a masked diffusion language model (arXiv 2502.09992, §2.2): every token of a sequence of fixed
    length may be masked, and with a probability of 1 % the batch of a step is cut to a random length. Models with
    block-causal attention (LLaDA2) are trained by block diffusion, and their documents do not see each other, see
    [`MaskedDiffusionArguments.block_length`] and [`LLaDAPreTrainingConfig.separate_documents`].

    Logs and evaluations hold the metrics that [`LLaDASFTTrainer`] describes.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The model, e.g. `LLaDAModelLM(config)`, or the id or path of one to train further in float32.
        args ([`LLaDAPreTrainingConfig`], *optional*):
            Arguments. A [`~transformers.TrainingArguments`] keeps its values.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForMaskedDiffusion`] without a fill: all sequences have one length.
        train_dataset, eval_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Documents, as text or with `input_ids`. `eval_dataset` may be a `dict` of such.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer, required for text.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train, see [`LLaDASFTTrainer`].
        kwargs (*optional*):
            Further arguments of [`~transformers.Trainer`].

    Raises:
        ValueError: If a setting cannot work with masked diffusion, with what to write instead.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from transformers import AutoTokenizer
    >>> from llada import LLaDAConfig, LLaDAModelLM, LLaDAPreTrainer, LLaDAPreTrainingConfig

    >>> trainer = LLaDAPreTrainer(
    ...     model=LLaDAModelLM(LLaDAConfig(hidden_size=512, num_hidden_layers=8, num_attention_heads=8)),
    ...     args=LLaDAPreTrainingConfig("llada-tiny-stories", sequence_length=512),
    ...     train_dataset=load_dataset("roneneldan/TinyStories", split="train"),
    ...     processing_class=AutoTokenizer.from_pretrained("GSAI-ML/LLaDA-8B-Base"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["llada", "masked-diffusion", "pre-training"]
    # 1.2, 0.8 and 0.3 trillion tokens
    _stages = ((0.0, 1.0), (1.2 / 2.3, 1.0), (1.2 / 2.3, 0.25), (2.0 / 2.3, 0.25), (1.0, 0.025))

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: LLaDAPreTrainingConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        refuse_what_needs_logits(kwargs)
        args = as_arguments(args, LLaDAPreTrainingConfig, "LLaDA-pre-training")
        if isinstance(model, str):
            model = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32)
        checks = TokenChecks(model.config.vocab_size, find_mask_token_id(model.config))
        refuse_virtual_tokens(peft_config, *getattr(model, "peft_config", {}).values())
        if peft_config is not None:
            # the weights of the adapter are drawn
            set_seed(args.seed)
            model = get_peft_model(model, complete_adapter(peft_config, model.config))
        if train_dataset is not None:
            first_row(train_dataset, "train")
        eos_token_id = model.config.eos_token_id if processing_class is None else processing_class.eos_token_id
        if isinstance(eos_token_id, list):
            eos_token_id = eos_token_id[0]
        separates = args.separate_documents
        if separates is None:
            separates = eos_token_id is not None and find_block_length(model, args.block_length) > 0
        if separates and eos_token_id is None:
            raise ValueError(
                "`separate_documents=True`, but there is no end-of-text token that documents end with. Pass "
                "`processing_class`, set `model.config.eos_token_id`, or write `separate_documents=False`."
            )
        if data_collator is None:
            fill_token_id = model.config.mask_token_id if eos_token_id is None else eos_token_id
            data_collator = DataCollatorForMaskedDiffusion(
                fill_token_id,
                eos_fill="none",
                min_eos=0,
                multi_turn="all",
                separate_documents=separates,
                seed=args.seed,
            )

        self._chunk = partial(
            chunk_documents,
            sequence_length=args.sequence_length,
            checks=checks,
            eos_token_id=eos_token_id,
            tokenizer=processing_class,
            text_field=args.dataset_text_field,
            num_proc=args.dataset_num_proc,
        )

        def prepare(dataset: Any, name: str) -> Any:
            if dataset is None or isinstance(dataset, dict):
                return dataset and {name: prepare(part, name) for name, part in dataset.items()}
            return self._chunk(dataset, name=name)

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=prepare(train_dataset, "train"),
            eval_dataset=prepare(eval_dataset, "eval"),
            processing_class=processing_class,
            **kwargs,
        )
        self._init_diffusion(eos_token_id)

    def evaluate(
        self,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # the base calls this again for every part of a `dict`
        if not isinstance(eval_dataset, dict | str | None):
            eval_dataset = self._chunk(eval_dataset, name=metric_key_prefix)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self,
        test_dataset: Dataset | IterableDataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        test_dataset = self._chunk(test_dataset, name=metric_key_prefix)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _adapt_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        generator = noise_generator(self.args.seed, "length", self.state.global_step)
        if torch.rand((), generator=generator) >= self.args.random_length_probability:
            return batches
        length = int(torch.randint(1, self.args.sequence_length + 1, (), generator=generator))
        return [{name: value[:, :length] for name, value in batch.items()} for batch in batches]


__all__ = ["LLaDAPreTrainer", "chunk_documents"]
