"""
What each rule loses, exactly, and what it saves: `python -m benchmarks --exact` writes the table in docs/samplers.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llada import LLaDAConfig, LLaDAModelLM
from llada.generation import DiffusionGenerationConfig
from llada.generation.validity import switched_on
from llada.modeling_llada.noisy_and_clean import lay_out_noisy_and_clean

from .exact import Enumeration, any_order_likelihood, divergence, total_variation


DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "samplers.md"
# two words, the end of text and the mask
WORDS, EOS, MASK = 2, 2, 3
LENGTH = 4
# tokens that `remasking="position_calibrated"` counts with
FREQUENCIES = torch.tensor([0.5, 0.3, 0.2, 0.0])
# what is measured: settings by rule. All in one block unless they say otherwise
CASES: dict[str, dict[str, Any]] = {
    "quota, 3 steps": {"max_denoising_steps": 3},
    "quota, 2 steps": {"max_denoising_steps": 2},
    "margin, 3 steps": {"max_denoising_steps": 3, "remasking": "margin"},
    "entropy, 3 steps": {"max_denoising_steps": 3, "remasking": "entropy"},
    "chance, 3 steps": {"max_denoising_steps": 3, "remasking": "random"},
    "position and surprise, 3 steps": {"max_denoising_steps": 3, "remasking": "position_calibrated"},
    "drawn order, 3 steps": {"max_denoising_steps": 3, "remasking_temperature": 0.5},
    "time grid, 3 steps": {"max_denoising_steps": 3, "step_schedule": "dream"},
    "reveals by chance, 3 steps": {"max_denoising_steps": 3, "step_schedule": "bernoulli"},
    "reveals by chance, 6 steps": {"max_denoising_steps": 6, "step_schedule": "bernoulli"},
    "reveals by chance, 12 steps": {"max_denoising_steps": 12, "step_schedule": "bernoulli"},
    "reveals by chance, 24 steps": {"max_denoising_steps": 24, "step_schedule": "bernoulli"},
    "no end of text, 3 steps": {"max_denoising_steps": 3, "suppress_eos": "logits"},
    "ends of text last, 3 steps": {"max_denoising_steps": 3, "suppress_eos": "confidence"},
    "ends held back, 3 steps": {"max_denoising_steps": 3, "suppress_eos": "rising"},
    "threshold 0.9": {"threshold": 0.9},
    "threshold 0.7": {"threshold": 0.7},
    "threshold 0.5": {"threshold": 0.5},
    "factor 1.0": {"factor": 1.0},
    "factor 1.0, as in the code": {"factor": 1.0, "factor_compat": "fast_dllm"},
    "Fréchet 0.0": {"frechet_margin": 0.0},
    "entropy bound 0.1": {"entropy_bound": 0.1, "remasking": "entropy"},
    "entropy bound 0.5": {"entropy_bound": 0.5, "remasking": "entropy"},
    "hierarchical 0.9, 0.4": {"threshold": 0.9, "low_threshold": 0.4},
    "context-aware 0.9, 0.3": {"threshold": 0.9, "threshold_relaxation": 0.3},
    "KLASS 0.6, 0.015": {"threshold": 0.6, "kl_threshold": 0.015},
    "WINO 0.6, 0.9": {"threshold": 0.6, "verify_threshold": 0.9},
    "SlowFast 0.9, 2 exploring": {"threshold": 0.9, "exploration_steps": 2},
    "credit 0.7, threshold 0.9": {"threshold": 0.9, "credit_weight": 0.7},
    "early commit, threshold 0.9": {"threshold": 0.9, "commit_gaps": [7.5, 5.0, 2.5]},
    "early stop, threshold 0.9": {"threshold": 0.9, "stable_steps": 1, "stable_entropy": 0.2},
    "remasking 0.3, threshold 0.5": {"threshold": 0.5, "remask_threshold": 0.3},
    "running confidence, 3 steps": {"max_denoising_steps": 3, "running_confidence": True},
    "running confidence, 2 steps": {"max_denoising_steps": 2, "running_confidence": True},
    "token editing 0.5, threshold 0.7": {"threshold": 0.7, "editing_threshold": 0.5, "max_post_steps": 1},
    "prefix cache, blocks of 2": {"block_length": 2, "kv_cache": "prefix"},
    "dual cache, blocks of 2": {"block_length": 2, "kv_cache": "dual"},
    "vicinity 1, blocks of 2": {"block_length": 2, "kv_cache": "vicinity", "vicinity": 1},
    "suffix window 0, blocks of 2": {"block_length": 2, "suffix_window": 0},
}
_LENGTH = "what says how long the answer is (entropy valley, DAEDAL) leaves one token per step another length"
# names of rules that are not measured -> why
NOT_MEASURED = {
    "Reference": "`rng_compat` draws what the plan draws, in another order, and may draw the mask",
    "EntropyValley": _LENGTH,
    "InitialLength": _LENGTH,
    "MaskInsertion": _LENGTH,
    "Levenshtein": "inserting and deleting need control tokens that a model was trained with",
    "DelayedCache": "the delayed cache takes one row, and outcomes are rows here",
    "BlockCache": "the block cache is exact, for models with block-causal attention",
}
# what one token per step has in common with a rule: which tokens are allowed, and in which order
SHARED = ("block_length", "remasking", "remasking_temperature", "suppress_eos", "position_decay", "frequency_cap")


@dataclass(frozen=True)
class Certificate:
    """
    A rule against one token per step in the same order.

    Args:
        variation, divergence (`float`):
            Total variation between the distributions over answers at temperature 1, and the Kullback-Leibler
            divergence of one token per step from the rule, in nats.
        before, forwards (`float`):
            Expected forward passes of one token per step, and of the rule.
        likelihood (`float`):
            At temperature 0, the any-order log-likelihood of what the rule writes minus that of one token per step.
        greedy_forwards (`float`):
            Forward passes of the rule at temperature 0 for one of one token per step.
    """

    variation: float
    divergence: float
    before: float
    forwards: float
    likelihood: float
    greedy_forwards: float

    @property
    def saved(self) -> float:
        """Passes that are saved."""
        return self.before - self.forwards

    @property
    def price(self) -> float:
        """Total variation for each pass that is saved, infinite where next to none is."""
        return self.variation / self.saved if self.saved > 0.05 else float("inf")


def draw_model(seed: int, hidden_size: int = 16) -> LLaDAModelLM:
    """A model with random weights, in float64, so that sums in another order decide nothing."""
    config = LLaDAConfig(
        vocab_size=MASK + 1,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
        bos_token_id=0,
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LLaDAModelLM(config).double().eval()


def draw_patterns(number: int, generator: torch.Generator) -> torch.Tensor:
    """
    Texts of three words and an answer that says the last word twice, or goes on with it for four words, or alternates
    for three, with a word in fifty replaced: what stands at one place says what stands at the others.
    """
    prompt = torch.randint(WORDS, (number, 3), generator=generator)
    last, places = prompt[:, 2:], torch.arange(LENGTH)
    kind = torch.randint(3, (number, 1), generator=generator)
    answer = torch.where(kind == 2, (last + places + 1) % 2, last)
    wrong = torch.rand(answer.shape, generator=generator) < 0.02
    ends = places >= torch.tensor([2, 4, 3])[kind]
    return torch.cat([prompt, torch.where(wrong, 1 - answer, answer).masked_fill(ends, EOS)], dim=1)


def draw_parities(number: int, generator: torch.Generator) -> torch.Tensor:
    """Texts of three words and an answer of 3 words whose sum is even or, rarely, odd: none tells of another alone."""
    prompt = torch.randint(WORDS, (number, 3), generator=generator)
    answer = torch.randint(WORDS, (number, LENGTH), generator=generator)
    odd = (torch.rand(number, generator=generator) < 0.05).long()
    answer[:, 2] = (answer[:, :2].sum(1) + odd) % 2
    answer[:, 3] = EOS
    return torch.cat([prompt, answer], dim=1)


def train_model(
    draw: Any, steps: int = 300, batch: int = 64, hidden_size: int = 16, block_length: int = 0
) -> LLaDAModelLM:
    """
    A model trained on texts that `draw` gives, in seconds, by the loss of arXiv 2502.09992, Eq. 3, in blocks if they
    have a length.
    """
    model, generator = draw_model(0, hidden_size).train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        texts = draw(batch, generator)
        # as many masks as drawn, at any places: the loss of a text is the mean over its masks
        number = torch.randint(1, LENGTH + 1, (batch, 1), generator=generator)
        masked = torch.rand(batch, LENGTH, generator=generator).argsort(1).argsort(1) < number
        masked = torch.cat([torch.zeros(batch, 3, dtype=torch.bool), masked], dim=1)
        noisy = texts.masked_fill(masked, MASK)
        seen = lay_out_noisy_and_clean(model.config, noisy, texts, block_length) if block_length else {}
        logits = model(**{"input_ids": noisy, **seen}).logits[:, : texts.shape[1]]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), texts, reduction="none")
        optimizer.zero_grad()
        ((losses * masked).sum(1) / masked.sum(1)).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def trained_models() -> list[LLaDAModelLM]:
    """The trained models."""
    return [train_model(draw) for draw in (draw_patterns, draw_parities)]


def random_models() -> list[LLaDAModelLM]:
    """The random ones."""
    return [draw_model(seed) for seed in (1, 2)]


class Bench:
    """
    Measures rules on a model, and remembers what one token per step gives.

    Args:
        model ([`~llada.LLaDAModelLM`]):
            The model.
    """

    def __init__(self, model: LLaDAModelLM):
        self.model = model
        self.prompts = torch.cartesian_prod(*[torch.arange(WORDS)] * 3)
        self.known: dict[str, tuple[Enumeration, torch.Tensor, float]] = {}

    def measure(self, settings: dict[str, Any]) -> Certificate:
        """What the rule of some settings gives, beside one token per step in the same order."""
        plain = {name: settings[name] for name in SHARED if name in settings}
        if settings.get("step_schedule") == "bernoulli":
            plain["remasking"] = "random"
        if repr(plain) not in self.known:
            self.known[repr(plain)] = self._run(plain)
        reference, texts, passes = self.known[repr(plain)]
        rule, rule_texts, rule_passes = self._run(settings)
        return Certificate(
            total_variation(reference.probabilities, rule.probabilities),
            divergence(rule.probabilities, reference.probabilities),
            reference.forwards,
            rule.forwards,
            float((self._likelihood(rule_texts) - self._likelihood(texts)).mean()),
            rule_passes / passes,
        )

    def _run(self, settings: dict[str, Any]) -> tuple[Enumeration, torch.Tensor, float]:
        settings = {"block_length": LENGTH, "confidence_dtype": "float64", **settings, "max_new_tokens": LENGTH}
        extra = {"token_frequencies": FREQUENCIES} if settings.get("remasking") == "position_calibrated" else {}
        with torch.random.fork_rng():
            # an order by chance is the only draw at temperature 0
            torch.manual_seed(0)
            given = {"do_sample": False, "return_dict_in_generate": True, **settings, **extra}
            output = self.model.generate(self.prompts, **given)
        answer = output.sequences[:, 3:]
        texts = torch.nn.functional.pad(answer, (0, LENGTH - answer.shape[1]), value=EOS)
        is_end = texts == EOS
        written = (is_end.cumsum(1) - is_end.long() == 0).sum(1)
        passes = float((written / output.tokens_per_forward).sum())
        # of the prompts, the one that goes on in most ways
        return Enumeration(self.model, self.prompts[2:3], settings, **extra), texts, passes

    def _likelihood(self, texts: torch.Tensor) -> torch.Tensor:
        return any_order_likelihood(self.model, self.prompts, texts)


def mean(certificates: list[Certificate]) -> Certificate:
    """Of several models."""
    fields = [vars(one) for one in certificates]
    return Certificate(*(sum(one[name] for one in fields) / len(fields) for name in fields[0]))


def certify(names: list[str] | None = None) -> list[str]:
    """
    The lines of the table, the lowest price first.

    Args:
        names (`list[str]`, *optional*):
            Some of [`CASES`], all if not given.
    """
    benches = [[Bench(model) for model in models] for models in (trained_models(), random_models())]
    measured = {
        name: [mean([bench.measure(CASES[name]) for bench in group]) for group in benches] for name in names or CASES
    }
    ranked = sorted(measured.items(), key=lambda entry: (entry[1][0].price, entry[1][0].variation))
    head = (
        "rule",
        "passes",
        "total variation",
        "KL",
        "variation per saved pass",
        "greedy: likelihood",
        "greedy: passes",
        "random models: variation",
        "random models: passes",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, (trained, drawn) in ranked:
        cells = (
            name,
            f"{trained.before:.2f} → {trained.forwards:.2f}",
            _rounded(trained.variation),
            _rounded(trained.divergence),
            "none saved" if trained.price == float("inf") else _rounded(trained.price),
            _rounded(trained.likelihood),
            f"{trained.greedy_forwards:.0%}",
            _rounded(drawn.variation),
            f"{drawn.before:.2f} → {drawn.forwards:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rounded(value: float) -> str:
    # nothing is minus nothing
    return f"{round(value, 3) + 0.0:.3f}"


def rules_of(settings: dict[str, Any]) -> set[str]:
    """The names of the rules that some settings switch on."""
    return {rule.__name__ for rule in switched_on(DiffusionGenerationConfig(**settings))}


def with_certificates(text: str, lines: list[str]) -> str:
    """A document with these lines between `<!-- certificates -->` and `<!-- end -->`."""
    before, rest = text.split("<!-- certificates -->\n")
    reasons = dict.fromkeys(NOT_MEASURED.values())
    block = "\n".join(lines) + "\n\nNot measured: " + "; ".join(reasons) + ".\n"
    return before + "<!-- certificates -->\n" + block + "<!-- end -->" + rest.split("<!-- end -->", 1)[1]


def write_certificates() -> None:
    """Measures all rules and puts the table into the documentation."""
    lines = certify()
    print("\n".join(lines))
    DOCUMENT.write_text(with_certificates(DOCUMENT.read_text(encoding="utf-8"), lines), encoding="utf-8")
    print(f"wrote {DOCUMENT}")


__all__ = [
    "CASES",
    "NOT_MEASURED",
    "Bench",
    "Certificate",
    "certify",
    "draw_model",
    "random_models",
    "rules_of",
    "train_model",
    "trained_models",
    "with_certificates",
    "write_certificates",
]
