"""How long an answer is to be, asked of the model before it is filled."""

from collections.abc import Callable

import torch

from .canvas import Canvas
from .configuration_diffusion import DiffusionGenerationConfig
from .forwards import FullForward
from .scores import confidence, likeliest


def end_confidence(logits: torch.Tensor, eos_token_ids: torch.Tensor, window: int) -> torch.Tensor:
    """
    How sure a model is that a text ends within its masks: the probabilities of an end of text at the last `window`
    positions where it is the likeliest token, summed and divided by `window` (DAEDAL, arXiv 2508.00819).

    Args:
        logits (`torch.FloatTensor` of shape `(rows, masks, vocab_size)`):
            Logits of the masks.
        eos_token_ids (`torch.LongTensor` of shape `(ids,)`):
            Ids that end the text.
        window (`int`):
            How many positions count.

    Returns:
        `torch.FloatTensor` of shape `(rows,)`.
    """
    tokens = likeliest(logits.flatten(0, 1))
    probability = confidence(logits.flatten(0, 1), tokens).view(logits.shape[:2])
    return mean_of_last(probability, torch.isin(tokens, eos_token_ids).view(logits.shape[:2]), window)


def mean_of_last(probability: torch.Tensor, is_end: torch.Tensor, window: int) -> torch.Tensor:
    """The same from the probabilities of the likeliest tokens, and whether these are ends of text."""
    # counted from the right
    number = is_end.flip(1).cumsum(1).flip(1)
    return probability.masked_fill(~is_end | (number > window), 0.0).sum(1) / window


def settle_length(
    config: DiffusionGenerationConfig,
    model: Callable,
    prompt: torch.Tensor,
    attention_mask: torch.Tensor | None,
    longest: int,
) -> tuple[Canvas, FullForward]:
    """
    Puts `initial_length` masks after every prompt, and more until the model is sure that the text ends within them
    (DAEDAL, arXiv 2508.00819, initial length adjustment). With `expand_threshold`, ends of text follow the masks, half
    as many as `length_window`, as in the published code, and then room for as much as rows may grow.

    Args:
        config ([`DiffusionGenerationConfig`]):
            The settings.
        model (`Callable`):
            As in [`~llada.generation.forwards.FullForward`].
        prompt (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        attention_mask (`torch.Tensor` of shape `(batch, prompt_length)`, *optional*):
            1 for tokens, 0 for padding.
        longest (`int`):
            Number of masks not to be exceeded.

    Returns:
        `tuple`: The canvas, in which shorter rows and rows that may grow end with padding, and the plan that counted
        the forward passes.
    """
    step, window = config.rule_setting("length_step"), config.rule_setting("length_window")
    threshold = config.rule_setting("length_threshold")
    initial, mask_token_id = config.initial_length, config.mask_token_id
    assert initial is not None and mask_token_id is not None, "generate has looked for both"
    forward = FullForward(model, config.guidance)
    eos_token_ids = torch.tensor(config.eos_token_ids, device=prompt.device)
    lengths = [min(initial, longest)] * len(prompt)
    growing, length = list(range(len(prompt))), lengths[0]
    while growing and length < longest:
        canvas = Canvas.after_prompt(prompt, length, mask_token_id, attention_mask)
        forward.end = canvas.tokens.shape[1]
        rows = torch.zeros_like(canvas.finished)
        rows[growing] = True
        counts = [length * (row in growing) for row in range(len(prompt))]
        logits = forward(canvas, canvas.masked & rows.unsqueeze(1), counts).view(len(growing), length, -1)
        is_short = (end_confidence(logits, eos_token_ids, window) < threshold).tolist()
        growing = [row for row, short in zip(growing, is_short, strict=True) if short]
        length = min(length + step, longest)
        for row in growing:
            lengths[row] = length
    fill = config.pad_token_id if config.pad_token_id is not None else config.eos_token_ids[0]
    if config.expand_threshold is None:
        if min(lengths) == max(lengths):
            return Canvas.after_prompt(prompt, lengths[0], mask_token_id, attention_mask), forward
        canvas = _lay_out(prompt, attention_mask, lengths, lengths, max(lengths), mask_token_id, fill, fill)
    else:
        ends = [min(length + window // 2, longest) for length in lengths]
        eos = config.eos_token_ids[0]
        canvas = _lay_out(prompt, attention_mask, lengths, ends, longest, mask_token_id, eos, fill)
    return canvas, forward


def _lay_out(
    prompt: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_masks: list[int],
    lengths: list[int],
    longest: int,
    mask_token_id: int,
    eos: int,
    fill: int,
) -> Canvas:
    """Masks after every prompt, `eos` up to a length, and padding."""
    ends = torch.tensor(lengths, device=prompt.device).unsqueeze(1)
    places = torch.arange(longest, device=prompt.device)
    beyond = places >= ends
    answer = torch.full_like(beyond, mask_token_id, dtype=prompt.dtype)
    answer = answer.masked_fill(places >= torch.tensor(num_masks, device=prompt.device).unsqueeze(1), eos)
    answer = answer.masked_fill(beyond, fill)
    attention_mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
    canvas = Canvas(
        torch.cat([prompt, answer], dim=1),
        torch.cat([torch.ones_like(prompt, dtype=torch.bool), beyond], dim=1),
        mask_token_id,
        torch.cat([attention_mask, (~beyond).to(attention_mask.dtype)], dim=1),
    )
    canvas.ends = prompt.shape[1] + ends.squeeze(1)
    return canvas


__all__ = ["end_confidence", "settle_length"]
