"""Distillation of masked diffusion language models, so that they write more tokens in a step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl.trainer.utils import get_config_model_id

from ..modeling_llada.masked_diffusion import MaskedBatch, noise_generator
from .data.data_checks import first_row
from .data.data_collator import DataCollatorForMaskedDiffusion
from .diffusion_arguments import as_arguments
from .distill_config import LLaDADistillConfig
from .sft_trainer import LLaDASFTTrainer
from .trajectories import TRACE_COLUMNS, TraceChecks


@dataclass
class DataCollatorForTrajectories(DataCollatorForMaskedDiffusion):
    """
    Collates rows as [`DataCollatorForMaskedDiffusion`] does, and `step_of` where rows have it: -1 where nothing is
    trained. End-of-text tokens that a row is filled with count as written last.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        if all("step_of" in example for example in examples):
            labels = batch["labels"]
            steps = torch.empty_like(labels)
            for row, example in enumerate(examples):
                # `input_ids` may have been cut
                given = torch.as_tensor(example["step_of"])[: min(len(example["input_ids"]), labels.shape[1])]
                steps[row] = given.max() + 1
                steps[row, : len(given)] = given
            batch["step_of"] = steps.masked_fill(labels == -100, -1)
        return batch


class LLaDADistillTrainer(LLaDASFTTrainer):
    """
    Distils a teacher, usually the model itself, into a model that is certain of more tokens at once, so that a
    threshold writes more of them in a step.

    In every row one block of the answer is noisy and predicted; what comes before it is clean, what comes after it
    masked, as in generation. The loss is the mean cross entropy of the masked tokens of the block, and
    `confidence_weight` times the entropy where they are predicted correctly. Masks are drawn, as in dParallel's
    certainty forcing (arXiv 2509.26488), or are those of the teacher at some step, as in d3LLM (arXiv 2601.07568), see
    [`LLaDADistillConfig.block_masks`]. d3LLM and dParallel divide each entropy by the number of correct predictions;
    here both parts are divided by the number of masked tokens of the whole accumulated batch.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, or the id or path of it. One with full attention.
        args ([`LLaDADistillConfig`], *optional*):
            Arguments.
        data_collator (`Callable`, *optional*):
            Defaults to [`DataCollatorForTrajectories`] with the settings of `args`.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            What [`collect_trajectories`] gave. With `block_masks="random"` also rows that [`LLaDASFTTrainer`] takes,
            whose answers should be the teacher's.
        kwargs (*optional*):
            Further arguments of [`LLaDASFTTrainer`].

    Raises:
        ValueError: If rows lack the teacher's steps, are of another tokenizer, or the model is block-causal.

    Example:

    ```python
    >>> from llada import LLaDADistillConfig, LLaDADistillTrainer
    >>> from llada.trainers import collect_trajectories

    >>> traces = collect_trajectories(model, tokenizer, prompts, "traces.jsonl", max_new_tokens=256, steps=256)
    >>> trainer = LLaDADistillTrainer(model, LLaDADistillConfig("faster"), train_dataset=traces)
    >>> trainer.train()
    ```
    """

    args: LLaDADistillConfig
    _tag_names = ["llada", "masked-diffusion", "distillation", "trl"]
    _name = "LLaDA-Distill"
    _collator_class = DataCollatorForTrajectories

    def __init__(
        self,
        model: "str | PreTrainedModel | Any",
        args: LLaDADistillConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        **kwargs,
    ):
        model_id = model if isinstance(model, str) else get_config_model_id(model.config)
        args = as_arguments(args, LLaDADistillConfig, f"{Path(model_id).name or 'LLaDA'}-Distill")
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        if self.block_length:
            raise ValueError(
                f"The model attends in blocks of {self.block_length}, so that every block is trained "
                "with clean ones before it. Write `LLaDASFTTrainer` with `confidence_weight=2.0`, which is certainty "
                "forcing for such a model."
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "step_of" not in self._signature_columns:
            self._signature_columns.append("step_of")

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: LLaDADistillConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if dataset_name == "train":
            missing = [column for column in TRACE_COLUMNS if column not in first_row(dataset, "train")]
            if not missing:
                dataset = dataset.map(TraceChecks(processing_class, "train"), with_indices=True)
            elif args.block_masks == "trajectory":
                raise ValueError(
                    f"The train dataset lacks {', '.join(f'`{column}`' for column in missing)}: it holds no traces. "
                    "Make it with `collect_trajectories`, or write `block_masks='random'`."
                )
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _describe_objective(self) -> dict[str, Any]:
        args = self.args
        return {
            "masks": f"{args.block_masks}, in one block of {' then '.join(map(str, args.block_lengths or ()))} tokens",
            "mask ratio": f"{args.min_mask_ratio} to {args.max_mask_ratio}",
            "loss": f"cross entropy and {args.confidence_weight} of the entropy of right predictions",
        }

    def _add_noise(self, inputs: dict[str, Any]) -> MaskedBatch:
        step = self.state.global_step
        progress = step / max(self.state.max_steps, 1)
        process = self.args.make_noise(self.mask_token_id, self.model.config.vocab_size, progress)
        generator = noise_generator(self.args.seed, "train", step, self._micro_step, self._data_parallel[0])
        self._micro_step += 1
        steps = inputs["step_of"] if self.args.block_masks == "trajectory" else None
        return process(inputs["input_ids"], inputs["labels"] != -100, generator, steps)

    def _lay_out(
        self, noisy_ids: torch.Tensor, scored: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        inputs = {name: value for name, value in inputs.items() if name != "step_of"}
        return super()._lay_out(noisy_ids, scored, labels, inputs)


__all__ = ["DataCollatorForTrajectories", "LLaDADistillTrainer"]
