"""Pre-training of masked diffusion language models."""

from itertools import chain
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForMaskedLM,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from trl.data_utils import get_dataset_column_names

from ..modeling_llada.masked_diffusion import noise_generator
from .data_collator import DataCollatorForMaskedDiffusion
from .diffusion_arguments import as_arguments
from .diffusion_trainer import MaskedDiffusionTrainerMixin, find_mask_token_id
from .pretraining_config import LLaDAPreTrainingConfig


def chunk_documents(
    dataset: Dataset | IterableDataset,
    sequence_length: int,
    eos_token_id: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_field: str = "text",
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """
    Joins documents and cuts them into sequences of one length. Attention reaches over the documents of a sequence, as
    in the pre-training of LLaDA. Of every 1000 documents, the last incomplete sequence is dropped.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Documents, as text or with `input_ids`.
        sequence_length (`int`):
            Tokens per sequence.
        eos_token_id (`int`, *optional*):
            Token between documents, appended to each that does not end with it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Required for text.
        text_field (`str`, *optional*, defaults to `"text"`):
            Column that holds the text.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        The type of `dataset`: Rows of `input_ids`, `sequence_length` each.

    Raises:
        ValueError: If the column or the tokenizer is missing, or the documents are too short for one sequence.
    """
    columns = get_dataset_column_names(dataset)
    if "input_ids" not in columns and text_field not in columns:
        raise ValueError(
            f"The dataset has the columns {sorted(columns)}; it needs `input_ids`, or text in `{text_field}` (set "
            "`dataset_text_field`)."
        )
    if "input_ids" not in columns and tokenizer is None:
        raise ValueError("The dataset holds text; write `processing_class=tokenizer`, or pass `input_ids`.")

    def chunk(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        documents = batch.get("input_ids")
        if documents is None:
            assert tokenizer is not None, "checked above"
            documents = tokenizer(batch[text_field], add_special_tokens=False)["input_ids"]
        if eos_token_id is not None:
            documents = [ids if ids and ids[-1] == eos_token_id else [*ids, eos_token_id] for ids in documents]
        tokens = list(chain.from_iterable(documents))
        stops = range(sequence_length, len(tokens) + 1, sequence_length)
        return {"input_ids": [tokens[stop - sequence_length : stop] for stop in stops]}

    options = {"num_proc": num_proc, "desc": "Chunking documents"} if isinstance(dataset, Dataset) else {}
    chunks = dataset.map(chunk, batched=True, remove_columns=columns, **options)
    if isinstance(chunks, Dataset) and len(chunks) == 0:
        raise ValueError(
            f"The documents are too short for one sequence of {sequence_length} tokens; lower `sequence_length`."
        )
    return chunks


class LLaDAPreTrainer(MaskedDiffusionTrainerMixin, Trainer):
    """
    Pre-training of a masked diffusion language model (arXiv 2502.09992, §2.2): every token of a sequence of fixed
    length may be masked, and with a probability of 1 % the batch of a step is cut to a random length.

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
        **kwargs,
    ):
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` is not supported: logits are computed for masked tokens only. Leave it out; "
                    "evaluations report `nll_bound`, `ppl_bound` and accuracies."
                )
        args = as_arguments(args, LLaDAPreTrainingConfig, "LLaDA-pre-training")
        if isinstance(model, str):
            model = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32)
        find_mask_token_id(model.config)
        eos_token_id = model.config.eos_token_id if processing_class is None else processing_class.eos_token_id
        if isinstance(eos_token_id, list):
            eos_token_id = eos_token_id[0]
        if data_collator is None:
            fill_token_id = model.config.mask_token_id if eos_token_id is None else eos_token_id
            data_collator = DataCollatorForMaskedDiffusion(
                fill_token_id, eos_fill="none", min_eos=0, multi_turn="all", seed=args.seed
            )

        def prepare(dataset: Any) -> Any:
            if dataset is None or isinstance(dataset, dict):
                return dataset and {name: prepare(part) for name, part in dataset.items()}
            return chunk_documents(
                dataset,
                args.sequence_length,
                eos_token_id,
                processing_class,
                args.dataset_text_field,
                args.dataset_num_proc,
            )

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=prepare(train_dataset),
            eval_dataset=prepare(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        self._init_diffusion(eos_token_id)

    def _adapt_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        generator = noise_generator(self.args.seed, "length", self.state.global_step)
        if torch.rand((), generator=generator) >= self.args.random_length_probability:
            return batches
        length = int(torch.randint(1, self.args.sequence_length + 1, (), generator=generator))
        return [{name: value[:, :length] for name, value in batch.items()} for batch in batches]


__all__ = ["LLaDAPreTrainer", "chunk_documents"]
