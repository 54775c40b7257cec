"""`generate` and `infill`: the familiar methods, on a model that predicts all masks at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput, logging

from .arguments import check_length, read_arguments
from .assembly import compile_forward, lay_out, make_forward, make_proposer, make_revision, make_selector
from .canvas import Canvas
from .chance import RowChance
from .configuration_diffusion import DiffusionGenerationConfig, settings_of
from .denoising import Listener, denoise
from .forwards.canvas_cache import CanvasCache
from .forwards.full import FullForward
from .listeners.stopping import CriteriaStopper, EndOfTextStopper, stopping_criteria_of
from .listeners.streaming import StreamFeed, ends_streamer
from .listeners.trace import Trace, TraceRecorder
from .positional import PositionalProcessors
from .regions import Region
from .rule import Setup
from .stored_settings import read_stored_settings
from .validity import check_complete, switched_on


logger = logging.get_logger(__name__)


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


@dataclass
class _Call:
    """What is left of a call of `generate` or `infill` once its arguments are read."""

    canvas: Canvas
    config: DiffusionGenerationConfig
    # inputs by their names
    given: dict[str, Any]
    logits_processor: LogitsProcessorList | None
    stopping_criteria: StoppingCriteriaList | None
    streamer: Any
    # how many positions were asked for
    num_positions: int
    # whether the longest row ends the sequences
    is_cut: bool
    # counted the forward passes that told how long the answer is
    probe: FullForward | None = None


class LLaDAGenerationMixin(GenerationMixin):
    """
    Sampling for models whose logits predict the masked tokens at the positions they stand at. A class that uses it
    sets `generation_config_class = DiffusionGenerationConfig`.
    """

    @ends_streamer
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
                canvas after each step. It is ended in any case, also by an error.
            kwargs (`dict[str, Any]`, *optional*):
                `attention_mask` (1 for tokens, 0 for padding on the left), `tokenizer` (needed for `stop_strings`),
                `cache` (from an earlier output, for a model with block-causal attention; `inputs` is the whole text
                all the same; also accepted as `past_key_values`), `token_frequencies` (of shape `(vocab_size,)`, for
                `remasking="position_calibrated"`), `selector` and `revision` (rules of your own, a
                [`~llada.generation.Selector`] and a [`~llada.generation.Revision`]), `listeners` (objects of
                [`~llada.generation.Listener`] that follow the sampling), `generator` (a `torch.Generator`, or one for
                each row: the draws of a row do not depend on its batch then), and any field of
                [`DiffusionGenerationConfig`], which goes before `generation_config`.

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
        config, given = read_arguments(self, inputs, generation_config, kwargs)
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
        check_length(self, prompt, attention_mask, num_new_tokens, multiple_of)
        laid_out = lay_out(config, self, prompt, attention_mask, num_new_tokens, self.config.block_causal)
        if laid_out is None:
            canvas = Canvas.after_prompt(prompt, num_new_tokens, given["mask_token_id"], attention_mask, multiple_of)
            probe = None
        else:
            canvas, probe = laid_out
            num_new_tokens = canvas.tokens.shape[1] - prompt.shape[1]
        num_positions = prompt.shape[1] + num_new_tokens
        return self._denoise(
            _Call(canvas, config, given, logits_processor, stopping_criteria, streamer, num_positions, True, probe)
        )

    @ends_streamer
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
        config, given = read_arguments(self, inputs, generation_config, kwargs)
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
        check_length(self, tokens, attention_mask)
        canvas = Canvas(tokens, ~wanted, given["mask_token_id"], attention_mask)
        return self._denoise(
            _Call(canvas, config, given, logits_processor, stopping_criteria, streamer, tokens.shape[1], False)
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

    def _denoise(self, call: "_Call") -> torch.Tensor | DiffusionGenerateOutput:
        canvas, config, given = call.canvas, call.config, call.given
        grows = config.expand_threshold is not None
        block_causal = self.config.block_causal
        region = Region(canvas, config.block_length, from_text_start=block_causal, grows=grows)
        if block_causal and region.hides_given_text(canvas):
            raise ValueError(
                f"This model does not see what follows a block of {region.block_length} positions, and text was given "
                "after a block with masks. Use a model with full attention, or a larger `block_length`."
            )
        check_complete(config, given.get("selector"), given.get("revision"))
        if given.get("generator") is not None:
            canvas.chance = RowChance.of_rows(given["generator"], canvas.tokens, canvas.attention_mask)
        setup = Setup(config, self, canvas, region, block_causal, self.config.vocab_size, switched_on(config), given)
        processors = PositionalProcessors(canvas, self._processor_factory(config, call.logits_processor, canvas))
        propose, selector, revision = make_proposer(setup, processors), make_selector(setup), make_revision(setup)
        forward = make_forward(setup, selector)
        if config.compile_config is not None and not config.disable_compile:
            places = {str(place) for place in getattr(self, "hf_device_map", {}).values()}
            if len(places) > 1:
                raise ValueError(
                    f"`compile_config` needs the model in one place, and its layers are on {sorted(places)}. Load it "
                    "with a `device_map` of one device, or leave out `compile_config`."
                )
            compile_forward(forward, self.get_compiled_call(config.compile_config), region.block_length)

        if call.probe is not None:
            forward.num_forwards, forward.row_forwards = call.probe.num_forwards, call.probe.row_forwards

        fill = config.pad_token_id if config.pad_token_id is not None else next(iter(config.eos_token_ids), 0)
        listeners: list[Listener] = []
        if config.eos_early_stop and config.eos_token_ids:
            listeners.append(EndOfTextStopper(config.eos_token_ids, fill, canvas.tokens.device, revision.revises))
        criteria = stopping_criteria_of(config, call.stopping_criteria, given.get("tokenizer"))
        if criteria:
            listeners.append(CriteriaStopper(canvas, criteria, fill))
        settings = {name: value for name, value in config.to_diff_dict().items() if name != "compile_config"}
        recorder = TraceRecorder(canvas, settings, config.trace_top_k or 0) if config.output_trace else None
        feed = None
        if call.streamer is not None:
            feed = StreamFeed(call.streamer, canvas, call.num_positions, by_block=revision.revises or bool(criteria))
        listeners += [listener for listener in (recorder, feed) if listener is not None]
        listeners += given.get("listeners") or []

        denoise(canvas, region, forward, propose, selector, revision, listeners)
        # a canvas of whole blocks, and one with room to grow, are longer than what was asked for
        ends = canvas.ends.clamp(max=call.num_positions)
        if not call.is_cut:
            ends = torch.full_like(ends, call.num_positions)
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
            cache=forward.returned(canvas),
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
