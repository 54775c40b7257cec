"""The bound on the likelihood by position, in texts longer than those a model was trained on."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..modeling_llada.likelihood_bound import likelihood_bound


@dataclass(frozen=True)
class PositionBound:
    """
    The bound on some positions of a long text, in nats per token.

    Args:
        start, end (`int`):
            The positions.
        in_text (`float`):
            As part of the whole text.
        in_window (`float`):
            The same tokens, where the model was given the text in windows of the length it was trained on.
        difference, standard_error (`float`):
            How much higher the first is, and the standard error of that.
    """

    start: int
    end: int
    in_text: float
    in_window: float
    difference: float
    standard_error: float


@torch.no_grad()
def bound_by_position(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    window: int | None = None,
    part_length: int | None = None,
    num_draws: int = 8,
    seed: int = 0,
) -> list[PositionBound]:
    """
    Compares what a model makes of positions that it never saw in training with what it makes of the same tokens
    where it has.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        input_ids (`torch.LongTensor` of shape `(texts, length)`):
            Texts, of a whole number of windows. All of a text is masked at some time; there is no prompt.
        window (`int`, *optional*):
            The length that the model was trained on, `config.longest_text` if not given.
        part_length (`int`, *optional*):
            Positions of a part, a divisor of the window; a quarter of it if not given.
        num_draws (`int`, *optional*, defaults to 8):
            Masks of each text.
        seed (`int`, *optional*, defaults to 0):
            Seed of the masks.

    Returns:
        `list` of [`PositionBound`], one for each part.

    Raises:
        ValueError: If the lengths do not fit each other, a text is no longer than a window, or the model writes in
            blocks, which see no more than the text before them.
    """
    if model.config.block_causal:
        raise ValueError("This model writes in blocks, of which none is predicted within a long text that is masked.")
    window = model.config.longest_text if window is None else window
    part_length = max(window // 4, 1) if part_length is None else part_length
    length = input_ids.shape[1]
    if length % window or length <= window:
        raise ValueError(f"Texts of {length} tokens are no two or more windows of {window}; cut them to fit.")
    if window % part_length:
        raise ValueError(f"`part_length={part_length}` does not divide a window of {window}; write a divisor of it.")
    texts = [_losses(model, text[None], num_draws, seed) for text in input_ids]
    windows = [_losses(model, text.view(-1, window), num_draws, seed).view(1, -1) for text in input_ids]
    # one row for each part
    in_text, in_window = (
        torch.cat(rows).view(len(input_ids), -1, part_length).transpose(0, 1).flatten(1) for rows in (texts, windows)
    )
    change = in_text - in_window
    errors = change.std(dim=1) / change.shape[1] ** 0.5
    return [
        PositionBound(
            start=part * part_length,
            end=(part + 1) * part_length,
            in_text=float(in_text[part].mean()),
            in_window=float(in_window[part].mean()),
            difference=float(change[part].mean()),
            standard_error=float(errors[part]),
        )
        for part in range(len(change))
    ]


def _losses(model: PreTrainedModel, input_ids: torch.Tensor, num_draws: int, seed: int) -> torch.Tensor:
    """What each token contributes to the bound, `(rows, length)` in float64 on the CPU."""
    ids = input_ids.to(model.device)

    def score(noisy: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        return model(noisy, labels=ids, logits_to_keep=masked, token_losses=True).token_losses

    everything = torch.ones_like(ids, dtype=torch.bool)
    return likelihood_bound(score, ids, everything, model.config.mask_token_id, num_draws, seed=seed).double().cpu()


__all__ = ["PositionBound", "bound_by_position"]
