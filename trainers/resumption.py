"""Runs that stop where they go wrong, and that can be taken up again."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, has_length
from transformers.utils import logging

from .checkpoint_files import find_faults, newest_complete


if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


logger = logging.get_logger(__name__)


class ResumableTrainerMixin(Base):
    """
    What a trainer needs so that no run is lost. To be inherited before [`~transformers.Trainer`] or a subclass, whose
    `compute_loss` calls `_watch`.

    - **A loss or gradient that is not finite** ends the run before anything is saved from it. It is looked for at
      logging steps, where the loss is read anyway, before a checkpoint and at the end.
    - **Checkpoints** are resumed from if they are complete. A lower `learning_rate` than that of the checkpoint holds.
    - **Streams** go on in the pass over the data, and at the place in it, where the checkpoint was saved. The batches
      at the end of a pass that do not fill a step are left out.
    """

    # on the device: the first step with a loss that is not finite, infinite as long as there is none
    _first_bad_step: torch.Tensor | None = None
    _last_grad_norm: torch.Tensor | float | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains the model.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to go on from, or `True` for the newest complete one in `args.output_dir`.
            trial (*optional*):
                Of a search for hyperparameters.
            ignore_keys_for_eval (`list[str]`, *optional*):
                Not used, evaluations gather no outputs.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: Number of steps, loss and metrics.

        Raises:
            ValueError: If the checkpoint is not complete, with what it lacks, or if the loss is not finite, with the
                step and the checkpoint to go back to.
            KeyboardInterrupt: If the run is interrupted, with how to resume it.
        """
        self._first_bad_step = self._last_grad_norm = None
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        except KeyboardInterrupt:
            # in place of a traceback through the step that happened to run
            raise KeyboardInterrupt(self._how_to_resume()) from None

    @property
    def _ranks(self) -> list[int]:
        """The processes whose random numbers a checkpoint holds, on this machine."""
        args = self.args
        if args.world_size == 1:
            return []
        return [args.process_index] if args.save_on_each_node else [*range(args.world_size)]

    def _find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        if resume_from_checkpoint is None or resume_from_checkpoint is False:
            return None
        if resume_from_checkpoint is not True:
            faults = find_faults(resume_from_checkpoint, self._ranks)
            if faults:
                raise ValueError(
                    f"The checkpoint {os.fspath(resume_from_checkpoint)} is not complete: {'; '.join(faults)}. A run "
                    "that goes on from it would be another one. Write `resume_from_checkpoint=True` for the newest "
                    "complete one, or load the weights alone with `from_pretrained` and start a new run."
                )
            return resume_from_checkpoint
        found, skipped = newest_complete(self.args.output_dir, self._ranks)
        lacking = [f"{path.name} ({'; '.join(faults)})" for path, faults in skipped.items()]
        if found is None:
            there_are = f"it has {', '.join(lacking)}" if lacking else "it has none"
            raise ValueError(
                f"There is no complete checkpoint in {self.args.output_dir}: {there_are}. Leave "
                "`resume_from_checkpoint` out to start anew, or write the path of a checkpoint."
            )
        if lacking:
            logger.warning(f"Resuming from {found}, since newer checkpoints are not complete: {', '.join(lacking)}.")
        return str(found)

    def _how_to_resume(self) -> str:
        done = f"Interrupted after step {self.state.global_step} of {self.state.max_steps}."
        found, _ = newest_complete(self.args.output_dir, self._ranks)
        if found is None:
            return f"{done} There is no checkpoint to resume from; `save_steps` says how often one is written."
        return (
            f"{done} To go on from {found}, call `trainer.train(resume_from_checkpoint=True)`, or write "
            "`--resume_from_checkpoint true` on the command line."
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) == num_batches or has_length(self.train_dataset):
            return batches, num_items
        # the base does not know that a stream is at its end, and would add their gradient to the next pass
        if self.state.global_step == 0:
            raise ValueError(
                f"The stream has {len(batches)} batches per process, and a step takes {num_batches}. Lower "
                "`gradient_accumulation_steps` or `per_device_train_batch_size`, or add data."
            )
        # or it would ask as often as the run has steps
        self.control.should_epoch_stop = True
        return [], None

    def _watch(self, loss: torch.Tensor) -> None:
        """Notes on the device whether a loss is finite."""
        bad = torch.where(loss.detach().isfinite(), math.inf, self.state.global_step + 1)
        self._first_bad_step = bad if self._first_bad_step is None else torch.minimum(self._first_bad_step, bad)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        self._last_grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._last_grad_norm

    def _refuse_non_finite(self) -> None:
        if self._first_bad_step is None:
            return
        step, culprit = self.accelerator.gather(self._first_bad_step).min().item(), "loss"
        norm = self._last_grad_norm
        # float16 overflows now and then: its scaler skips the step
        if math.isinf(step) and norm is not None and getattr(self.accelerator, "scaler", None) is None:
            culprit = "gradient"
            if not math.isfinite(norm.item() if isinstance(norm, torch.Tensor) else norm):
                step = self.state.global_step
        if math.isinf(step):
            return
        lower = f"{self.args.learning_rate / 4:g}"
        found, _ = newest_complete(self.args.output_dir, self._ranks, before=int(step))
        if found is None:
            advice = (
                f"There is no checkpoint before it. Look at what the data of that step holds, start again with a "
                f"lower `learning_rate`, e.g. {lower}, and write checkpoints more often (`save_steps`)."
            )
        else:
            advice = (
                f"Go back to the last checkpoint before it with a lower learning rate, as the authors of LLaDA did: "
                f"`learning_rate={lower}` and `trainer.train(resume_from_checkpoint={str(found)!r})`, on the command "
                f"line `--learning_rate {lower} --resume_from_checkpoint {found}`."
            )
        raise ValueError(
            f"The {culprit} of step {int(step)} is not finite: training has stopped, and nothing was saved since. "
            f"{advice}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._refuse_non_finite()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._refuse_non_finite()
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        asked = list(getattr(self.lr_scheduler, "base_lrs", ()))
        super()._load_optimizer_and_scheduler(checkpoint)
        saved = list(getattr(self.lr_scheduler, "base_lrs", ()))
        if asked == saved:
            return
        # both files hold the rate of the run that wrote them, and would silently restore it
        logger.warning(f"The learning rate of the checkpoint was {saved[0]:g}; the run goes on with {asked[0]:g}.")
        self.lr_scheduler.base_lrs = asked
        for group, new, old in zip(self.optimizer.param_groups, asked, saved, strict=True):
            group["lr"] = group["lr"] * new / old if old else new
            group["initial_lr"] = new
        # what is logged for the next step
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epoch, skipped = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or has_length(self.train_dataset):
            return epoch, skipped
        # the base takes a stream for one pass of all steps, however many there are
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        epoch = math.ceil(state.epoch) - 1
        if not self.args.ignore_data_skip:
            skipped = round((state.epoch - epoch) * state.max_steps * self.args.gradient_accumulation_steps)
        return epoch, skipped


__all__ = ["ResumableTrainerMixin"]
