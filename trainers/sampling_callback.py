"""What a model writes while it is trained, in the terminal and in the logs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, TextIO

import torch
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from ..generation.listeners.terminal import TerminalStreamer
from ..generation.listeners.trace import Trace
from ..generation.printable import printable


COLUMNS = ("step", "prompt", "completion", "committed in step", "forward passes", "reference")


class SampleCallback(TrainerCallback):
    """
    Samples while a model is trained. Answers grow in the terminal, one prompt after the other; beside every token
    stands the step of the sampler that committed it. What reports a run (TensorBoard, W&B, Trackio) gets a table.

    Training goes on as if nothing had happened: random numbers, the modes of all modules and the data are left as they
    were. Samples are drawn with the same noise every time, so that what changes are the weights.

    On several processes each samples the same, which sharded weights need, and the first one shows it.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        prompts (`list[str]` or `list[list[dict]]`, *optional*):
            Texts, or conversations that the chat template renders. If not given, the first rows of the evaluation set
            up to their first trained token.
        generation_config ([`~transformers.GenerationConfig`], *optional*):
            How to sample, that of the model if not given.
        num_prompts (`int`, *optional*, defaults to 4):
            How many rows of the evaluation set.
        freq (`int`, *optional*):
            Number of training steps between samples. After every evaluation if not given.
        file (`TextIO`, *optional*):
            Where to write. Standard output if not given.
        kwargs (*optional*):
            Further arguments of `generate`, e.g. `max_new_tokens`.

    Attributes:
        table (`list[list]`): What was sampled so far, by the columns of `COLUMNS`.

    Raises:
        ValueError: If there are no prompts or it would never sample, if more than one answer is asked for, or if the
            weights are sharded in a way that sampling cannot gather.

    Example:

    ```python
    >>> trainer = LLaDASFTTrainer(...)
    >>> trainer.add_callback(SampleCallback(trainer, ["2 + 2 ="], freq=100, max_new_tokens=8))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        prompts: list[str] | list[list[dict[str, str]]] | None = None,
        generation_config: GenerationConfig | None = None,
        num_prompts: int = 4,
        freq: int | None = None,
        file: TextIO | None = None,
        **kwargs: Any,
    ):
        if freq is not None and freq < 1:
            raise ValueError(f"`freq={freq}` is no number of steps; write 1 or more.")
        if freq is None and trainer.args.eval_strategy == "no":
            raise ValueError(
                "Samples follow evaluations, of which this run has none. Write `freq=100` for samples every 100 "
                "steps, or `eval_strategy='steps'` in the arguments of the trainer."
            )
        settings = {"num_return_sequences": getattr(generation_config, "num_return_sequences", None), **kwargs}
        if settings["num_return_sequences"] not in (None, 1):
            raise ValueError(
                f"`num_return_sequences={settings['num_return_sequences']}` is not supported: one answer is shown for "
                "each prompt. Write a prompt several times."
            )
        self.trainer, self.freq = trainer, freq
        self.settings = {"generation_config": generation_config, **kwargs}
        self.file = sys.stdout if file is None else file
        self.table: list[list[Any]] = []
        tokenizer = trainer.processing_class
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                "The trainer has no tokenizer to read samples with. Write `processing_class=tokenizer` where it is "
                "made."
            )
        self.tokenizer = tokenizer
        if prompts is None:
            self.rows = _rows_of(trainer.eval_dataset, num_prompts)
        elif prompts:
            self.rows = [(_encode(prompt, tokenizer), []) for prompt in prompts]
        else:
            raise ValueError("`prompts` is empty; write at least one, or leave it out.")
        self._last_step = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # where a run is resumed from was sampled by the run before
        self._last_step = state.global_step
        accelerator = self.trainer.accelerator
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 1:
            raise ValueError(
                "The weights are sharded by the first version of FSDP, outside of which `generate` sees parts of "
                "them. Write `fsdp_version: 2` in the configuration of accelerate, or do not sample while training."
            )
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "Sampling while DeepSpeed trains was not tried. Write FSDP (`fsdp_version: 2`) in the configuration "
                "of accelerate, or do not sample while training."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.freq is not None and state.global_step % self.freq == 0:
            self._sample(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.freq is None:
            self._sample(state)

    def _sample(self, state: TrainerState) -> None:
        # one evaluation for every evaluation set
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped, keep_torch_compile=False)
        shows = state.is_world_process_zero
        with _undisturbed(model, self.trainer.args.seed):
            for ids, reference in self.rows:
                prompt = printable(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
                streamer = None
                if shows:
                    self.file.write(f"\n--- step {state.global_step} --- {' '.join(prompt.split())}\n")
                    if self.file.isatty():
                        streamer = TerminalStreamer(
                            self.tokenizer, file=self.file, mask_token_id=model.config.mask_token_id
                        )
                output = model.generate(
                    torch.tensor([ids], device=model.device),
                    streamer=streamer,
                    output_trace=True,
                    return_dict_in_generate=True,
                    **self.settings,
                )
                if not shows:
                    continue
                (trace,) = output.trace
                answer = printable(self.tokenizer.decode(trace.final[len(ids) :], skip_special_tokens=True)).strip()
                committed = describe_steps(trace, self.tokenizer)
                if streamer is None:
                    self.file.write(f"{answer}\n")
                self.file.write(f"{committed}\n")
                self.file.flush()
                expected = printable(self.tokenizer.decode(reference, skip_special_tokens=True)).strip()
                self.table.append([state.global_step, prompt, answer, committed, int(output.num_forwards), expected])
        if shows:
            self._report(state.global_step)

    def _report(self, step: int) -> None:
        """Gives the table to what reports the run."""
        for name in ("wandb", "trackio"):
            if name in self.trainer.args.report_to:
                backend = import_module(name)
                # a table that was logged cannot grow
                backend.log({"samples": backend.Table(**_table_of(name, self.table)), "train/global_step": step})
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("samples", _markdown([row for row in self.table if row[0] == step]), step)


def describe_steps(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> str:
    """
    The tokens of an answer, each with the step that committed it, e.g. `Foxholt's[2] shy[0] baker[1]`. It ends with
    its first end of text.

    Args:
        trace ([`Trace`]):
            How the answer came about.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.

    Returns:
        `str`: One line, without characters that a terminal would obey.
    """
    pieces = []
    for token, step in zip(trace.final, trace.step_of, strict=True):
        if step >= 0:
            text = " ".join(printable(tokenizer.decode([token])).split()) or repr(tokenizer.decode([token]))[1:-1]
            pieces.append(f"{text}[{step}]")
            if token == tokenizer.eos_token_id:
                break
    return " ".join(pieces)


@contextmanager
def _undisturbed(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and random numbers from a seed, without a trace of either afterwards."""
    modes = {module: module.training for module in model.modules()}
    on_cpu, on_device = torch.get_rng_state(), None
    # not `torch.manual_seed`, which also seeds devices that hold other layers
    torch.default_generator.manual_seed(seed)
    accelerator = None if model.device.type == "cpu" else torch.get_device_module(model.device)
    if accelerator is not None:
        on_device = accelerator.get_rng_state()
        accelerator.manual_seed(seed)
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.set_rng_state(on_cpu)
        if accelerator is not None:
            accelerator.set_rng_state(on_device)


