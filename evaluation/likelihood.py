"""Likelihood of texts, and the authors' own estimate of it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_llada.answer_scoring import MaskedTexts
from ..modeling_llada.log_likelihood import LogLikelihoodOutput, find_block_length


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """
    Ids of a prompt and of the answer after it. They are those of the whole text: spaces at the end of the prompt
    belong to the first word of the answer, as in the authors' code and in lm-evaluation-harness.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        prompt, answer (`str`):
            The texts.

    Returns:
        `tuple` of the ids (`list[int]`) of prompt and answer.
    """
    kept = prompt.rstrip()
    spaces, prompt = prompt[len(kept) :], kept
    ids = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + spaces + answer)["input_ids"]
    if not prompt:
        # what the tokenizer puts before every text is nobody's answer
        ids = whole[: len(whole) - len(tokenizer(spaces + answer, add_special_tokens=False)["input_ids"])]
    return whole[: len(ids)], whole[len(ids) :]


def log_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    answers: str | Sequence[str],
    apply_chat_template: bool = False,
    **kwargs: Any,
) -> LogLikelihoodOutput:
    """
    Estimates how likely answers are after their prompts.

    Args:
        model ([`LLaDAModelLM`]):
            The model, also with adapters.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts, answers (`str` or sequences of `str`):
            The pairs. One prompt may have many answers, and one answer many prompts.
        apply_chat_template (`bool`, *optional*, defaults to `False`):
            Whether prompts are questions of a user, and answers those of the assistant.
        kwargs (`dict[str, Any]`, *optional*):
            `estimator`, `num_draws`, `cfg_scale`, `block_length`, `batch_size` and `seed` of
            [`LLaDAModelLM.log_likelihood`].

    Returns:
        [`~llada.modeling_llada.log_likelihood.LogLikelihoodOutput`], in nats.

    Raises:
        ValueError: As in [`LLaDAModelLM.log_likelihood`]; or if the model is no masked diffusion model.

    Example:

    ```python
    >>> from llada.evaluation import log_likelihood

    >>> scores = log_likelihood(model, tokenizer, "The capital of France is", [" Paris.", " Rome."])
    >>> scores.log_likelihood, scores.standard_error
    ```
    """
    scores = getattr(model, "log_likelihood", None)
    if scores is None:
        raise ValueError(
            f"{type(model).__name__} is no masked diffusion model of this package; for a causal model, see "
            "`llada.evaluation.causal_log_likelihood`."
        )
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    answers = [answers] if isinstance(answers, str) else list(answers)
    if len(prompts) == 1:
        prompts *= len(answers)
    elif len(answers) == 1:
        answers *= len(prompts)
    if len(prompts) != len(answers):
        raise ValueError(f"There are {len(prompts)} prompts and {len(answers)} answers; give one of each per pair.")
    if apply_chat_template:
        options = {"tokenize": False, "add_generation_prompt": True}
        prompts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], **options) for text in prompts]
        # the template writes its own special tokens
        pairs = [
            tuple(tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
            for pair in zip(prompts, answers, strict=True)
        ]
    else:
        pairs = [encode_pair(tokenizer, *pair) for pair in zip(prompts, answers, strict=True)]
    return scores([prompt for prompt, _ in pairs], [answer for _, answer in pairs], **kwargs)


@torch.no_grad()
def reference_estimate(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    answer: torch.Tensor,
    noisy_ids: torch.Tensor,
    mask_ratio: torch.Tensor,
    cfg_scale: float = 0.0,
) -> float:
    """
    The estimate of the authors' `get_log_likelihood.py`, from noise that is given.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        prompt, answer (`torch.LongTensor` of shape `(prompt_length,)` and `(answer_length,)`):
            The ids.
        noisy_ids (`torch.LongTensor` of shape `(batches, batch, length)`):
            The whole text with masks.
        mask_ratio (`torch.FloatTensor` of shape `(batches, batch)`):
            The share of the answer that is masked.
        cfg_scale (`float`, *optional*, defaults to 0.0):
            Strength of the guidance.

    Returns:
        `float`: The estimate of `log p(answer | prompt)`, in nats.
    """
    ids = torch.cat([prompt, answer]).cpu()
    rows = noisy_ids.flatten(0, 1).cpu()
    masked = list(rows == model.config.mask_token_id)
    texts = MaskedTexts(model, [ids] * len(rows), masked, masked, [len(prompt)] * len(rows))
    scores = texts.scores(cfg_scale)
    return float((scores.sum(dim=1) / mask_ratio.flatten().double().cpu()).mean())


def is_greedy(model: PreTrainedModel, prompt: torch.Tensor, answer: torch.Tensor, cfg_scale: float = 0.0) -> bool:
    """
    Whether the model would write this answer on a canvas of its length, one token per step, the surest first.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        prompt, answer (`torch.LongTensor` of shape `(prompt_length,)` and `(answer_length,)`):
            The ids.
        cfg_scale (`float`, *optional*, defaults to 0.0):
            Strength of the guidance.

    Returns:
        `bool`: Ends with the first token that is another one.
    """
    (found,) = are_greedy(model, [(torch.cat([prompt, answer]), len(prompt))], cfg_scale)
    return found


@torch.no_grad()
def are_greedy(
    model: PreTrainedModel,
    texts: Sequence[tuple[torch.Tensor, int]],
    cfg_scale: float = 0.0,
    block_length: int | None = None,
    batch_size: int = 16,
) -> list[bool]:
    """
    The same as [`is_greedy`] for many answers at once. Those that the model left are not asked about any more.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        texts (sequence of `(torch.LongTensor of shape (length,), int)`):
            Ids of a prompt with its answer, and where the answer begins.
        cfg_scale (`float`, *optional*, defaults to 0.0):
            Strength of the guidance.
        block_length (`int`, *optional*):
            Of a block-causal model, as in [`LLaDAModelLM.log_likelihood`]: blocks are written one after the other.
        batch_size (`int`, *optional*, defaults to 16):
            Rows of a forward pass.

    Returns:
        `list[bool]`: One for each text.
    """
    block_length = find_block_length(model, block_length)
    ids = [text.cpu() for text, _ in texts]
    masked = [torch.arange(len(text)) >= start for text, start in texts]
    found = [True] * len(texts)
    going_on = [row for row, cells in enumerate(masked) if cells.any()]
    while going_on:
        still = []
        for first in range(0, len(going_on), batch_size):
            rows = going_on[first : first + batch_size]
            asked = [_first_block(masked[row], block_length) for row in rows]
            batch = MaskedTexts(
                model,
                [ids[row] for row in rows],
                [masked[row] for row in rows],
                asked,
                [texts[row][1] for row in rows],
                block_length,
            )
            best = batch.logits(cfg_scale).softmax(dim=-1).max(dim=-1)
            counts = [int(cells.sum()) for cells in asked]
            parts = zip(best.values.cpu().split(counts), best.indices.cpu().split(counts), strict=True)
            for row, cells, (confidence, token) in zip(rows, asked, parts, strict=True):
                surest = int(confidence.argmax())
                place = int(cells.nonzero()[surest, 0])
                found[row] = bool(token[surest] == ids[row][place])
                masked[row][place] = False
                if found[row] and masked[row].any():
                    still.append(row)
        going_on = still
    return found


def _first_block(masked: torch.Tensor, block_length: int) -> torch.Tensor:
    """The masks of the first block that has any; all of a text without blocks."""
    if not block_length:
        return masked.clone()
    block = torch.arange(len(masked)) // block_length
    return masked & (block == block[masked][0])


__all__ = ["are_greedy", "encode_pair", "is_greedy", "log_likelihood", "reference_estimate"]
