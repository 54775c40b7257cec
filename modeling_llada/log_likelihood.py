"""`model.log_likelihood`: how likely an answer is, by the estimator of choice, for many pairs at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..generation.configuration_diffusion import DEFAULTS
from .answer_scoring import Segment, ask, ask_the_surest
from .likelihood_bound import content_keys
from .mask_plans import ESTIMATORS, left_to_right
from .masked_diffusion import noise_generator


# the order is chosen by looking at the answer, so there is no plan of it
CONFIDENCE = "confidence"


@dataclass(frozen=True)
class LogLikelihoodOutput:
    """
    What [`LogLikelihoodMixin.log_likelihood`] returns, on the CPU, in nats.

    Args:
        log_likelihood (`torch.DoubleTensor` of shape `(pairs,)`):
            The estimates.
        standard_error (`torch.DoubleTensor` of shape `(pairs,)`):
            Of the estimates: 0 where nothing was drawn, NaN where a single draw cannot tell.
        num_tokens (`torch.LongTensor` of shape `(pairs,)`):
            Lengths of the answers.
        token_log_likelihoods (`list[torch.DoubleTensor]`):
            For each pair what the tokens of the answer contribute, of shape `(num_tokens,)`. They sum to the estimate.
        num_rows (`int`):
            Rows that the model computed, the cost.
    """

    log_likelihood: torch.Tensor
    standard_error: torch.Tensor
    num_tokens: torch.Tensor
    token_log_likelihoods: list[torch.Tensor]
    num_rows: int


class LogLikelihoodMixin:
    """Scores of given answers, for models whose logits predict masked tokens at the positions they stand at."""

    @torch.no_grad()
    def log_likelihood(
        self: Any,
        prompt_ids: torch.Tensor | Sequence[Any],
        answer_ids: torch.Tensor | Sequence[Any],
        estimator: str = "monte_carlo",
        num_draws: int | None = None,
        cfg_scale: float = 0.0,
        block_length: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> LogLikelihoodOutput:
        """
        Estimates `log p(answer | prompt)`.

        A pair's result depends on its tokens and on `seed`: not on the pairs beside it, on `batch_size` or on padding.
        Answers are compared under the masks of their own text, which has less noise the more draws there are.

        Args:
            prompt_ids, answer_ids (sequences of `torch.LongTensor` or `list[int]`, or a `torch.LongTensor`):
                One prompt and one answer per pair, of any lengths and without padding. A single prompt (1-D) is that
                of all answers, and a single answer that of all prompts. A prompt may be empty.
            estimator (`str`, *optional*, defaults to `"monte_carlo"`):
                What to estimate, and how.

                - `"monte_carlo"`: the bound of arXiv 2502.09992, eq. 14, from `num_draws` stratified masks, or summed
                  over all masks where these are no more.
                - `"reference"`: the bound as the authors' code draws it, a little off for most lengths.
                - `"exact"`: the bound, summed over all masks of at most 16 tokens (of a block).
                - `"left_to_right"`, `"right_to_left"`: the chain rule in this order, exact for a sampler of it.
                - `"any_order"`: the mean over `num_draws` orders. Its expectation is the bound.
                - `"pseudo"`: every token given all others. No likelihood: for ranking.
                - `"confidence"`: the chain rule in the order in which the answer is surest. No likelihood, since the
                  answer chooses the order: for ranking (iLLaDA).
            num_draws (`int`, *optional*):
                Masks (128 if not given) or orders (8) that are drawn.
            cfg_scale (`float`, *optional*, defaults to 0.0):
                Strength of the guidance of generation, 0 for none. It costs two passes.
            block_length (`int`, *optional*):
                For block-causal models (LLaDA2): the length of the blocks, in which the estimator scores one after the
                other, given what stands before. The length in generation if not given.
            batch_size (`int`, *optional*, defaults to 16):
                Rows of a forward pass.
            seed (`int`, *optional*, defaults to 0):
                Seed of the draws.

        Returns:
            [`LogLikelihoodOutput`].

        Raises:
            ValueError: If an answer is empty, a pair is too long, a token does not exist or is the mask, the numbers
                of prompts and answers differ, or a setting is unknown or does nothing.

        Example:

        ```python
        >>> prompt, *answers = (tokenizer(text)["input_ids"] for text in ("2 + 2 =", " 4", " 5"))
        >>> scores = model.log_likelihood(prompt, answers)
        >>> best = answers[scores.log_likelihood.argmax()]
        ```
        """
        num_draws = check_estimator(estimator, num_draws, cfg_scale, batch_size)
        pairs = _read_pairs(self.config, prompt_ids, answer_ids)
        block_length = find_block_length(self, block_length)
        plan = ESTIMATORS[estimator][0] if estimator in ESTIMATORS else left_to_right
        segments = []
        for number, (ids, start) in enumerate(pairs):
            # what is drawn depends on the text and on where its answer begins
            (key,) = content_keys(ids[None])
            for begin, end in _blocks(start, len(ids), block_length):
                generator = noise_generator(seed, "log-likelihood", key, start, begin)
                drawn = plan(end - begin, num_draws, generator)
                segments.append(Segment(number, ids[:end], begin, start, drawn))
        asking = ask_the_surest if estimator == CONFIDENCE else ask
        is_training = self.training
        self.eval()
        try:
            num_rows = asking(self, segments, cfg_scale, block_length, batch_size)
        finally:
            self.train(is_training)
        return _collect(segments, len(pairs), num_rows)


def check_estimator(estimator: str, num_draws: int | None, cfg_scale: float = 0.0, batch_size: int = 1) -> int:
    """
    Checks what needs no text to be checked.

    Args:
        estimator, num_draws, cfg_scale, batch_size:
            As in [`LLaDAModelLM.log_likelihood`].

    Returns:
        `int`: The number of draws, 0 of an estimator that draws nothing.

    Raises:
        ValueError: If a setting is unknown, out of range, or does nothing.
    """
    if estimator != CONFIDENCE and estimator not in ESTIMATORS:
        raise ValueError(f"`estimator={estimator!r}` is unknown; write one of {(*ESTIMATORS, CONFIDENCE)}.")
    default = 0 if estimator == CONFIDENCE else ESTIMATORS[estimator][1]
    if num_draws is not None and not default:
        raise ValueError(f"`num_draws={num_draws}`, but `estimator={estimator!r}` draws nothing; leave it out.")
    num_draws = default if num_draws is None else num_draws
    if default and num_draws < 1:
        raise ValueError(f"`num_draws={num_draws}` gives no estimate; write at least 1.")
    if not 0 <= cfg_scale < float("inf"):
        raise ValueError(f"`cfg_scale={cfg_scale}` is no strength of guidance; write a finite number, 0 for none.")
    if batch_size < 1:
        raise ValueError(f"`batch_size={batch_size}` computes nothing; write at least 1.")
    return num_draws


def _read_rows(given: Any, name: str) -> list[torch.Tensor] | torch.Tensor:
    """Rows of ids; a single one comes back as it is."""
    if isinstance(given, torch.Tensor):
        if given.ndim not in (1, 2):
            raise ValueError(
                f"`{name}` has shape {tuple(given.shape)}; give ids of shape `(length,)` or `(rows, length)`."
            )
        return given.cpu().long() if given.ndim == 1 else list(given.cpu().long())
    if all(isinstance(token, int) for token in given):
        return torch.tensor(list(given), dtype=torch.long)
    rows = []
    for part in given:
        row = _read_rows(part, name)
        if not isinstance(row, torch.Tensor):
            raise ValueError(f"`{name}` is nested too deep; give one row of ids per pair.")
        rows.append(row)
    return rows


def _read_pairs(config: Any, prompt_ids: Any, answer_ids: Any) -> list[tuple[torch.Tensor, int]]:
    """For every pair its text and where the answer begins."""
    prompts, answers = _read_rows(prompt_ids, "prompt_ids"), _read_rows(answer_ids, "answer_ids")
    if isinstance(prompts, torch.Tensor):
        prompts = [prompts] * (1 if isinstance(answers, torch.Tensor) else len(answers))
    if isinstance(answers, torch.Tensor):
        answers = [answers] * len(prompts)
    if len(prompts) != len(answers):
        raise ValueError(f"There are {len(prompts)} prompts and {len(answers)} answers; give one of each per pair.")
    pairs = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not len(answer):
            raise ValueError(f"Answer {number} has no token; leave the pair out, or score at least its end of text.")
        ids = torch.cat([prompt, answer])
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            wrong = int(ids[(ids < 0) | (ids >= config.vocab_size)][0])
            raise ValueError(
                f"Pair {number} holds the id {wrong}, and the vocabulary ends at {config.vocab_size - 1}; tokenize it "
                "with the tokenizer of the model, and without padding."
            )
        if (ids == config.mask_token_id).any():
            raise ValueError(f"Pair {number} holds the mask token, {config.mask_token_id}; give the whole text.")
        if len(ids) > config.longest_text:
            raise ValueError(
                f"Pair {number} has {len(ids)} tokens, more than the {config.longest_text} the model was trained for; "
                "shorten the prompt, or score a long document with `llada.evaluation.score_documents`."
            )
        pairs.append((ids, len(prompt)))
    return pairs


def find_block_length(model: Any, block_length: int | None) -> int:
    """
    The length of the blocks that a model scores one after the other.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        block_length (`int`, *optional*):
            What was asked for. If not given, the length in generation.

    Returns:
        `int`: 0 for a model that attends to the whole answer.

    Raises:
        ValueError: If a length was given that is none, or the model has no blocks.
    """
    config = model.config
    if not getattr(config, "block_causal", False):
        if block_length is not None:
            raise ValueError(
                f"`block_length={block_length}`, but this `{config.model_type}` attends to the whole answer at once; "
                "leave it out."
            )
        return 0
    if block_length is None:
        block_length = model.generation_config.block_length or config.block_size or DEFAULTS["block_length"]
    if block_length < 1:
        raise ValueError(f"`block_length={block_length}` is no length; write at least 1.")
    return block_length


def _blocks(start: int, end: int, block_length: int) -> Iterator[tuple[int, int]]:
    """Where the parts of an answer begin and end. Blocks are counted from the start of the text."""
    while start < end:
        stop = min(end, start - start % block_length + block_length) if block_length else end
        yield start, stop
        start = stop


def _collect(segments: list[Segment], num_pairs: int, num_rows: int) -> LogLikelihoodOutput:
    parts: list[list[torch.Tensor]] = [[] for _ in range(num_pairs)]
    variance = torch.zeros(num_pairs, dtype=torch.double)
    for segment in segments:
        parts[segment.pair].append(segment.scores)
        variance[segment.pair] += segment.variance()
    tokens = [torch.cat(part) for part in parts]
    return LogLikelihoodOutput(
        log_likelihood=torch.stack([part.sum() for part in tokens]),
        standard_error=variance.sqrt(),
        num_tokens=torch.tensor([len(part) for part in tokens]),
        token_log_likelihoods=tokens,
        num_rows=num_rows,
    )


__all__ = ["LogLikelihoodMixin", "LogLikelihoodOutput", "check_estimator", "find_block_length"]
