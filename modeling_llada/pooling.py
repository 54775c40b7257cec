"""One vector for a text: the mean of the states of its tokens, each of which has seen the whole text."""

from typing import Any

import torch

from .attention_masks import find_tokens


def mean_states(hidden_states: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
    """
    The mean of the states of every row, without its padding.

    The last state, which stands for a text where a model looks left only, is one of many here, and often that of the
    end of text.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, length, hidden_size)`):
            The last hidden states.
        attention_mask (`torch.Tensor` or `BlockMask`, *optional*):
            The mask that they were computed with. Everything counts if it does not say what padding is.

    Returns:
        `torch.Tensor` of shape `(batch, hidden_size)`, in the dtype of the states. Rows without a token are 0.
    """
    is_token = find_tokens(attention_mask, len(hidden_states))
    if is_token is not None:
        is_token = is_token.to(hidden_states.device).unsqueeze(2)
        hidden_states = hidden_states.masked_fill(~is_token, 0)
    total = hidden_states.sum(dim=1, dtype=torch.float32)
    count = hidden_states.shape[1] if is_token is None else is_token.sum(dim=1).clamp(min=1)
    return (total / count).to(hidden_states.dtype)


class TextFeaturesMixin:
    """One vector for a text, under the name by which other libraries ask a model with a head for it."""

    def get_text_features(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        """
        The mean of the last hidden states of a text. This is what `SentenceTransformer(checkpoint).encode(texts)` of
        sentence-transformers calls.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds (*optional*):
                As in [`LLaDAModel.forward`].

        Returns:
            `torch.Tensor` of shape `(batch, hidden_size)`, in the dtype of the model. It is not normalised.

        Raises:
            ValueError: See [`LLaDAModel.forward`].

        Example:

        ```python
        >>> inputs = tokenizer(["What is diffusion?", "A cat."], padding=True, return_tensors="pt")
        >>> model.get_text_features(**inputs).shape
        ```
        """
        # texts have no masks here, in training either
        outputs = self.model(
            has_head=True,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
        )
        return mean_states(outputs.last_hidden_state, attention_mask)


__all__ = ["TextFeaturesMixin", "mean_states"]
