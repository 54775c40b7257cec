"""
lm-evaluation-harness on masked diffusion models: `import llada.evaluation.harness_model` registers the model `llada`.

The harness' own `hf` runs on these models and returns nonsense: it reads the logits of the token before, from a text
that shows the answer. [`LLaDALM`] is an `HFLM` that scores by [`LLaDAModelLM.log_likelihood`] and writes by
[`LLaDAModelLM.generate`]; loading, adapters, chat templates, request cache and data parallelism are those of the
harness.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from peft import PeftConfig, PeftModel
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from ..generation.configuration_diffusion import DiffusionGenerationConfig
from ..generation.foreign_settings import FOREIGN_NAMES
from ..modeling_llada.adapters import translate_adapter_config
from ..modeling_llada.answer_scoring import MaskedTexts
from ..modeling_llada.configuration_base import MaskedDiffusionConfig
from ..modeling_llada.log_likelihood import check_estimator, find_block_length
from .comparing import describe_difference
from .harness_writing import Writer, batches, cut
from .likelihood import are_greedy


logger = logging.getLogger(__name__)

# names of other harness models -> what to write here
_FOREIGN_ARGUMENTS = {
    **FOREIGN_NAMES,
    "cfg": "cfg_scale",
    "is_check_greedy": "check_greedy",
    "llh": 'estimator="confidence"',
    "mc_num": "num_draws",
    "model_path": "pretrained",
    "nll_type": "estimator",
}
# a context length for the harness, and a length of text in generation: the former is meant
_NOT_SAMPLING = frozenset({"max_length"})
# arguments of `HFLM` for its own way to call a model
_IDLE = ("backend", "logits_cache", "mixed_precision_dtype", "softmax_dtype", "truncation")
# under this name a request cache says what its answers were made with
_SETTINGS_KEY = "llada settings"


@register_model("llada")
class LLaDALM(HFLM):
    """
    A model of the harness.

    Args:
        pretrained (`str` or [`LLaDAModelLM`]):
            Folder or repository of a checkpoint, or a model.
        estimator (`str`, *optional*, defaults to `"monte_carlo"`):
            How likelihoods are estimated, see [`LLaDAModelLM.log_likelihood`]. Answers of one token need no estimate.
        num_draws (`int`, *optional*):
            Masks or orders that the estimator draws.
        check_greedy (`bool`, *optional*, defaults to `True`):
            Whether to find out for every answer if the model would write it, which tasks such as LAMBADA ask for. It
            costs about one row more per answer; `False` answers "no" to all of them, as in the authors' runs.
        seed (`int`, *optional*, defaults to 0):
            Seed of all that is drawn. What is drawn for a request depends on it, on the request, and on how often it
            came before; not on the batch size or on the number of processes.
        preset (`str`, *optional*):
            Settings of a published sampler, see [`~llada.preset`].
        device (`str`, *optional*):
            The accelerator if there is one.
        kwargs (`dict[str, Any]`, *optional*):
            Any field of [`DiffusionGenerationConfig`], which goes before what a task says; `cfg_scale` guides scores
            as well, and `block_length` is that of both for LLaDA2. Everything else is an argument of `HFLM`: `peft`,
            `dtype`, `batch_size` (rows of a forward pass), `max_length`, `parallelize`, ...

    Raises:
        ValueError: If the checkpoint is no masked diffusion model, an argument is unknown, a setting cannot work, or
            the adapter puts virtual tokens before the text.
    """

    AUTO_MODEL_CLASS = AutoModelForMaskedLM

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        estimator: str = "monte_carlo",
        num_draws: int | None = None,
        check_greedy: bool = True,
        seed: int = 0,
        preset: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ):
        foreign = {name: kwargs[name] for name in kwargs if name in _FOREIGN_ARGUMENTS}
        if foreign:
            hints = ", ".join(f"`{name}` (write `{_FOREIGN_ARGUMENTS[name]}`)" for name in foreign)
            raise ValueError(f"Unknown model argument: {hints}.")
        if idle := [name for name in _IDLE if name in kwargs]:
            raise ValueError(f"The model arguments {idle} do nothing here; leave them out.")
        names = DiffusionGenerationConfig.field_names() - _NOT_SAMPLING
        sampling = {name: kwargs.pop(name) for name in [*kwargs] if name in names}
        guidance = DiffusionGenerationConfig(**sampling).guidance
        self.scoring: dict[str, Any] = {
            "estimator": estimator,
            "num_draws": check_estimator(estimator, num_draws, guidance) or None,
            "cfg_scale": guidance,
            "seed": seed,
        }
        self.check_greedy = check_greedy
        try:
            device = device or str(torch.accelerator.current_accelerator() or "cpu")
            super().__init__(pretrained, backend="causal", device=device, **kwargs)
        except TypeError as error:
            # the class of the model gets what nobody knows
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(f"Unknown model argument: {error}.") from error
        if not isinstance(pretrained, str):
            _check_config(self.config, type(pretrained).__name__)
        if self._max_length and self._max_length > self.config.longest_text:
            raise ValueError(
                f"`max_length={self._max_length}` is longer than the {self.config.longest_text} tokens that the model "
                "was trained for; write less, or leave it out."
            )
        if getattr(self.config, "block_causal", False):
            self.scoring["block_length"] = find_block_length(self.core, sampling.get("block_length"))
        self.writer = Writer(self.core, self.tokenizer, sampling, preset, seed, self.max_gen_toks)

    @property
    def core(self) -> Any:
        """[`LLaDAModelLM`]: The model, in which an adapter has its layers."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def max_length(self) -> int:
        """`int`: How many tokens a text may have."""
        return self._max_length or self.config.longest_text

    @property
    def rank(self) -> int:
        """`int`: Number of this process, over all machines. `HFLM` counts on one machine, and only with GPUs."""
        return self.accelerator.process_index if hasattr(self, "accelerator") else 0

    @property
    def world_size(self) -> int:
        """`int`: How many processes share the requests."""
        return self.accelerator.num_processes if hasattr(self, "accelerator") else 1

    @property
    def rows(self) -> int:
        """`int`: Rows of a forward pass."""
        if self.batch_size_per_gpu == "auto":
            self.batch_size_per_gpu = self._detect_batch_size()
        return self.batch_size_per_gpu

    def settings(self) -> dict[str, Any]:
        """
        All that results depend on, beside the tasks.

        Returns:
            `dict[str, Any]`: The checkpoint and its adapter, how likelihoods are estimated, and how text is written
            where a task says nothing.
        """
        return {
            "pretrained": self.pretrained if isinstance(self.pretrained, str) else self.core.name_or_path,
            "revision": self.revision,
            "peft": self.peft,
            "delta": self.delta,
            "dtype": str(self.core.dtype).removeprefix("torch."),
            "max_length": self.max_length,
            "scoring": {**self.scoring, "check_greedy": self.check_greedy},
            "sampling": self.writer.describe(),
        }

    def get_model_info(self) -> dict[str, Any]:
        """`dict[str, Any]`: What the harness writes about the model into its results."""
        return {**super().get_model_info(), "llada": {**self.settings(), "writing": self.writer.describe_plans()}}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """
        Called by the harness with the request cache, whose keys are requests alone.

        Raises:
            ValueError: If the answers in it were made with other settings.
        """
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        mine, stored = json.loads(json.dumps(self.settings(), default=str)), answers.get(_SETTINGS_KEY)
        if stored is None and len(answers):
            raise ValueError(
                f"The request cache {answers.filename} holds answers of another model of the harness; name another "
                "file with `--use_cache`."
            )
        if stored is not None and stored != mine:
            raise ValueError(
                f"The answers in the request cache {answers.filename} were made with other settings: "
                f"{describe_difference(stored, mine)}. Name another file with `--use_cache`."
            )
        answers[_SETTINGS_KEY] = mine

    @cached_property
    def turn_header(self) -> str:
        """`str`: What the chat template writes before an answer."""
        if self.tokenizer.chat_template is None:
            return ""
        question, options = [{"role": "user", "content": "?"}], {"tokenize": False, **self.chat_template_args}
        with_header, without = (
            self.tokenizer.apply_chat_template(question, add_generation_prompt=begins, **options)
            for begins in (True, False)
        )
        return with_header.removeprefix(without) if with_header.startswith(without) else ""

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        folder = Path(pretrained)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            base = PeftConfig.from_pretrained(pretrained).base_model_name_or_path or "CHECKPOINT"
            raise ValueError(f"{pretrained} is an adapter; write `pretrained={base},peft={pretrained}`.")
        super()._get_config(pretrained, **kwargs)
        _check_config(self.config, pretrained)

    def _create_model(self, pretrained: str, *args: Any, peft: str | None = None, **kwargs: Any) -> None:
        # `HFLM` would cut the embedding to the length of the tokenizer before it adds an adapter
        super()._create_model(pretrained, *args, **kwargs)
        if peft:
            config = PeftConfig.from_pretrained(peft)
            if config.is_prompt_learning:
                raise ValueError(
                    f"The adapter {peft} is of the kind {config.peft_type.value}, which puts virtual tokens "
                    "before the text; they have no place on a canvas. Use one that changes layers, such as LoRA."
                )
            config = translate_adapter_config(config, self._model)
            self._model = PeftModel.from_pretrained(self._model, peft, config=config)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.turn_header and context.endswith(self.turn_header):
            # the line feeds at its end belong to the conversation, and the harness would give them to the answer
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        return super()._encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        pairs = self._fit(requests)
        found: dict[int, tuple[float, bool]] = {}
        # of one token all estimators agree, and one row has all answers to a prompt
        labels: dict[tuple[int, ...], list[int]] = {}
        for number, (prompt, answer) in enumerate(pairs):
            if len(answer) == 1:
                labels.setdefault(tuple(prompt), []).append(number)
        others = [number for number, (_, answer) in enumerate(pairs) if len(answer) > 1]
        # the longest first, so that what does not fit into memory shows at once
        groups = sorted(labels.values(), key=lambda group: -len(pairs[group[0]][0]))
        others.sort(key=lambda number: -len(pairs[number][0]) - len(pairs[number][1]))
        rows = self.rows
        steps = [(self._score_labels, groups[first : first + rows]) for first in range(0, len(groups), rows)]
        steps += [(self._score, [others[first : first + rows]]) for first in range(0, len(others), rows)]
        with tqdm(
            total=len(pairs), disable=disable_tqdm or self.rank != 0, desc="scoring", dynamic_ncols=True
        ) as progress:
            for score, step in steps:
                scored = score(pairs, step)
                for number, result in scored.items():
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], result)
                found |= scored
                progress.update(len(scored))
        return [found[number] for number in range(len(pairs))]

    def _fit(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        """Prompts and answers that fit into the model, prompts cut on the left where they must be."""
        pairs, num_cut = [], 0
        for texts, prompt, answer in requests:
            room = self.max_length - len(answer)
            if not answer or room < 0:
                what = "has no token" if not answer else f"has {len(answer)} tokens, more than {self.max_length}"
                after = "" if texts is None else f" {texts[1][:40]!r}, after {texts[0][-40:]!r},"
                raise ValueError(f"The answer{after} {what}; leave its task out.")
            num_cut += len(prompt) > room
            pairs.append((prompt[max(0, len(prompt) - room) :], answer))
        if num_cut:
            logger.warning(
                "%d of %d prompts are too long for the model and are cut on the left; use fewer examples.",
                num_cut,
                len(pairs),
            )
        return pairs

    def _score(
        self, pairs: list[tuple[list[int], list[int]]], groups: list[list[int]]
    ) -> dict[int, tuple[float, bool]]:
        """Scores answers by the estimator."""
        numbers = [number for group in groups for number in group]
        prompts, answers = zip(*(pairs[number] for number in numbers), strict=True)
        scores = self.core.log_likelihood(prompts, answers, batch_size=self.rows, **self.scoring)
        greedy = [False] * len(numbers)
        if self.check_greedy:
            texts = [
                (torch.tensor([*prompt, *answer]), len(prompt))
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            greedy = are_greedy(
                self.core, texts, self.scoring["cfg_scale"], self.scoring.get("block_length"), self.rows
            )
        return dict(zip(numbers, zip(scores.log_likelihood.tolist(), greedy, strict=True), strict=True))

    @torch.no_grad()
    def _score_labels(
        self, pairs: list[tuple[list[int], list[int]]], groups: list[list[int]]
    ) -> dict[int, tuple[float, bool]]:
        """Scores answers of one token, those to the same prompt together."""
        rows = [torch.tensor([*pairs[group[0]][0], self.config.mask_token_id]) for group in groups]
        place = [torch.arange(len(row)) == len(row) - 1 for row in rows]
        texts = MaskedTexts(
            self.core, rows, place, place, [len(row) - 1 for row in rows], self.scoring.get("block_length", 0)
        )
        scores = texts.logits(self.scoring["cfg_scale"]).log_softmax(dim=-1).cpu()
        found = {}
        for group, row in zip(groups, scores, strict=True):
            best = int(row.argmax())
            for number in group:
                (token,) = pairs[number][1]
                found[number] = (float(row[token]), self.check_greedy and token == best)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """
        Likelihoods of whole documents, cut into windows as the harness cuts them. With an estimator of the bound,
        perplexities are upper bounds.

        Args:
            requests (`list[Instance]`):
                Each with a text.
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Whether to show no progress.

        Returns:
            `list[float]`: In nats.
        """
        found = []
        for request in tqdm(requests, disable=disable_tqdm or self.rank != 0, desc="documents", dynamic_ncols=True):
            (text,) = request.args
            tokens = self.tok_encode(text)
            windows = get_rolling_token_windows(
                # a start token is given and not scored
                token_list=tokens[1:] if tokens[:1] == [self.prefix_token_id] else tokens,
                prefix_token=self.prefix_token_id,
                # a causal model is not given the last token of a window, and this one is
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(score for score, _ in self._loglikelihood_tokens(parts, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """
        Writes answers up to the first stop string or the end of text.

        Args:
            requests (`list[Instance]`):
                Each with a context and settings: `until`, `max_gen_toks` (256 if neither the task nor the model
                arguments say anything), and any field of [`DiffusionGenerationConfig`].
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Whether to show no progress.

        Returns:
            `list[str]`: The answers.

        Raises:
            ValueError: If a setting is unknown or cannot work, before anything is written.
        """
        plans = [self.writer.plan(settings) for _, settings in (one.args for one in requests)]
        if self.cache_hook.dbdict is not None:
            for plan, request in zip(plans, requests, strict=True):
                # the harness leaves out of its cache what it knows to be drawn
                if request.repeats > 1 and plan.config.do_sample and not request.args[1].get("do_sample"):
                    raise ValueError(
                        f"The task {request.task_name} wants {request.repeats} draws of an answer, and the request "
                        "cache keeps one of each; write `do_sample=True` into `--gen_kwargs`, or use no cache."
                    )
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        seen: Counter[tuple[str, str]] = Counter()
        keys = []
        for request in requests:
            key = (request.args[0], repr(request.args[1]))
            keys.append((*key, seen[key]))
            seen[key] += 1
        found: dict[int, str] = {}
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="writing", dynamic_ncols=True
        ) as progress:
            for numbers in batches(plans, contexts, self.rows):
                plan, prompts = plans[numbers[0]], [contexts[number] for number in numbers]
                answers = self.writer.write(plan, prompts, [keys[number] for number in numbers], self.max_length)
                for number, tokens in zip(numbers, answers, strict=True):
                    found[number] = self._read(tokens, plan.until)
                    self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
                progress.update(len(numbers))
        return [found[number] for number in range(len(requests))]

    def _read(self, tokens: list[int], until: Sequence[str]) -> str:
        """The text of an answer, without its thoughts if the harness was told how these end."""
        end = self.think_end_token
        if isinstance(end, int) and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
            return cut(self.tok_decode(tokens).lstrip(), until)
        text = self.tok_decode(tokens)
        if isinstance(end, str) and end in text:
            text = text.rpartition(end)[2].lstrip()
        return cut(text, until)


def _check_config(config: PreTrainedConfig, name: str) -> None:
    if not isinstance(config, MaskedDiffusionConfig):
        raise ValueError(
            f"{name} is a `{config.model_type}` model, not a masked diffusion model; write `--model hf` for a causal "
            "model."
        )


__all__ = ["LLaDALM"]
