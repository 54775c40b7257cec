"""From a config to the parts of the sampling loop."""

import weakref
from collections.abc import Callable

import torch

from .adaptive_selection import ContextThresholdSelector, HierarchicalSelector, StableSelector
from .canvas import Canvas
from .canvas_cache import CanvasCache
from .compiled import CompiledModel
from .configuration_diffusion import DiffusionGenerationConfig
from .early_commit import GapSelector, SteadySelector
from .expansion import ExpandingForward, Expansion
from .forwards import BlockCausalForward, DualForward, FullForward, PrefixForward
from .levenshtein import LevenshteinEditing
from .partial_forwards import DelayedForward, SuffixWindowForward, VicinityForward
from .positional import PositionalProcessors
from .proposals import Proposer, ReferenceProposer
from .quota_selection import BernoulliSelector, RisingEndSelector, dream_shares
from .ranked_selection import EntropyBoundSelector, FactorSelector, FrechetSelector, ReferenceFactorSelector
from .regions import Region
from .remasking import Remasking, ShadowVerification
from .revision import Revision, TokenEditing
from .selection import QuotaSelector, Selector, ThresholdSelector, schedule_steps, share_out
from .shadow import DraftSelector, ShadowForward
from .slow_fast import SpanForward, SpanSelector
from .validity import SELECTIONS, check_complete


def make_forward(
    config: DiffusionGenerationConfig,
    model: Callable,
    canvas: Canvas,
    region: Region,
    block_causal: bool,
    selector: Selector,
    cache: CanvasCache | None = None,
) -> FullForward:
    """
    The forward plan.

    Args:
        config ([`DiffusionGenerationConfig`]):
            The settings.
        model (`Callable`):
            The model.
        canvas ([`Canvas`]):
            The canvas before the first step.
        region ([`Region`]):
            Its blocks.
        block_causal (`bool`):
            Whether the model was trained with block-causal attention.
        selector ([`~llada.generation.selection.Selector`]):
            The rule that commits proposals.
        cache ([`CanvasCache`], *optional*):
            What an earlier call returned.

    Raises:
        ValueError: If the plan does not fit the model or the masks.
    """
    kind, guidance = config.kv_cache, config.guidance
    if cache is not None and kind != "block":
        raise ValueError(f"`cache` continues a block-causal cache, but `kv_cache={kind!r}`.")
    if block_causal:
        return _make_block_causal_forward(config, model, canvas, region, cache)
    if kind == "block":
        raise ValueError(
            '`kv_cache=\'block\'` is not for a model with full attention; use "prefix" or "dual", or None.'
        )
    _check_alignment(config, canvas, region)
    if isinstance(selector, SpanSelector):
        return SpanForward(model, guidance, selector)
    if config.verify_threshold is not None:
        return ShadowForward(model, guidance)
    plan: FullForward
    warmup, refresh_interval = config.rule_setting("cache_warmup"), config.rule_setting("refresh_interval")
    if config.expand_threshold is not None:
        plan = ExpandingForward(model, canvas, guidance)
    elif kind is None:
        plan = FullForward(model, guidance)
    elif kind == "vicinity":
        vicinity = config.rule_setting("vicinity")
        plan = VicinityForward(model, canvas, guidance, vicinity, warmup, refresh_interval)
    elif kind == "delayed":
        plan = DelayedForward(model, canvas, guidance, warmup, refresh_interval)
    else:
        plan = {"prefix": PrefixForward, "dual": DualForward}[kind](model, canvas, guidance)
    return plan if config.suffix_window is None else SuffixWindowForward(plan, config.suffix_window)


def compile_forward(plan: FullForward, compiled: Callable, block_length: int) -> None:
    """
    Makes a plan run on a compiled model.

    Args:
        plan ([`FullForward`]):
            The plan.
        compiled (`Callable`):
            Its model, compiled.
        block_length (`int`):
            Length of the blocks.

    Raises:
        ValueError: If the plan computes other shapes in every step.
    """
    if type(plan) not in (FullForward, PrefixForward, DualForward, BlockCausalForward):
        raise ValueError(
            "`compile_config` needs steps of the same shapes, and the positions that "
            f'{type(plan).__name__} computes change. Use `kv_cache` None, "dual" or "block" without a rule that '
            "changes what is computed, or leave out `compile_config`."
        )
    plan.model = CompiledModel(plan.model, compiled, block_length)
    plan.keeps_shapes = True


