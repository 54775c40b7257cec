"""`generate` and `infill`: the familiar methods, on a model that predicts all masks at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput, logging

from .answer_length import settle_length
from .assembly import compile_forward, make_forward, make_proposer, make_revision, make_selector
from .canvas import Canvas
from .canvas_cache import CanvasCache
from .configuration_diffusion import DiffusionGenerationConfig, overlay, read_temperature, refuse_unknown, settings_of
from .denoising import Listener, denoise
from .forwards import BlockCausalForward, FullForward
from .positional import PositionalProcessors
from .regions import Region
from .stopping import CriteriaStopper, EndOfTextStopper, stopping_criteria_of
from .stored_settings import read_stored_settings, refuse_stored
from .streaming import StreamFeed
from .trace import Trace, TraceRecorder


logger = logging.get_logger(__name__)

# arguments of `GenerationMixin.generate` that cannot work here -> why
_REFUSED_ARGUMENTS = {
    "assistant_model": "speculative decoding drafts left to right, which a mask predictor does not do",
    "assistant_tokenizer": "speculative decoding drafts left to right, which a mask predictor does not do",
    "custom_generate": "sampling is part of this model; build a loop from `llada.generation.denoising.denoise`",
    "decoder_input_ids": "pass the sequence with its masks to `infill`",
    "inputs_embeds": "tokens are replaced in every step, so give `input_ids`",
    "negative_prompt_attention_mask": "guidance masks the prompt, there is no negative prompt",
    "negative_prompt_ids": "guidance masks the prompt, there is no negative prompt",
    "position_ids": "positions are counted over the canvas; give `attention_mask` for padding",
    "prefix_allowed_tokens_fn": "it needs a finished prefix; pass a `LogitsProcessor`, it gets the text on the left",
    "synced_gpus": "the number of forward passes differs between processes; gather the parameters first",
    "token_type_ids": 'there are none; set `tokenizer.model_input_names = ["input_ids", "attention_mask"]`',
}


@dataclass
class DiffusionGenerateOutput(ModelOutput):
    """
    What `generate` and `infill` return with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(batch, length)`):
            The whole sequences, prompt included, to the end of the longest.
        num_forwards (`int`):
            Number of forward passes of the model.
        tokens_per_forward (`torch.FloatTensor` of shape `(batch,)`):
            Tokens filled in, up to and including the first end of text, per forward pass the row took part in.
        trace (`list[Trace]`, *optional*):
            With `output_trace=True`, how each sequence came about.
        cache ([`CanvasCache`], *optional*):
            With `kv_cache="block"`, to continue the same text in another call. Also readable as `past_key_values`, its
            name before transformers 5.24.
    """

    sequences: torch.Tensor
    num_forwards: int | None = None
    tokens_per_forward: torch.Tensor | None = None
    trace: list[Trace] | None = None
    cache: CanvasCache | None = None

    @property
    def past_key_values(self) -> CanvasCache | None:
        """The cache, by the name it had before transformers 5.24."""
        return self.cache


class LLaDAGenerationMixin(GenerationMixin):
    """
    Sampling for models whose logits predict the masked tokens at the positions they stand at. A class that uses it
    sets `generation_config_class = DiffusionGenerationConfig`.
    """

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer=None,
        **kwargs: Any,
    ) -> torch.Tensor | DiffusionGenerateOutput:
        """
        Continues prompts: puts masks after them and denoises these, block by block (arXiv 2502.09992, §2.4).

        Args:
            inputs (`torch.LongTensor` of shape `(batch, prompt_length)`):
                The prompts, also accepted as `input_ids`. Shorter ones are padded on the left.
            generation_config ([`~transformers.GenerationConfig`], *optional*):
                The settings. What it leaves unset comes from `self.generation_config`.
            logits_processor ([`~transformers.LogitsProcessorList`], *optional*):
                More processors. Each position is processed with the text to its left.
            stopping_criteria ([`~transformers.StoppingCriteriaList`], *optional*):
                More criteria, asked after every block at every position of the answer that got settled in it.
            streamer ([`~transformers.generation.BaseStreamer`], *optional*):
                Gets the tokens of the sequence by `put` as they settle and, if it has `put_draft`, the rest of the
                canvas after each step.
            kwargs (`dict[str, Any]`, *optional*):
                `attention_mask` (1 for tokens, 0 for padding on the left), `tokenizer` (needed for `stop_strings`),
                `cache` (from an earlier output, for a model with block-causal attention; `inputs` is the whole text
                all the same; also accepted as `past_key_values`), `token_frequencies` (of shape `(vocab_size,)`, for
                `remasking="position_calibrated"`), and any field of [`DiffusionGenerationConfig`], which goes before
                `generation_config`.

        Returns:
            `torch.LongTensor` of shape `(batch * num_return_sequences, length)`, or [`DiffusionGenerateOutput`] with
            `return_dict_in_generate=True`. As with other models of transformers, the longest answer of the batch ends
            the sequences, at `prompt_length + max_new_tokens` at the latest, and shorter ones are filled with
            `pad_token_id`. With `eos_early_stop=False` no answer ends before that.

        Raises:
            ValueError: If the prompt is empty, holds masks, is padded on the right or too long, or a setting is
                unknown or cannot work.

        Example:

        ```python
        >>> inputs = tokenizer("Mary has 3 apples and buys 2.", return_tensors="pt")
        >>> model.generate(**inputs, max_new_tokens=32, block_length=8, steps=32)
        ```
        """
        config, given = self._read_arguments(inputs, generation_config, kwargs)
        prompt, attention_mask = given["input_ids"], given.get("attention_mask")
        if (prompt == config.mask_token_id).any():
            raise ValueError(
                f"The prompt holds the mask token {config.mask_token_id}. `generate` puts masks after a prompt; to "
                "fill masks where they stand, call `infill`."
            )
        if attention_mask is not None and (attention_mask.diff(dim=1) < 0).any():
            raise ValueError(
                'The prompt is padded on the right, where the answer begins; use `tokenizer.padding_side = "left"`.'
            )
        num_new_tokens = config.max_new_tokens
        if num_new_tokens is None:
            if config.max_length is None:
                raise ValueError("`max_new_tokens` and `max_length` are both None; say how many tokens are wanted.")
            num_new_tokens = config.max_length - prompt.shape[1]
            if num_new_tokens < 1:
                raise ValueError(
                    f"`max_length={config.max_length}` leaves no room after a prompt of {prompt.shape[1]} tokens; use "
                    "`max_new_tokens`."
                )
        multiple_of = (config.block_length or 1) if self.config.block_causal else 1
        self._check_length(prompt, attention_mask, num_new_tokens, multiple_of)
        probe = None
        if config.initial_length is None:
            canvas = Canvas.after_prompt(prompt, num_new_tokens, given["mask_token_id"], attention_mask, multiple_of)
        else:
            if self.config.block_causal or not config.eos_token_ids:
                raise ValueError(
                    f"`initial_length={config.initial_length}` asks the model where its text ends, which needs full "
                    "attention and `eos_token_id`. Leave it out: blocks after the end are not computed anyway."
                )
            canvas, probe = settle_length(config, self, prompt, attention_mask, num_new_tokens)
            num_new_tokens = canvas.tokens.shape[1] - prompt.shape[1]
        return self._denoise(
            canvas,
            config,
            logits_processor,
            stopping_criteria,
            streamer,
            given.get("tokenizer"),
            prompt.shape[1] + num_new_tokens,
            True,
            given.get("cache"),
            given.get("token_frequencies"),
            probe,
        )

    @torch.no_grad()
    def infill(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer=None,
        **kwargs: Any,
    ) -> torch.Tensor | DiffusionGenerateOutput:
        """
        Fills masks where they stand, with text on either side.

        The arguments are those of [`~LLaDAGenerationMixin.generate`]; `max_new_tokens` has no meaning. Blocks are
        counted from the first mask of each row. No end of text is proposed before text that was given, and no stopping
        criterion ends a row there, so that all gaps are filled.

        A finished text has to end with the end-of-text token, as the texts did that the model was trained on: without
        it the masks are filled as if more text followed.

        Args:
            inputs (`torch.LongTensor` of shape `(batch, length)`):
                Sequences with mask tokens where text is wanted, also accepted as `input_ids`. Padded on either side.
            generation_config, logits_processor, stopping_criteria, streamer, kwargs:
                As in [`~LLaDAGenerationMixin.generate`].

        Returns:
            `torch.LongTensor` of shape `(batch * num_return_sequences, length)`, as long as `inputs`, or
            [`DiffusionGenerateOutput`] with `return_dict_in_generate=True`. What follows an end of text is filled with
            `pad_token_id`.

        Raises:
            ValueError: If there is no mask to fill, the sequence is too long, or a setting is unknown or cannot work.

        Example:

        ```python
        >>> text = f"{tokenizer.mask_token * 2} is the capital of France.{tokenizer.eos_token}"
        >>> inputs = tokenizer(text, return_tensors="pt")
        >>> model.infill(**inputs)
        ```
        """
        config, given = self._read_arguments(inputs, generation_config, kwargs)
        tokens, attention_mask = given["input_ids"], given.get("attention_mask")
        wanted = tokens == config.mask_token_id
        if attention_mask is not None:
            wanted &= attention_mask.bool()
        if not wanted.any():
            raise ValueError(
                f"There is no mask token {config.mask_token_id} to fill; put one wherever a token is wanted, or call "
                "`generate` to continue a prompt."
            )
        if config.expand_threshold is not None:
            raise ValueError(
                f"`expand_threshold={config.expand_threshold}` inserts masks until the text ends, and `infill` fills "
                "those that there are; pass `expand_threshold=None`, or call `generate`."
            )
        self._check_length(tokens, attention_mask)
        canvas = Canvas(tokens, ~wanted, given["mask_token_id"], attention_mask)
        return self._denoise(
            canvas,
            config,
            logits_processor,
            stopping_criteria,
            streamer,
            given.get("tokenizer"),
            tokens.shape[1],
            False,
            given.get("cache"),
            given.get("token_frequencies"),
        )

    def generate_batch(self, *args, **kwargs):
        """Refused: continuous batching schedules one new token per sequence and step."""
        raise ValueError(
            "`generate_batch` schedules one token per sequence and step, a mask predictor fills many; pass a "
            "left-padded batch to `generate`."
        )

    def adjust_generation_fn(
        self,
        generation_config,
        from_auto_class,
        from_pipeline,
        pretrained_model_name_or_path,
        cache_dir,
        force_download,
        proxies,
        local_files_only,
        token,
        revision,
        subfolder,
        trust_remote_code,
        **kwargs,
    ) -> None:
        """
        Loads `generation_config.json` with a checkpoint and completes it: special tokens that it lacks come from the
        model configuration, settings from the defaults. Called by `from_pretrained`.
        """
        if generation_config is not None:
            loaded = DiffusionGenerationConfig.from_dict(settings_of(generation_config))
        elif pretrained_model_name_or_path is not None:
            loaded = read_stored_settings(
                pretrained_model_name_or_path,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                revision=revision,
                subfolder=subfolder,
                **kwargs,
            )
            if loaded is None:
                logger.info("There is no generation_config.json; using the defaults.")
                return
        else:
            return
        self.generation_config = loaded.with_defaults(self.config)

    def _read_arguments(
        self, inputs: torch.Tensor | None, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[DiffusionGenerationConfig, dict[str, Any]]:
        """Separates settings from inputs, merges the settings, and checks both."""
        for name, reason in _REFUSED_ARGUMENTS.items():
            value = kwargs.pop(name, None)
            if value is not None and value is not False:
                raise ValueError(f"`{name}` is not supported: {reason}.")
        allowed = ("input_ids", "attention_mask", "tokenizer", "cache", "past_key_values", "token_frequencies")
        refuse_unknown(kwargs, allowed)
        given = {name: kwargs.pop(name) for name in allowed if name in kwargs}
        if inputs is not None and given.get("input_ids") is not None:
            raise ValueError("Give the tokens once, either first or as `input_ids`.")
        given["input_ids"] = inputs if inputs is not None else given.get("input_ids")
        if (older := given.pop("past_key_values", None)) is not None:
            if given.get("cache") is not None:
                raise ValueError("Give the cache once, as `cache`; `past_key_values` is its older name.")
            given["cache"] = older
        config = self._merge_settings(generation_config, kwargs)
        self._check_inputs(config, given)
        if config.num_return_sequences and config.num_return_sequences > 1:
            for name in ("input_ids", "attention_mask"):
                if given.get(name) is not None:
                    given[name] = given[name].repeat_interleave(config.num_return_sequences, dim=0)
        return config, given

    def _merge_settings(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> DiffusionGenerationConfig:
        """Keyword arguments go before a passed config, that before the model's, that before the defaults."""
        read_temperature(kwargs)
        merged: dict[str, Any] = {}
        for config in (
            DiffusionGenerationConfig.from_model_config(self.config),
            self.generation_config,
            generation_config,
        ):
            if config is not None:
                overlay(merged, settings_of(config))
        overlay(merged, kwargs)
        try:
            return DiffusionGenerationConfig.from_dict(merged)
        except (TypeError, ValueError):
            # settings that cannot work do not keep a checkpoint from loading, see `read_stored_settings`
            refuse_stored(self.generation_config)
            raise

    def _check_inputs(self, config: DiffusionGenerationConfig, given: dict[str, Any]) -> None:
        tokens, attention_mask = given["input_ids"], given.get("attention_mask")
        if tokens is None or tokens.ndim != 2 or 0 in tokens.shape:
            shape = None if tokens is None else tuple(tokens.shape)
            start = "" if config.bos_token_id is None else f" ({config.bos_token_id})"
            raise ValueError(
                f"`input_ids` must hold at least one token per row, shape `(batch, length)`, but is {shape}. For text "
                f"out of nothing give a start token{start}."
            )
        given["input_ids"] = tokens.long()
        if attention_mask is not None:
            if attention_mask.shape != tokens.shape:
                raise ValueError(
                    f"`attention_mask` has shape {tuple(attention_mask.shape)} and `input_ids` "
                    f"{tuple(tokens.shape)}; give one 0 (padding) or 1 (token) per position."
                )
            given["attention_mask"] = attention_mask = attention_mask.long()
            if not attention_mask.any(1).all():
                raise ValueError("A row of `attention_mask` is all padding; leave the row out.")
            change = attention_mask.diff(dim=1)
            if ((change < 0).cumsum(1).bool() & (change > 0)).any():
                raise ValueError(
                    "`attention_mask` has a hole: a 0 between tokens of a row. It marks padding, which stands before "
                    "or behind the text; take the tokens out of the row."
                )
            if attention_mask.all():
                # attention without a mask has faster kernels
                given["attention_mask"] = None
        else:
            self.warn_if_padding_and_no_attention_mask(tokens[:, :1], None)
        if config.mask_token_id is None:
            raise ValueError("The model has no mask token; set `model.config.mask_token_id` or pass `mask_token_id`.")
        given["mask_token_id"] = config.mask_token_id
        self._check_ids(config, tokens)
        if config.suppress_eos and not config.eos_token_ids:
            raise ValueError(f"`suppress_eos={config.suppress_eos!r}` needs `eos_token_id`.")
        if config.stop_strings and given.get("tokenizer") is None:
            raise ValueError("`stop_strings` needs the tokenizer; pass `tokenizer=`.")

    def _check_ids(self, config: DiffusionGenerationConfig, tokens: torch.Tensor) -> None:
        """No id is beyond the vocabulary, and the mask means nothing else."""
        size = self.config.vocab_size
        named: dict[str, list] = {"eos_token_id": config.eos_token_ids}
        for name in ("mask_token_id", "pad_token_id", "delete_token_id", "split_token_id"):
            named[name] = [] if getattr(config, name) is None else [getattr(config, name)]
        for name, ids in named.items():
            if not all(isinstance(token, int) and 0 <= token < size for token in ids):
                raise ValueError(f"`{name}` is {ids}, and the vocabulary has the ids 0 to {size - 1}.")
            if name != "mask_token_id" and config.mask_token_id in ids:
                raise ValueError(
                    f"`{name}` and `mask_token_id` are both {config.mask_token_id}, so that what is decided looks "
                    "undecided; give them different ids."
                )
        low, high = tokens.aminmax()
        if low < 0 or high >= size:
            raise ValueError(
                f"`input_ids` holds ids from {int(low)} to {int(high)}, and the vocabulary has the ids 0 to "
                f"{size - 1}. Is it the tokenizer of this model?"
            )

    def _check_length(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        num_new_tokens: int = 0,
        multiple_of: int = 1,
    ) -> None:
        """Before anything as long is made."""
        padding = 0 if attention_mask is None else int((attention_mask.cumsum(1) == 0).sum(1).min())
        length = tokens.shape[1] - padding + num_new_tokens
        length += -length % multiple_of
        if length > self.config.longest_text:
            whole = f" in whole blocks of {multiple_of}" if multiple_of > 1 else ""
            raise ValueError(
                f"The canvas has {length} positions{whole}, more than the {self.config.longest_text} "
                "the model was trained for; shorten the prompt or lower `max_new_tokens`."
            )

    def _denoise(
        self,
        canvas: Canvas,
        config: DiffusionGenerationConfig,
        logits_processor: LogitsProcessorList | None,
        stopping_criteria: StoppingCriteriaList | None,
        streamer,
        tokenizer,
        num_positions: int,
        is_cut: bool,
        cache: CanvasCache | None = None,
        token_frequencies: torch.Tensor | None = None,
        probe: FullForward | None = None,
    ) -> torch.Tensor | DiffusionGenerateOutput:
        grows = config.expand_threshold is not None
        block_causal = self.config.block_causal
        region = Region(canvas, config.block_length, from_text_start=block_causal, grows=grows)
        if block_causal and region.hides_given_text(canvas):
            raise ValueError(
                f"This model does not see what follows a block of {region.block_length} positions, and text was given "
                "after a block with masks. Use a model with full attention, or a larger `block_length`."
            )
        processors = PositionalProcessors(canvas, self._processor_factory(config, logits_processor, canvas))
        propose = make_proposer(config, processors, self.config.vocab_size, canvas, token_frequencies)
        selector = make_selector(config, region, block_causal)
        revision = make_revision(config, canvas)
        forward = make_forward(config, self, canvas, region, block_causal, selector, cache)
        if config.compile_config is not None and not config.disable_compile:
            places = {str(place) for place in getattr(self, "hf_device_map", {}).values()}
            if len(places) > 1:
                raise ValueError(
                    f"`compile_config` needs the model in one place, and its layers are on {sorted(places)}. Load it "
                    "with a `device_map` of one device, or leave out `compile_config`."
                )
            compile_forward(forward, self.get_compiled_call(config.compile_config), region.block_length)

        if probe is not None:
            forward.num_forwards, forward.row_forwards = probe.num_forwards, probe.row_forwards

        fill = config.pad_token_id if config.pad_token_id is not None else next(iter(config.eos_token_ids), 0)
        listeners: list[Listener] = []
        if config.eos_early_stop and config.eos_token_ids:
            listeners.append(EndOfTextStopper(config.eos_token_ids, fill, canvas.tokens.device, revision.revises))
        criteria = stopping_criteria_of(config, stopping_criteria, tokenizer)
        if criteria:
            listeners.append(CriteriaStopper(canvas, criteria, fill))
        settings = {name: value for name, value in config.to_diff_dict().items() if name != "compile_config"}
        recorder = TraceRecorder(canvas, settings) if config.output_trace else None
        feed = None
        if streamer is not None:
            feed = StreamFeed(streamer, canvas, num_positions, by_block=revision.revises or bool(criteria))
        listeners += [listener for listener in (recorder, feed) if listener is not None]

        denoise(canvas, region, forward, propose, selector, revision, listeners)
        # a canvas of whole blocks, and one with room to grow, are longer than what was asked for
        ends = canvas.ends.clamp(max=num_positions) if is_cut else torch.full_like(canvas.ends, num_positions)
        sequences = canvas.tokens[:, : int(ends.max())]
        if feed is not None:
            feed.end(sequences)
        if not (config.return_dict_in_generate or config.output_trace):
            return sequences
        return DiffusionGenerateOutput(
            sequences=sequences,
            num_forwards=forward.num_forwards,
            tokens_per_forward=_tokens_per_forward(canvas, forward, config.eos_token_ids, sequences.shape[1]),
            trace=recorder.finish(sequences, ends) if recorder is not None else None,
            cache=forward.returned(canvas) if isinstance(forward, BlockCausalForward) else None,
        )

    def _processor_factory(
        self, config: DiffusionGenerationConfig, logits_processor: LogitsProcessorList | None, canvas: Canvas
    ) -> Callable[[int], LogitsProcessorList]:
        # guidance is part of the forward pass here, not a processor
        unguided = DiffusionGenerationConfig.from_dict({**config.to_dict(), "guidance_scale": None})
        self._prepare_special_tokens(unguided, device=canvas.tokens.device)

        def build(prompt_length: int) -> LogitsProcessorList:
            return self._get_logits_processor(
                unguided,
                input_ids_seq_length=prompt_length,
                logits_processor=logits_processor,
                device=canvas.tokens.device,
            )

        return build


def _tokens_per_forward(
    canvas: Canvas, forward: FullForward, eos_token_ids: list[int], num_positions: int
) -> torch.Tensor:
    tokens, filled = canvas.tokens[:, :num_positions], canvas.step_of[:, :num_positions] >= 0
    is_end = filled & torch.isin(tokens, torch.tensor(eos_token_ids, device=canvas.tokens.device))
    counted = filled & (is_end.cumsum(1) - is_end.long() == 0)
    forwards = [forward.row_forwards.get(row, 1) for row in range(canvas.tokens.shape[0])]
    return counted.sum(1) / torch.tensor(forwards, dtype=torch.float32, device=canvas.tokens.device)


__all__ = ["DiffusionGenerateOutput", "LLaDAGenerationMixin"]
