"""A progress bar that names what is trained and shows the loss."""

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class LossBar(TrainerCallback):
    """
    A bar with the loss behind it, instead of the lines of logs that a trainer prints.

    Args:
        label (`str`): What stands before the bar.
    """

    # those that a trainer brings along
    replaces = (PrinterCallback, ProgressCallback)

    def __init__(self, label: str):
        self.label = label

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step", dynamic_ncols=True, disable=hidden)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs,
    ) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.2f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.bar.close()


__all__ = ["LossBar"]