def _make_block_causal_forward(
    config: DiffusionGenerationConfig, model: Callable, canvas: Canvas, region: Region, cache: CanvasCache | None
) -> FullForward:
    for name in ("verify_threshold", "exploration_steps", "suffix_window"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"`{name}={getattr(config, name)}` is for models with full attention, and this one attends "
                "block-causally: it never sees what follows the current block. Leave it out."
            )
    if config.kv_cache is None:
        return FullForward(model, config.guidance, region.block_length)
    if config.kv_cache != "block":
        raise ValueError(
            f'`kv_cache={config.kv_cache!r}` is not for a model with block-causal attention; use "block", which is '
            "exact, or None."
        )
    made_with = {
        "model": weakref.ref(model),
        "dtype": getattr(model, "dtype", None),
        "block_length": region.block_length,
        "cfg_scale": config.guidance,
        "mask_token_id": canvas.mask_token_id,
        "device": str(canvas.tokens.device),
    }
    returns_cache = bool(config.return_dict_in_generate or config.output_trace)
    return BlockCausalForward(
        model, canvas, config.guidance, region.block_length, cache, made_with, returns_cache=returns_cache
    )


def _check_alignment(config: DiffusionGenerationConfig, canvas: Canvas, region: Region) -> None:
    """Refuses rows that a plan would treat differently together and alone."""
    for name in ("kv_cache", "suffix_window", "exploration_steps", "verify_threshold"):
        value = getattr(config, name)
        if value is not None and region.first != region.last:
            raise ValueError(
                f"`{name}={value!r}` computes the same positions in all rows, so that a row would depend on the "
                f"others: the first masks stand at positions {region.first} to {region.last}. Align the rows, or "
                f"leave out `{name}`."
            )
    if config.kv_cache == "delayed" and len(canvas.tokens) > 1:
        raise ValueError(
            f"`kv_cache='delayed'` computes other positions in every row, and there are {len(canvas.tokens)} rows; "
            'give one row, or use "prefix" or "dual".'
        )
    if config.suffix_window is not None and bool((canvas.has_suffix & canvas.masked).any()):
        raise ValueError(
            f"`suffix_window={config.suffix_window}` leaves out what follows, and text was given after a mask; leave "
            "out `suffix_window`."
        )


def make_selector(config: DiffusionGenerationConfig, region: Region, block_causal: bool) -> Selector:
    """The rule that commits proposals."""
    check_complete(config)
    selector = _make_selector(config, region, block_causal)
    if config.commit_gaps is not None:
        return GapSelector(selector, config.commit_gaps)
    if config.stable_steps is not None:
        return SteadySelector(selector, config.stable_steps, config.rule_setting("stable_entropy"))
    return selector


def _make_selector(config: DiffusionGenerationConfig, region: Region, block_causal: bool) -> Selector:
    steps, per_block = config.steps, config.max_denoising_steps
    if all(getattr(config, name) is None for name in SELECTIONS):
        keep_idle_steps = config.rng_compat is not None
        share = dream_shares if config.step_schedule == "dream" else share_out
        if config.step_schedule == "bernoulli":
            return BernoulliSelector(schedule_steps(region, steps, per_block, keep_idle_steps=True))
        quotas = schedule_steps(region, steps, per_block, keep_idle_steps, share=share)
        if config.suppress_eos == "rising":
            return RisingEndSelector(quotas, config.eos_token_ids, config.rule_setting("eos_weight"))
        return QuotaSelector(quotas, keep_idle_steps)
    floors = None
    if steps is not None or per_block is not None:
        floors = schedule_steps(region, steps, per_block, whole_blocks=block_causal)
    if config.factor is not None:
        return (ReferenceFactorSelector if config.factor_compat else FactorSelector)(config.factor, floors)
    if config.frechet_margin is not None:
        return FrechetSelector(config.frechet_margin, floors)
    if config.entropy_bound is not None:
        return EntropyBoundSelector(config.entropy_bound, floors)
    return _make_threshold(config, floors, block_causal)


