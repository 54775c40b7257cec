"""Measuring masked diffusion language models, next to causal ones."""

from .causal_twin import build_causal_twin, causal_log_likelihood
from .documents import DocumentScores, score_documents
from .labels import choose_label
from .likelihood import encode_pair, is_greedy, log_likelihood, reference_estimate
from .reversal import evaluate_reversal, format_table
from .reversal_facts import Fact, ReversalFacts, build_reversal_tokenizer, draw_facts


__all__ = [
    "DocumentScores",
    "Fact",
    "ReversalFacts",
    "build_causal_twin",
    "build_reversal_tokenizer",
    "causal_log_likelihood",
    "choose_label",
    "draw_facts",
    "encode_pair",
    "evaluate_reversal",
    "format_table",
    "is_greedy",
    "log_likelihood",
    "reference_estimate",
    "score_documents",
]
