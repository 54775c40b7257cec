"""
The reversal curse in miniature: a model that read "A is B" is asked who B is (arXiv 2309.12288, 2502.09992 §3.3).

What the figures mean, for a model that learned the facts of [`ReversalFacts`]:

- `declaration` and `forward_question` ask in the direction that was read.
- `reverse_question` is the reversal curse: the answer was read before the words of the question, and questions of this
  form are known from other facts.
- `infill` masks the name where it was read. A masked diffusion model is trained on exactly this, so it says nothing
  about the curse; a causal model cannot do it.
- `reverse_declaration` continues "B is", which no training text begins with. Any-order training alone does not answer
  it (arXiv 2602.02133).
- `ranking` asks a causal model for the likeliest of all names in "A is B". It finds the name: it knows the fact, what
  it cannot do is write it down backwards.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .causal_twin import causal_log_likelihood
from .couplets import Couplet
from .reversal_facts import Fact, ReversalFacts


# of invented facts the longest answer is a description of three words and its end
ANSWER_LENGTH = 4

# kind -> what is asked, and in which direction
ROWS = {
    "declaration": ("A is ...", "forward"),
    "forward_question": ("Who is A?", "forward"),
    "reverse_question": ("Who is B?", "reversed"),
    "infill": ("... is B", "in place"),
    "reverse_declaration": ("B is ...", "reversed"),
    "ranking": ("Which name is B?", "a choice"),
}
# the same of a couplet "A, B"
COUPLET_ROWS = {
    "declaration": ("A, ...", "forward"),
    "forward_question": ("line after A?", "forward"),
    "reverse_question": ("line before B?", "reversed"),
    "infill": ("..., B", "in place"),
    "reverse_declaration": ("B, ...", "reversed"),
    "ranking": ("which A before B?", "a choice"),
}


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    answer_length: int = ANSWER_LENGTH,
) -> list[str]:
    """
    Continues prompts by the likeliest tokens.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked diffusion model, one token per step, or a causal one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, padding on the left.
        prompts (`list[str]`):
            The prompts.
        answer_length (`int`, *optional*, defaults to 4):
            Tokens of the longest answer, with its end.

    Returns:
        `list[str]`: What follows each prompt.
    """
    inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    sequences = model.generate(**inputs, max_new_tokens=answer_length, do_sample=False)
    texts = tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def fill_in_names(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact | Couplet]
) -> list[str]:
    """
    Masks the names in the sentences of facts and lets a masked diffusion model fill them in.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked diffusion model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, padding on the left.
        facts (`Sequence[Fact]`):
            The facts.

    Returns:
        `list[str]`: The sentences, filled in.
    """
    mask, end = tokenizer.mask_token, tokenizer.eos_token
    texts = []
    for fact in facts:
        masks = " ".join([mask] * len(tokenizer(fact.name, add_special_tokens=False)["input_ids"]))
        # a text without an end is not what the model was trained on
        texts.append(f"{fact.renamed(masks).sentence}{end}")
    inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    return tokenizer.batch_decode(model.infill(**inputs), skip_special_tokens=True)


def rank_names(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact | Couplet], names: Sequence[str]
) -> list[str]:
    """
    The name that makes "A is B" likeliest to a causal model, for the description B of each fact. With all names
    equally frequent this is Bayes' rule.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        facts (`Sequence[Fact]`):
            The facts.
        names (`Sequence[str]`):
            The candidates.

    Returns:
        `list[str]`: One name per fact.
    """
    best = []
    for fact in facts:
        sentences = [fact.renamed(name).sentence for name in names]
        best.append(names[int(causal_log_likelihood(model, tokenizer, sentences).argmax())])
    return best


def _share(tokenizer: PreTrainedTokenizerBase, given: Sequence[str], right: Sequence[str]) -> float:
    # as the tokenizer writes it: other spaces are no mistake
    right = tokenizer.batch_decode(tokenizer(list(right))["input_ids"], skip_special_tokens=True)
    return sum(a == b for a, b in zip(given, right, strict=True)) / len(right)


def evaluate_reversal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: ReversalFacts,
    answer_length: int = ANSWER_LENGTH,
) -> dict[str, float]:
    """
    Asks a model about the held-out facts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A masked diffusion model, or a causal one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, padding on the left.
        facts ([`ReversalFacts`]):
            The facts the model was trained with.
        answer_length (`int`, *optional*, defaults to 4):
            Tokens of the longest answer, with its end.

    Returns:
        `dict[str, float]`: The share of exact matches by kind of question, described at the top of this module:
        `declaration`, `forward_question`, `reverse_question`, `reverse_declaration`, and either `infill` or `ranking`.
    """
    training, held_out = model.training, facts.held_out
    model.eval()
    questions = {
        "declaration": [(fact.openings[0], fact.description) for fact in held_out],
        "forward_question": [(f"{question}\n", right) for question, right in (fact.forward for fact in held_out)],
        "reverse_question": [(f"{question}\n", right) for question, right in (fact.reverse for fact in held_out)],
        "reverse_declaration": [(fact.openings[1], fact.name) for fact in held_out],
    }
    shares = {}
    for kind, pairs in questions.items():
        prompts, right = zip(*pairs, strict=True)
        shares[kind] = _share(tokenizer, answer(model, tokenizer, list(prompts), answer_length), right)
    if hasattr(model, "infill"):
        filled = fill_in_names(model, tokenizer, held_out)
        shares["infill"] = _share(tokenizer, filled, [fact.sentence for fact in held_out])
    else:
        ranked = rank_names(model, tokenizer, held_out, facts.names)
        shares["ranking"] = _share(tokenizer, ranked, [fact.name for fact in held_out])
    model.train(training)
    return shares


def longest_answer(tokenizer: PreTrainedTokenizerBase, facts: ReversalFacts) -> int:
    """Tokens of the longest answer about facts, with its end."""
    answers = [text for fact in (*facts.demonstrated, *facts.held_out) for text in (fact.name, fact.description)]
    return 1 + max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))


def format_table(results: dict[str, dict[str, float]], rows: dict[str, tuple[str, str]] | None = None) -> str:
    """
    Lays out results side by side.

    Args:
        results (`dict[str, dict[str, float]]`):
            What [`evaluate_reversal`] returned, by the name of the model.
        rows (`dict[str, tuple[str, str]]`, *optional*):
            What to call the kinds of questions, `ROWS` or `COUPLET_ROWS`. The first if not given.

    Returns:
        `str`: A Markdown table, with a dash where a model cannot be asked.
    """
    lines = [["asked", "", *results], ["", "", *("" for _ in results)]]
    for kind, labels in (ROWS if rows is None else rows).items():
        shares = [result.get(kind) for result in results.values()]
        lines.append([*labels, *("-" if share is None else f"{share:.0%}" for share in shares)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines[1] = ["-" * widths[0], "-" * widths[1], *("-" * (width - 1) + ":" for width in widths[2:])]
    table = []
    for line in lines:
        cells = [
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


__all__ = [
    "ANSWER_LENGTH",
    "COUPLET_ROWS",
    "ROWS",
    "answer",
    "evaluate_reversal",
    "fill_in_names",
    "format_table",
    "longest_answer",
    "rank_names",
]
