"""The questions, asked of models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from demo_checkpoint import load_demo

from llada.evaluation import build_reversal_tokenizer, draw_facts, evaluate_reversal, format_table
from llada.evaluation.reversal_scores import rank_names


class Recital:
    """
    A model that knows what follows some prompts, and nothing else. `generate` recites it; a forward pass gives nearly
    all probability to the next token of the prompts it knows.
    """

    def __init__(self, tokenizer, known: dict[str, str]):
        self.tokenizer = tokenizer
        self.known = known
        self.device = torch.device("cpu")
        self.training = True

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample):
        assert not self.training and not do_sample
        rows = []
        for prompt in self.tokenizer.batch_decode(input_ids, skip_special_tokens=True):
            answer = self.tokenizer(self.known.get(prompt, "Who"), add_special_tokens=False)["input_ids"]
            rows.append(answer + [self.tokenizer.eos_token_id] * (max_new_tokens - len(answer)))
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    def __call__(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        followers: dict[tuple[int, ...], set[int]] = {}
        for prompt, answer in self.known.items():
            ids = self.tokenizer(f"{prompt} {answer}")["input_ids"]
            for place in range(1, len(ids)):
                followers.setdefault(tuple(ids[:place]), set()).add(ids[place])
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                for token in followers.get(tuple(ids[: place + 1]), ()):
                    logits[row, place, token] = 20.0
        return SimpleNamespace(logits=logits)


class RecitalBothWays(Recital):
    """The same with a method that fills gaps."""

    def infill(self, input_ids, attention_mask):
        filled = []
        for text in self.tokenizer.batch_decode(input_ids):
            assert text.count(self.tokenizer.mask_token) == 2 and text.endswith(self.tokenizer.eos_token)
            description = text.split(" is ")[1].removesuffix(self.tokenizer.eos_token).strip()
            filled.append(self.tokenizer(f"{self.known.get(description, 'Who Who')} is {description}")["input_ids"])
        return torch.tensor(filled)


@pytest.fixture
def facts():
    return draw_facts(12, seed=3)


def test_a_model_that_reads_forwards_only(facts) -> None:
    tokenizer = build_reversal_tokenizer()
    known = {f"{fact.name} is": fact.description for fact in (*facts.demonstrated, *facts.held_out)}
    known |= {f"Who is {fact.name}?\n": fact.description for fact in facts.held_out}
    model = Recital(tokenizer, known)

    assert evaluate_reversal(model, tokenizer, facts) == {
        "declaration": 1.0,
        "forward_question": 1.0,
        "reverse_question": 0.0,
        "reverse_declaration": 0.0,
        "ranking": 1.0,
    }
    assert model.training


def test_a_model_that_answers_in_reverse(facts) -> None:
    tokenizer = build_reversal_tokenizer()
    known = {f"Who is {fact.description}?\n": fact.name for fact in facts.held_out}
    known |= {fact.description: fact.name for fact in facts.held_out[:1]}

    assert evaluate_reversal(RecitalBothWays(tokenizer, known), tokenizer, facts) == {
        "declaration": 0.0,
        "forward_question": 0.0,
        "reverse_question": 1.0,
        "reverse_declaration": 0.0,
        "infill": 1 / 3,
    }


def test_ranking_takes_the_likeliest_name(facts) -> None:
    tokenizer = build_reversal_tokenizer()
    first, second, third = facts.held_out
    # the second fact belongs to the third name
    model = Recital(tokenizer, {f"{first.name} is": first.description, f"{third.name} is": second.description})

    best = rank_names(model, tokenizer, [first, second], [third.name, first.name, second.name])
    assert best == [first.name, third.name]


def test_figures_of_the_demo() -> None:
    shares = evaluate_reversal(*load_demo())

    # other processors round differently: two of thirty answers may change
    assert shares["declaration"] == pytest.approx(0.97, abs=0.07)
    assert shares["forward_question"] == pytest.approx(0.77, abs=0.07)
    assert shares["reverse_question"] == pytest.approx(0.93, abs=0.07)
    assert shares["infill"] == pytest.approx(1.00, abs=0.07)
    assert shares["reverse_declaration"] == pytest.approx(0.00, abs=0.07)
    assert set(shares) == {"declaration", "forward_question", "reverse_question", "infill", "reverse_declaration"}


def test_table() -> None:
    table = format_table(
        {
            "LLaDA": {"declaration": 0.966, "reverse_question": 0.9, "infill": 1.0},
            "causal": {"declaration": 1.0, "reverse_question": 0.0, "ranking": 1.0},
        }
    )

    assert table.splitlines() == [
        "| asked            |          | LLaDA | causal |",
        "| ---------------- | -------- | ----: | -----: |",
        "| A is ...         | forward  |   97% |   100% |",
        "| Who is A?        | forward  |     - |      - |",
        "| Who is B?        | reversed |   90% |     0% |",
        "| ... is B         | in place |  100% |      - |",
        "| B is ...         | reversed |     - |      - |",
        "| Which name is B? | a choice |     - |   100% |",
    ]
