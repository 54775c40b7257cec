"""Choosing among labels of one token: multiple choice by its letter, yes or no, a score."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_llada.answer_scoring import MaskedTexts
from .likelihood import encode_pair


@torch.no_grad()
def choose_label(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[str],
    cfg_scale: float = 0.0,
    batch_size: int = 16,
) -> torch.Tensor:
    """
    How likely each label is after each prompt: of one token all estimators agree, and one pass gives all labels. This
    is how the paper scores MMLU, CMMLU and C-Eval (arXiv 2502.09992, appendix B).

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (sequence of `str`):
            Texts that end where the label is wanted.
        labels (sequence of `str`):
            What may follow, one token each, such as `[" A", " B", " C", " D"]` or `[" yes", " no"]`.
        cfg_scale (`float`, *optional*, defaults to 0.0):
            Strength of the guidance.
        batch_size (`int`, *optional*, defaults to 16):
            Prompts of a forward pass.

    Returns:
        `torch.DoubleTensor` of shape `(prompts, labels)`: log-probabilities, over the whole vocabulary. A softmax over
        the labels makes a distribution of them; the expectation under it is a score.

    Raises:
        ValueError: If a label is not one token, two are the same one, or there is nothing to choose.
    """
    if isinstance(prompts, str) or isinstance(labels, str) or not prompts or not labels:
        raise ValueError(f"Give lists of prompts and labels, not {prompts!r} and {labels!r}.")
    rows, tokens = [], []
    mask = torch.tensor([model.config.mask_token_id])
    for prompt in prompts:
        pairs = [encode_pair(tokenizer, prompt, label) for label in labels]
        for label, (_, answer) in zip(labels, pairs, strict=True):
            if len(answer) != 1:
                raise ValueError(
                    f"The label {label!r} takes {len(answer)} tokens after {prompt[-20:]!r}; write one that is a "
                    "single token, or score it as an answer with `log_likelihood`."
                )
        ids = [answer[0] for _, answer in pairs]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Two of the labels {list(labels)} are the same token; give different ones.")
        rows.append(torch.cat([torch.tensor(pairs[0][0], dtype=torch.long), mask]))
        tokens.append(torch.tensor(ids))
    found = []
    for first in range(0, len(rows), batch_size):
        batch, wanted = rows[first : first + batch_size], torch.stack(tokens[first : first + batch_size])
        places = [torch.arange(len(row)) == len(row) - 1 for row in batch]
        logits = MaskedTexts(model, batch, places, places, [len(row) - 1 for row in batch]).logits(cfg_scale)
        found.append(logits.log_softmax(dim=-1).cpu().gather(1, wanted).double())
    return torch.cat(found)


__all__ = ["choose_label"]
