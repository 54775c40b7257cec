"""The loss of block diffusion, the objective that LLaDA2 was trained with (arXiv 2503.09573; LLaDA2.0 report, §4)."""

import torch
from transformers.modeling_utils import unwrap_model

from ..modeling_llada.noisy_and_clean import lay_out_noisy_and_clean


def block_diffusion_loss(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    noisy_input_ids: torch.Tensor,
    labels: torch.Tensor,
    block_length: int,
    attention_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The mean cross entropy of the scored tokens of a batch. Every block is predicted from its noisy self and from clean
    blocks before it.

    Args:
        model (`torch.nn.Module`):
            A model of this package, possibly wrapped, e.g. by data parallelism or an adapter.
        input_ids (`torch.LongTensor` of shape `(batch, length)`):
            Clean tokens.
        noisy_input_ids (`torch.LongTensor` of shape `(batch, length)`):
            The same with masks, the prompt without.
        labels (`torch.LongTensor` of shape `(batch, length)`):
            The tokens to predict, -100 where nothing is scored.
        block_length (`int`):
            Length of a block. Blocks count from the first token of a row or document. 1 is a causal model, the length
            of the row masked diffusion.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            0 for padding, on either side.
        document_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The document of every token, if there are several in a row. They do not see each other.

    Returns:
        `torch.FloatTensor`: A scalar, 0 if nothing is scored.

    Raises:
        ValueError: See [`lay_out_noisy_and_clean`].

    Example:

    ```python
    >>> noisy = input_ids.masked_fill(masked, model.config.mask_token_id)
    >>> labels = input_ids.masked_fill(~masked, -100)
    >>> block_diffusion_loss(model, input_ids, noisy, labels, block_length=32).backward()
    ```
    """
    config = unwrap_model(model).config
    seen = lay_out_noisy_and_clean(config, noisy_input_ids, input_ids, block_length, attention_mask, document_ids)
    scored = labels != -100
    losses = model(**seen, labels=labels, logits_to_keep=scored, token_losses=True).token_losses
    return losses.sum() / scored.sum().clamp(min=1)


__all__ = ["block_diffusion_loss"]