def _make_threshold(
    config: DiffusionGenerationConfig, floors: list[list[list[int]]] | None, block_causal: bool
) -> Selector:
    """The rules that use a threshold."""
    threshold = config.threshold
    assert threshold is not None, "all selections but the threshold have been looked at"
    if config.low_threshold is not None:
        return HierarchicalSelector(threshold, config.low_threshold, floors)
    if config.verify_threshold is not None:
        return DraftSelector(threshold, floors)
    if config.exploration_steps is not None:
        finer = ("span_threshold", "span_window", "span_deviation", "span_stops_early")
        return SpanSelector(threshold, config.exploration_steps, *(config.rule_setting(name) for name in finer))
    if config.kl_threshold is not None:
        sees_ahead = not block_causal and config.kv_cache is None and config.suffix_window is None
        return StableSelector(threshold, config.kl_threshold, config.rule_setting("kl_history"), floors, sees_ahead)
    # LLaDA2 commits what exceeds the threshold, Fast-dLLM what reaches it
    inclusive = not block_causal
    if config.threshold_relaxation is not None:
        return ContextThresholdSelector(
            threshold, config.threshold_relaxation, config.suffix_window, floors, inclusive
        )
    return ThresholdSelector(threshold, floors, inclusive)


def make_revision(config: DiffusionGenerationConfig, canvas: Canvas) -> Revision:
    """The rule that revises what was committed."""
    if config.remask_threshold is not None:
        return Remasking(config.remask_threshold)
    if config.verify_threshold is not None:
        return ShadowVerification(config.verify_threshold)
    if config.expand_threshold is not None:
        return Expansion(
            config.expand_threshold,
            config.rule_setting("expand_factor"),
            config.rule_setting("expand_end_threshold"),
            config.rule_setting("length_window"),
            torch.tensor(config.eos_token_ids, device=canvas.tokens.device),
        )
    if config.editing_threshold is None:
        return Revision()
    if not config.control_token_ids:
        return TokenEditing(config.editing_threshold, config.max_post_steps or 0)
    # what follows a block moves with it, so nothing given may follow
    if bool((canvas.has_suffix & canvas.masked).any()):
        raise ValueError(
            "Text was given after a mask, and this model edits by inserting and deleting, which would move it. Pass "
            "`delete_token_id=None, split_token_id=None` to edit without."
        )
    return LevenshteinEditing(config.editing_threshold, config.max_post_steps or 0, *config.control_token_ids)


def make_proposer(
    config: DiffusionGenerationConfig,
    processors: PositionalProcessors,
    vocab_size: int,
    canvas: Canvas,
    token_frequencies: torch.Tensor | None = None,
) -> Proposer:
    """What turns logits into tokens and scores."""
    if (token_frequencies is None) == (config.remasking == "position_calibrated"):
        raise ValueError(
            f'`remasking="position_calibrated"` and `token_frequencies` need each other, but `remasking` is '
            f"{config.remasking!r} and `token_frequencies` {'not given' if token_frequencies is None else 'given'}."
        )
    if token_frequencies is not None:
        shape = tuple(token_frequencies.shape)
        if shape != (vocab_size,) or not ((token_frequencies >= 0) & (token_frequencies <= 1)).all():
            raise ValueError(
                f"`token_frequencies` has shape {shape}; give one frequency from 0 to 1 for each of the {vocab_size} "
                "tokens of the vocabulary."
            )
        token_frequencies = token_frequencies.to(canvas.tokens.device)
    proposer = ReferenceProposer if config.rng_compat == "llada" else Proposer
    text_follows = bool((canvas.has_suffix & canvas.masked).any())
    return proposer(config, processors, vocab_size, text_follows, token_frequencies)


__all__ = ["compile_forward", "make_forward", "make_proposer", "make_revision", "make_selector"]
