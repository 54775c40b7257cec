"""Measuring masked diffusion language models, next to causal ones."""

from .causal_twin import build_causal_twin, causal_log_likelihood
from .reversal import evaluate_reversal, format_table
from .reversal_facts import Fact, ReversalFacts, build_reversal_tokenizer, draw_facts


__all__ = [
    "Fact",
    "ReversalFacts",
    "build_causal_twin",
    "build_reversal_tokenizer",
    "causal_log_likelihood",
    "draw_facts",
    "evaluate_reversal",
    "format_table",
]
