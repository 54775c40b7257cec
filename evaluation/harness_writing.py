"""How the harness' requests for text become calls of `generate`: settings, batches, stop strings."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..generation.arguments import merge_settings
from ..generation.canvas import Canvas, Delta
from ..generation.configuration_diffusion import (
    DiffusionGenerationConfig,
    overlay,
    read_temperature,
    refuse_unknown,
    settings_of,
)
from ..generation.denoising import Listener
from ..generation.presets import preset as named_preset
from ..generation.regions import Block
from ..modeling_llada.masked_diffusion import noise_generator


# what the harness calls the length of an answer, what it takes first before the others
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Plan:
    """
    What a request asks for.

    Args:
        config ([`DiffusionGenerationConfig`]):
            The settings, complete.
        until (`tuple[str, ...]`):
            Texts that end an answer and do not belong to it.
        key (`str`):
            The same for requests that may be answered together.
    """

    config: DiffusionGenerationConfig
    until: tuple[str, ...]
    key: str


class StopTexts(Listener):
    """
    Ends rows after the block in which a stop string came up in the answer: in its text, not in that of the prompt.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        until (sequence of `str`):
            The stop strings.
        width (`int`):
            Where the answers begin.
        fill (`int`):
            Id to put after the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str], width: int, fill: int):
        self.tokenizer = tokenizer
        self.until = until
        self.width = width
        self.fill = fill

    def on_block_end(self, canvas: Canvas, block: Block) -> Delta:
        settled = torch.where(canvas.masked.any(1), canvas.masked.int().argmax(1), canvas.ends)
        rows = zip(canvas.tokens.tolist(), settled.tolist(), strict=True)
        texts = [self.tokenizer.decode(row[self.width : end], skip_special_tokens=True) for row, end in rows]
        stops = torch.tensor([any(stop in text for stop in self.until) for text in texts], device=settled.device)
        return canvas.ending(stops & ~canvas.finished, settled, self.fill)


