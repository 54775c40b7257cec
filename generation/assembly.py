"""From a config to the parts of the sampling loop."""

from collections.abc import Callable

from .canvas import Canvas
from .canvas_cache import CanvasCache
from .configuration_diffusion import DiffusionGenerationConfig
from .forwards import BlockCausalForward, CachedForward, DualForward, FullForward, PrefixForward
from .levenshtein import LevenshteinEditing
from .positional import PositionalProcessors
from .proposals import Proposer, ReferenceProposer
from .ranked_selection import EntropyBoundSelector, FactorSelector, FrechetSelector, ReferenceFactorSelector
from .regions import Region
from .revision import Revision, TokenEditing
from .selection import QuotaSelector, Selector, ThresholdSelector, schedule_steps
from .validity import SELECTIONS, check_complete


def make_forward(
    config: DiffusionGenerationConfig,
    model: Callable,
    canvas: Canvas,
    region: Region,
    block_causal: bool,
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
        cache ([`CanvasCache`], *optional*):
            What an earlier call returned.

    Raises:
        ValueError: If the cache does not fit the model or the masks.
    """
    kind, guidance = config.kv_cache, config.guidance
    if cache is not None and kind != "block":
        raise ValueError(f"`past_key_values` continues a block-causal cache, but `kv_cache={kind!r}`.")
    if kind is None:
        return FullForward(model, guidance, region.block_length if block_causal else None)
    if block_causal != (kind == "block"):
        fitting = '"block", which is exact,' if block_causal else '"prefix" or "dual"'
        attention = "block-causal" if block_causal else "full"
        raise ValueError(f"`kv_cache={kind!r}` is not for a model with {attention} attention; use {fitting} or None.")
    if kind == "block":
        return BlockCausalForward(model, canvas, guidance, region.block_length, cache)
    if region.first != region.last:
        raise ValueError(
            f"`kv_cache={kind!r}` approximates, and what it computes anew would depend on the other rows: the first "
            f"masks stand at positions {region.first} to {region.last}. Align the rows, or use `kv_cache=None`."
        )
    plans: dict[str, type[CachedForward]] = {"prefix": PrefixForward, "dual": DualForward}
    return plans[kind](model, canvas, guidance)


def make_selector(config: DiffusionGenerationConfig, region: Region, block_causal: bool) -> Selector:
    """The rule that commits proposals."""
    check_complete(config)
    steps, per_block = config.steps, config.max_denoising_steps
    if all(getattr(config, name) is None for name in SELECTIONS):
        keep_idle_steps = config.rng_compat is not None
        return QuotaSelector(schedule_steps(region, steps, per_block, keep_idle_steps), keep_idle_steps)
    floors = None
    if steps is not None or per_block is not None:
        floors = schedule_steps(region, steps, per_block, whole_blocks=block_causal)
    if config.factor is not None:
        return (ReferenceFactorSelector if config.factor_compat else FactorSelector)(config.factor, floors)
    if config.frechet_margin is not None:
        return FrechetSelector(config.frechet_margin, floors)
    if config.entropy_bound is not None:
        return EntropyBoundSelector(config.entropy_bound, floors)
    # LLaDA2 commits what exceeds the threshold, Fast-dLLM what reaches it
    return ThresholdSelector(config.threshold, floors, inclusive=not block_causal)


def make_revision(config: DiffusionGenerationConfig, canvas: Canvas) -> Revision:
    """The rule that revises what was committed."""
    if config.editing_threshold is None:
        return Revision()
    if not config.control_token_ids:
        return TokenEditing(config.editing_threshold, config.max_post_steps)
    # what follows a block moves with it, so nothing given may follow
    if bool((canvas.has_suffix & canvas.masked).any()):
        raise ValueError(
            "Text was given after a mask, and this model edits by inserting and deleting, which would move it. Pass "
            "`delete_token_id=None, split_token_id=None` to edit without."
        )
    return LevenshteinEditing(config.editing_threshold, config.max_post_steps, *config.control_token_ids)


def make_proposer(
    config: DiffusionGenerationConfig, processors: PositionalProcessors, vocab_size: int, canvas: Canvas
) -> Proposer:
    """What turns logits into tokens and scores."""
    proposer = ReferenceProposer if config.rng_compat == "llada" else Proposer
    return proposer(config, processors, vocab_size, text_follows=bool((canvas.has_suffix & canvas.masked).any()))


__all__ = ["make_forward", "make_proposer", "make_revision", "make_selector"]
