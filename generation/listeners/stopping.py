"""Which rows are done before every mask is filled."""

import torch
from transformers import MaxTimeCriteria, StoppingCriteriaList, StopStringCriteria

from ..canvas import Canvas, Delta
from ..configuration_diffusion import DiffusionGenerationConfig
from ..denoising import Listener
from ..positional import first_stop
from ..regions import Block


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


class EndOfTextStopper(Listener):
    """
    Finishes rows at an end of text that nothing undecided precedes, after every step. No end of text counts before
    text that was given.

    Args:
        eos_token_ids (`list[int]`):
            Ids that end the text.
        fill (`int`):
            Id to put after the end.
        device (`torch.device`):
            Device of the canvas.
        revises (`bool`, *optional*, defaults to `False`):
            Whether committed tokens may change until their block is finished. An end of text counts then.
    """

    def __init__(self, eos_token_ids: list[int], fill: int, device: torch.device, revises: bool = False):
        self.eos = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
        self.fill = fill
        self.revises = revises

    def on_step(self, canvas: Canvas, delta: Delta) -> Delta | None:
        return None if self.revises else self._finish(canvas)

    def on_block_end(self, canvas: Canvas, block: Block) -> Delta | None:
        return self._finish(canvas) if self.revises else None

    def _finish(self, canvas: Canvas) -> Delta:
        ends = torch.isin(canvas.tokens, self.eos) & ~canvas.frozen & ~canvas.has_suffix
        ends &= canvas.masked.cumsum(1) == 0
        return canvas.ending(ends.any(1) & ~canvas.finished, ends.int().argmax(1) + 1, self.fill)


class CriteriaStopper(Listener):
    """
    Finishes rows where stopping criteria of transformers hold. After every block, they are asked at each position that
    got settled in it, also in rows that have come to their end of text: whatever comes first ends a row. Given text is
    no answer: they are not asked there, and no row ends before it.

    A row that is out of time ([`~transformers.MaxTimeCriteria`]) keeps what is settled.

    Args:
        canvas ([`Canvas`]):
            The canvas before the first step.
        criteria ([`~transformers.StoppingCriteriaList`]):
            The criteria, e.g. for stop strings.
        fill (`int`):
            Id to put after the end.
    """

    def __init__(self, canvas: Canvas, criteria: StoppingCriteriaList, fill: int):
        self.clocks = [criterion for criterion in criteria if isinstance(criterion, MaxTimeCriteria)]
        self.criteria = StoppingCriteriaList(criterion for criterion in criteria if criterion not in self.clocks)
        self.fill = fill
        # where the criteria have not looked yet
        self.unread = canvas.masked.int().argmax(1).tolist()

    def on_block_end(self, canvas: Canvas, block: Block) -> Delta:
        is_open = canvas.masked.any(1)
        settled = torch.where(is_open, canvas.masked.int().argmax(1), canvas.ends)
        stops = canvas.ends.clone()
        if self.criteria:
            answer = ~canvas.frozen & ~canvas.has_suffix
            rows = zip(answer.tolist(), canvas.padding.tolist(), settled.tolist(), strict=True)
            for row, (asked, padding, end) in enumerate(rows):
                positions = [position for position in range(self.unread[row], end) if asked[position]]
                self.unread[row] = end
                stop = first_stop(self.criteria, canvas, row, padding, positions)
                if stop is not None:
                    stops[row] = stop + 1
        if any(clock(canvas.tokens, None).any() for clock in self.clocks):
            place = settled.clamp(max=canvas.tokens.shape[1] - 1).unsqueeze(1)
            late = is_open & ~canvas.has_suffix.gather(1, place).squeeze(1)
            stops = torch.where(late, torch.minimum(stops, settled), stops)
        return canvas.ending(stops < canvas.ends, stops, self.fill)


__all__ = ["CriteriaStopper", "EndOfTextStopper", "stopping_criteria_of"]