def _encode(prompt: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a prompt, as fine-tuning gives them."""
    if isinstance(prompt, str):
        return tokenizer(text=prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def _rows_of(dataset: Any, number: int) -> list[tuple[list[int], list[int]]]:
    """What stands before the first trained token of the first rows, and what is trained from there on."""
    if number < 1:
        raise ValueError(f"`num_prompts={number}` asks for none; write at least 1.")
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError("There is no evaluation set to take prompts from. Write `prompts=['...']`.")
    rows = []
    for row in islice(dataset, number):
        labels = row.get("labels", row["input_ids"])
        start = next((place for place, label in enumerate(labels) if label != -100), len(labels))
        end = next((place for place in range(start, len(labels)) if labels[place] == -100), len(labels))
        if start == 0:
            raise ValueError(
                "The rows of the evaluation set have no prompt: all of their tokens are trained. Write "
                "`prompts=['...']`."
            )
        rows.append((list(row["input_ids"][:start]), list(row["input_ids"][start:end])))
    return rows


def _table_of(backend: str, rows: list[list[Any]]) -> dict[str, Any]:
    if backend == "wandb":
        return {"columns": list(COLUMNS), "data": rows}
    import pandas

    return {"dataframe": pandas.DataFrame(rows, columns=list(COLUMNS))}


def _markdown(rows: list[list[Any]]) -> str:
    """A table for TensorBoard, where no text of a model can leave its cell."""

    def cell(value: Any) -> str:
        text = "".join(char if char.isalnum() or char in " ,.;:'!?" else f"&#{ord(char)};" for char in str(value))
        return text.replace("&#10;", "<br>")

    lines = [COLUMNS, *rows]
    cells = [" | ".join(map(cell, line)) for line in lines]
    cells.insert(1, " | ".join(["---"] * len(COLUMNS)))
    return "\n".join(f"| {line} |" for line in cells)


__all__ = ["COLUMNS", "SampleCallback", "describe_steps"]