class Writer:
    """
    Writes answers to requests of the harness.

    Args:
        model ([`LLaDAModelLM`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        sampling (`dict[str, Any]`):
            Settings that go before those of requests.
        preset (`str`, *optional*):
            Name of a preset, before which those of requests go.
        seed (`int`, *optional*, defaults to 0):
            Seed of what is drawn.
        num_tokens (`int`, *optional*, defaults to 256):
            Length of an answer where nobody says anything.

    Raises:
        ValueError: If there is no such preset, or a setting cannot work.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: dict[str, Any],
        preset: str | None = None,
        seed: int = 0,
        num_tokens: int = 256,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = dict(sampling)
        read_temperature(self.sampling)
        self.base = {} if preset is None else settings_of(named_preset(preset))
        self.seed = seed
        self.num_tokens = num_tokens
        self.plans: dict[str, Plan] = {}
        self._merge({})

    def describe(self) -> dict[str, Any]:
        """`dict[str, Any]`: The settings where a request says nothing."""
        return _plain(self._merge({}))

    def describe_plans(self) -> dict[str, Any]:
        """`dict[str, Any]`: Stop strings and settings of the requests that were read, numbered if they are several."""
        plans = [{"until": list(plan.until), **_plain(plan.config)} for plan in self.plans.values()]
        return plans[0] if len(plans) == 1 else {str(number): plan for number, plan in enumerate(plans)}

    def plan(self, settings: dict[str, Any]) -> Plan:
        """
        Reads the settings of a request.

        Args:
            settings (`dict[str, Any]`):
                `until`, `max_gen_toks` and fields of [`DiffusionGenerationConfig`].

        Returns:
            [`Plan`].

        Raises:
            ValueError: If a setting is unknown or cannot work.
        """
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in self.plans:
            stated = dict(settings)
            if "max_length" in stated:
                raise ValueError(
                    f"`max_length={stated['max_length']}` counts the prompt; write the length of the answer, "
                    "`max_gen_toks`."
                )
            until = stated.pop("until", None) or []
            until = [until] if isinstance(until, str) else until
            lengths = [stated.pop(name) for name in _LENGTHS if name in stated]
            if lengths:
                stated["max_new_tokens"] = int(lengths[0])
            refuse_unknown(stated)
            self.plans[key] = Plan(self._merge(stated), tuple(dict.fromkeys(filter(None, until))), key)
        return self.plans[key]

    def _merge(self, stated: dict[str, Any]) -> DiffusionGenerationConfig:
        """
        Model arguments go before what a request states, that before the preset, that before the greedy decoding of the
        harness, and all before the checkpoint.
        """
        merged: dict[str, Any] = {"do_sample": False, "max_new_tokens": self.num_tokens}
        overlay(merged, self.base)
        read_temperature(stated)
        overlay(merged, stated)
        overlay(merged, self.sampling)
        config = merge_settings(self.model, DiffusionGenerationConfig(**merged), {})
        if (config.num_return_sequences or 1) > 1:
            raise ValueError(
                f"`num_return_sequences={config.num_return_sequences}`, and a request has one answer; write "
                "`repeats:` into the task."
            )
        config.return_dict_in_generate = config.output_trace = None
        return config

    def write(
        self, plan: Plan, prompts: Sequence[list[int]], keys: Sequence[tuple[str | int, ...]], max_length: int
    ) -> list[list[int]]:
        """
        Answers prompts.

        Args:
            plan ([`Plan`]):
                The settings.
            prompts (sequence of `list[int]`):
                Ids of the prompts.
            keys (sequence of `tuple`):
                What the draws of each row depend on.
            max_length (`int`):
                Tokens that a text may have: longer prompts are cut on the left.

        Returns:
            `list[list[int]]`: Ids of the answers, before their end of text.

        Raises:
            ValueError: If there is no room for a prompt.
        """
        config, device = plan.config, self.model.device
        room = max_length - config.max_new_tokens
        if room < 1:
            raise ValueError(
                f"An answer of {config.max_new_tokens} tokens leaves no room for a prompt in {max_length}; write less "
                "with `--model_args max_new_tokens=`."
            )
        prompts = [prompt[-room:] for prompt in prompts]
        width = max(map(len, prompts))
        fill = config.pad_token_id if config.pad_token_id is not None else next(iter(config.eos_token_ids), 0)
        tokens = torch.tensor([[fill] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        more: dict[str, Any] = {}
        if config.rng_compat is None:
            seeds = [noise_generator(self.seed, "harness", *key).initial_seed() for key in keys]
            more["generator"] = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        if plan.until:
            more["listeners"] = [StopTexts(self.tokenizer, plan.until, width, fill)]
        rows = self.model.generate(tokens, generation_config=config, attention_mask=mask, **more)
        ends = {*config.eos_token_ids, *self._special(plan.until)}
        return [_before(row, ends) for row in rows[:, width:].tolist()]

    def _special(self, until: Sequence[str]) -> list[int]:
        """Ids of the stop strings that are special tokens, which a decoded text does not show."""
        special = set(self.tokenizer.all_special_tokens)
        special |= {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return [self.tokenizer.convert_tokens_to_ids(stop) for stop in until if stop in special]


def _before(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _plain(config: DiffusionGenerationConfig) -> dict[str, Any]:
    """What is set in a config, as JSON holds it."""
    names = config.field_names() - {"transformers_version"}
    values = {name: value for name, value in config.to_dict().items() if name in names and value is not None}
    return json.loads(json.dumps(values, sort_keys=True, default=str))


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of some stop strings."""
    places = [place for place in map(text.find, until) if place >= 0]
    return text[: min(places, default=len(text))]


def batches(plans: Sequence[Plan], contexts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """
    Puts requests into batches of equal settings and similar lengths, the longest first.

    Args:
        plans (sequence of [`Plan`]):
            The settings of each.
        contexts (sequence of `list[int]`):
            The ids of each.
        size (`int`):
            Requests of a batch.

    Returns:
        Iterator of the numbers (`list[int]`) of the requests of a batch.
    """
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        groups.setdefault(plan.key, []).append(number)
    for group in groups.values():
        group.sort(key=lambda number: -len(contexts[number]))
        for first in range(0, len(group), size):
            yield group[first : first + size]


__all__ = ["Plan", "StopTexts", "Writer", "batches", "cut"]
