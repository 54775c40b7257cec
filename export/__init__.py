"""What a model needs where this package is not: its card on the Hub, and the launch of a serving engine."""

from .model_card import create_model_card
from .sglang import SGLangLaunch, prepare_sglang


__all__ = ["SGLangLaunch", "create_model_card", "prepare_sglang"]
