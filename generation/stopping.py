"""Which rows are done before every mask is filled."""

import torch
from transformers import MaxTimeCriteria, StoppingCriteriaList, StopStringCriteria

from .canvas import Canvas, Delta
from .configuration_diffusion import DiffusionGenerationConfig
from .positional import first_stop, left_padding


def stopping_criteria_of(
    config: DiffusionGenerationConfig, custom: StoppingCriteriaList | None, tokenizer
) -> StoppingCriteriaList:
    """The criteria that a config asks for, and those of the caller. Length and end of text need none."""
    criteria = StoppingCriteriaList(custom or [])
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(max_time=config.max_time))
    if config.stop_strings is not None:
        criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=config.stop_strings))
    return criteria


class Stopper:
    """
    Finishes rows: at an end of text that nothing undecided precedes, after every step, and where stopping criteria
    hold, after every block. What follows the end reads `fill`.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        eos_token_ids (`list[int]`):
            Ids that end the text, none if an end of text does not stop.
        criteria ([`~transformers.StoppingCriteriaList`]):
            Criteria of transformers, e.g. for stop strings.
        fill (`int`):
            Id to put after the end.
    """

    def __init__(self, canvas: Canvas, eos_token_ids: list[int], criteria: StoppingCriteriaList, fill: int):
        self.eos = torch.tensor(eos_token_ids, dtype=torch.long, device=canvas.tokens.device)
        self.criteria = criteria
        self.fill = fill
        self.padding = left_padding(canvas)
        # where the criteria have not looked yet
        self.unread = canvas.masked.int().argmax(1).tolist()

    def __call__(self, canvas: Canvas, delta: Delta) -> None:
        """Finishes the rows that are done after a step."""
        if len(self.eos):
            ends = torch.isin(canvas.tokens, self.eos) & ~canvas.frozen & ~canvas.masked & ~canvas.has_suffix
            before_mask = canvas.masked.cumsum(1) == 0
            self._finish(canvas, ends & before_mask)
        if self.criteria and delta.closes_block:
            self._check_criteria(canvas)

    def _finish(self, canvas: Canvas, ends: torch.Tensor) -> None:
        first = torch.where(ends.any(1), ends.int().argmax(1), -1).tolist()
        for row in list(canvas.active):
            if first[row] >= 0:
                canvas.finish(row, first[row] + 1, self.fill)

    def _check_criteria(self, canvas: Canvas) -> None:
        length = canvas.tokens.shape[1]
        settled = torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), length).tolist()
        for row in list(canvas.active):
            stop = first_stop(self.criteria, canvas, row, self.padding[row], self.unread[row], settled[row])
            self.unread[row] = settled[row]
            if stop is not None:
                canvas.finish(row, stop + 1, self.fill)


__all__ = ["Stopper", "stopping_criteria_of"]
