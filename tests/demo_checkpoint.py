"""The small trained checkpoint in `tests/fixtures/llada-demo`, the output of `llada demo`."""

from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llada.evaluation.reversal_facts import ReversalFacts


__all__ = ["DEMO_FOLDER", "load_demo"]

DEMO_FOLDER = Path(__file__).parent / "fixtures" / "llada-demo"


def load_demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ReversalFacts]:
    """Loads model, tokenizer and the facts it was trained on."""
    return (
        AutoModelForMaskedLM.from_pretrained(DEMO_FOLDER),
        AutoTokenizer.from_pretrained(DEMO_FOLDER),
        ReversalFacts.load(DEMO_FOLDER / "facts.json"),
    )
