"""Measuring masked diffusion language models, next to causal ones."""

from .causal_twin import build_causal_twin, causal_answer_log_likelihood, causal_log_likelihood
from .documents import DocumentScores, score_documents
from .labels import choose_label
from .likelihood import encode_pair, is_greedy, log_likelihood, reference_estimate
from .numerics import Difference, Surroundings, find_differences
from .position_bound import PositionBound, bound_by_position
from .reversal_facts import Fact, ReversalFacts, build_reversal_tokenizer, draw_facts
from .reversal_scores import evaluate_reversal, format_table


__all__ = [
    "Difference",
    "DocumentScores",
    "Fact",
    "PositionBound",
    "ReversalFacts",
    "Surroundings",
    "bound_by_position",
    "build_causal_twin",
    "build_reversal_tokenizer",
    "causal_answer_log_likelihood",
    "causal_log_likelihood",
    "choose_label",
    "draw_facts",
    "encode_pair",
    "evaluate_reversal",
    "find_differences",
    "format_table",
    "is_greedy",
    "log_likelihood",
    "reference_estimate",
    "score_documents",
]
