"""From settings to the parts of the sampling loop: each part is asked for by its name, whichever rule has it."""

from collections.abc import Callable
from typing import Any

import torch

from .canvas import Canvas
from .forwards.compiled import CompiledModel
from .forwards.full import FullForward
from .positional import PositionalProcessors
from .proposer import Proposer
from .rule import Setup
from .rules.quota import Quota
from .rules.revision import Revision
from .rules.selection import Selector
from .scores import LowConfidence
from .validity import switched_on


def lay_out(
    config: Any,
    model: Callable,
    prompt: torch.Tensor,
    attention_mask: torch.Tensor | None,
    longest: int,
    block_causal: bool,
) -> tuple[Canvas, FullForward] | None:
    """
    The canvas of a rule that says how many masks there are, and the plan that counted the forward passes it took. The
    arguments are those of [`~llada.generation.rule.Rule.lay_out`].

    Args:
        block_causal (`bool`):
            Whether the model attends block-causally.

    Raises:
        ValueError: If the model cannot say where its text ends.
    """
    for rule, name in switched_on(config).items():
        if "needs_the_end" in rule.traits and (block_causal or not config.eos_token_ids):
            raise ValueError(
                f"`{name}={getattr(config, name)}` asks the model where its text ends, which needs full "
                "attention and `eos_token_id`. Leave it out: blocks after the end are not computed anyway."
            )
        made = rule.lay_out(config, model, prompt, attention_mask, longest)
        if made is not None:
            return made
    return None


def make_selector(setup: Setup) -> Selector:
    """The rule that commits proposals: the caller's, or that of the settings."""
    selector = setup.extra.get("selector")
    if selector is None:
        selector = setup.first("selector")
    return setup.wrapped("wrap_selector", Quota.plan(setup) if selector is None else selector)


def make_revision(setup: Setup) -> Revision:
    """The rule that revises what was committed: the caller's, or that of the settings."""
    revision = setup.extra.get("revision")
    if revision is None:
        revision = setup.first("revision")
    return Revision() if revision is None else revision


def make_forward(setup: Setup, selector: Selector) -> FullForward:
    """
    The forward plan.

    Args:
        setup ([`~llada.generation.rule.Setup`]):
            What it is built for.
        selector ([`~llada.generation.rules.selection.Selector`]):
            The rule that commits proposals.

    Raises:
        ValueError: If the plan does not fit the model or the masks.
    """
    _check_model(setup)
    _check_rows(setup)
    plan = setup.first("forward", selector)
    if plan is None:
        block_length = setup.region.block_length if setup.block_causal else None
        plan = FullForward(setup.model, setup.config.guidance, block_length)
    return setup.wrapped("wrap_forward", plan)


def compile_forward(plan: FullForward, compiled: Callable, block_length: int) -> None:
    """
    Makes a plan run on a compiled model.

    Args:
        plan ([`~llada.generation.forwards.full.FullForward`]):
            The plan.
        compiled (`Callable`):
            Its model, compiled.
        block_length (`int`):
            Length of the blocks.

    Raises:
        ValueError: If the plan computes other shapes in every step.
    """
    if not plan.same_shapes:
        raise ValueError(
            "`compile_config` needs steps of the same shapes, and the positions that "
            f'{type(plan).__name__} computes change. Use `kv_cache` None, "dual" or "block" without a rule that '
            "changes what is computed, or leave out `compile_config`."
        )
    plan.model = CompiledModel(plan.model, compiled, block_length)
    plan.keeps_shapes = True


def make_proposer(setup: Setup, processors: PositionalProcessors) -> Proposer:
    """What turns logits into tokens and scores."""
    config, canvas = setup.config, setup.canvas
    setup.extra["token_frequencies"] = _check_frequencies(setup)
    score = setup.first("score")
    score = setup.wrapped("wrap_score", LowConfidence() if score is None else score)
    proposer = setup.first("proposer") or Proposer
    text_follows = bool((canvas.has_suffix & canvas.masked).any())
    return proposer(config, processors, setup.vocab_size, score, setup.first("logits"), text_follows)


def _check_frequencies(setup: Setup) -> torch.Tensor | None:
    frequencies: torch.Tensor | None = setup.extra.get("token_frequencies")
    if (frequencies is None) == (setup.config.remasking == "position_calibrated"):
        raise ValueError(
            f'`remasking="position_calibrated"` and `token_frequencies` need each other, but `remasking` is '
            f"{setup.config.remasking!r} and `token_frequencies` {'not given' if frequencies is None else 'given'}."
        )
    if frequencies is None:
        return None
    shape = tuple(frequencies.shape)
    if shape != (setup.vocab_size,) or not ((frequencies >= 0) & (frequencies <= 1)).all():
        raise ValueError(
            f"`token_frequencies` has shape {shape}; give one frequency from 0 to 1 for each of the "
            f"{setup.vocab_size} tokens of the vocabulary."
        )
    return frequencies.to(setup.canvas.tokens.device)


def _check_model(setup: Setup) -> None:
    """Refuses plans that a model has no attention for."""
    for rule, name in setup.rules.items():
        value = getattr(setup.config, name)
        if setup.block_causal and "sees_both_sides" in rule.traits:
            raise ValueError(
                f"`{name}={value}` is for models with full attention, and this one attends "
                "block-causally: it never sees what follows the current block. Leave it out."
            )
        if setup.block_causal and "needs_full_attention" in rule.traits:
            raise ValueError(
                f'`{name}={value!r}` is not for a model with block-causal attention; use "block", which is '
                "exact, or None."
            )
        if not setup.block_causal and "needs_block_causal" in rule.traits:
            raise ValueError(
                f'`{name}={value!r}` is not for a model with full attention; use "prefix" or "dual", or None.'
            )
    if setup.extra.get("cache") is not None and setup.config.kv_cache != "block":
        raise ValueError(f"`cache` continues a block-causal cache, but `kv_cache={setup.config.kv_cache!r}`.")


def _check_rows(setup: Setup) -> None:
    """Refuses rows that a plan would treat differently together and alone."""
    canvas, region = setup.canvas, setup.region
    for rule, name in setup.rules.items():
        value: Any = getattr(setup.config, name)
        if "aligns_rows" in rule.traits and region.first != region.last:
            raise ValueError(
                f"`{name}={value!r}` computes the same positions in all rows, so that a row would depend on the "
                f"others: the first masks stand at positions {region.first} to {region.last}. Align the rows, or "
                f"leave out `{name}`."
            )
        if "takes_one_row" in rule.traits and len(canvas.tokens) > 1:
            raise ValueError(
                f"`{name}={value!r}` computes other positions in every row, and there are {len(canvas.tokens)} rows; "
                'give one row, or use "prefix" or "dual".'
            )
        if "leaves_out_suffix" in rule.traits and bool((canvas.has_suffix & canvas.masked).any()):
            raise ValueError(
                f"`{name}={value}` leaves out what follows, and text was given after a mask; leave out `{name}`."
            )


__all__ = ["compile_forward", "lay_out", "make_forward", "make_proposer", "make_revision", "make_selector"]
