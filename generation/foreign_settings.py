"""Settings of autoregressive decoding and of other samplers: what has no meaning here, and what to write instead."""

import difflib
from collections.abc import Iterable
from typing import Any


# names of other samplers and libraries -> what to write here
FOREIGN_NAMES = {
    "alg": "remasking",
    "alg_temp": "remasking_temperature",
    "block_size": "block_length",
    "canvas_length": "block_length",
    "confidence_eos_eot_inf": 'suppress_eos="confidence"',
    "dual_cache": 'kv_cache="dual"',
    "expansion_factor": "expand_factor",
    "gen_length": "max_new_tokens",
    "initial_gen_length": "initial_length",
    "k_exploration_steps": "exploration_steps",
    "logits_eos_inf": 'suppress_eos="logits"',
    "mask_id": "mask_token_id",
    "max_gen_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "num_inference_steps": "max_denoising_steps",
    "prefix_cache": 'kv_cache="prefix"',
    "prompt": "input_ids",
    "prompts": "input_ids",
    "stability_threshold": "stable_steps",
    "stop": "stop_strings",
    "stop_sequences": "stop_strings",
    "threshold_back": "verify_threshold",
    "use_kv_cache": "kv_cache",
}

_BEAMS = (
    "beam search extends prefixes token by token, and a mask predictor has none; for several answers use "
    "`do_sample=True, num_return_sequences=...`"
)
_NO_CACHE = "`kv_cache` says what is not computed again; there is no other cache"
_NO_DRAFTS = "speculative decoding drafts left to right, which a mask predictor does not do"
_ONE_FORWARD = "every step predicts every masked position; set `output_trace=True` for tokens and confidences"

# settings of autoregressive decoding that have no meaning here -> why
REFUSED = {
    "assistant_confidence_threshold": _NO_DRAFTS,
    "assistant_early_exit": _NO_DRAFTS,
    "assistant_ensemble_weight": _NO_DRAFTS,
    "assistant_lookbehind": _NO_DRAFTS,
    "cache_config": _NO_CACHE,
    "cache_implementation": _NO_CACHE,
    "constraints": _BEAMS,
    "continuous_batching_config": "it schedules one token per sequence and step; pass a left-padded batch",
    "decoder_start_token_id": "there is no decoder beside an encoder; give the prompt",
    "diversity_penalty": _BEAMS,
    "dola_layers": "it compares the layers at the next token, and here there is none",
    "early_stopping": _BEAMS,
    "encoder_no_repeat_ngram_size": "there is no encoder; use `no_repeat_ngram_size`",
    "encoder_repetition_penalty": "there is no encoder; use `repetition_penalty`",
    "force_words_ids": _BEAMS,
    "forced_bos_token_id": "the prompt is given, not generated",
    "forced_eos_token_id": "the last position is not filled last; put the token behind the masks and call `infill`",
    "is_assistant": _NO_DRAFTS,
    "length_penalty": _BEAMS,
    "low_memory": "it splits up a search that a mask predictor does not do",
    "max_cache_len": _NO_CACHE,
    "max_matching_ngram_size": _NO_DRAFTS,
    "num_assistant_tokens": _NO_DRAFTS,
    "num_assistant_tokens_schedule": _NO_DRAFTS,
    "num_beam_groups": _BEAMS,
    "num_beams": _BEAMS,
    "output_attentions": "a step has attentions for every forward pass; call the model on a partly masked sequence",
    "output_hidden_states": "call the model on a partly masked sequence instead",
    "output_logits": _ONE_FORWARD,
    "output_scores": _ONE_FORWARD,
    "penalty_alpha": "contrastive search compares the next token with those before; here there is none",
    "prefill_chunk_size": "the prompt is computed with the masks behind it, and not before",
    "prompt_lookup_num_tokens": _NO_DRAFTS,
    "speculation_type": _NO_DRAFTS,
    "target_lookbehind": _NO_DRAFTS,
    "token_healing": "tokens are not generated left to right; mask the last token of the prompt and call `infill`",
    "use_mtp": _NO_DRAFTS,
    "watermarking_config": "watermarks hash the token to the left, which may still be masked",
}

# what transformers writes into files for some of them, or takes for off
NEUTRAL = {
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "target_lookbehind": 10,
}


def refuse_autoregressive(config: Any) -> None:
    """
    Refuses settings of autoregressive decoding that would do nothing.

    Raises:
        ValueError: With the setting, its value and the reason.
    """
    for name, reason in REFUSED.items():
        value = getattr(config, name)
        if value is not None and value is not False and value != NEUTRAL.get(name):
            raise ValueError(f"`{name}={value!r}` is not supported: {reason}. Leave it out.")


def name_unknown(unknown: Iterable[str], known: Iterable[str]) -> str:
    """
    Names what nobody knows, with what each probably stands for.

    Args:
        unknown (`Iterable[str]`):
            The names that were given.
        known (`Iterable[str]`):
            Those that there are.

    Returns:
        `str`: A list for a message.
    """
    possible = [name for name in known if name not in REFUSED]
    hints = []
    for name in unknown:
        close = FOREIGN_NAMES.get(name) or next(iter(difflib.get_close_matches(name, possible, n=1)), None)
        hints.append(f"`{name}`" + (f" (write `{close}`)" if close else ""))
    return ", ".join(hints)


__all__ = ["FOREIGN_NAMES", "NEUTRAL", "REFUSED", "name_unknown", "refuse_autoregressive"]
