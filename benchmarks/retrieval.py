"""
Embeddings of a masked diffusion model and of its causal twin: which finds the other half of a paragraph?

    python -m benchmarks.retrieval                     trains both on the pages that `help()` shows about Python
    python -m benchmarks.retrieval --encoder FOLDER    adds a model that sentence-transformers loads

The text is `pydoc_data.topics` of the standard library. Both models see the same tokens in the same order. A query is
the first half of a paragraph of a page that neither was trained on, and is to find the second half among those of all
pages. Each is asked as it is, and after some steps in which it learns to tell the halves of the paragraphs that it was
trained on from each other.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from llada import LLaDAConfig, LLaDAModelLM, LLaDAPreTrainer, LLaDAPreTrainingConfig
from llada.evaluation.causal_twin import build_causal_twin
from llada.modeling_llada.pooling import mean_states


RESULTS = Path(__file__).parent / "retrieval.json"
# every fourth page is held out
EVERY = 4
END, MASK = "<|endoftext|>", "<|mask|>"
# temperature of the contrastive loss
SCALE = 20.0

Embed = Callable[[list[str]], torch.Tensor]


def read_pages() -> tuple[list[str], list[str]]:
    """Pages to train on, and those held out."""
    from pydoc_data.topics import topics

    pages = [page for _, page in sorted(topics.items())]
    return [page for number, page in enumerate(pages) if number % EVERY], pages[::EVERY]


def halve_paragraphs(pages: list[str], min_words: int = 24, max_words: int = 120) -> list[tuple[str, str]]:
    """The first and the second half, by words, of every paragraph that has so many."""
    words = [paragraph.split() for page in pages for paragraph in re.split(r"\n\s*\n", page)]
    return [
        (" ".join(part[: len(part) // 2]), " ".join(part[len(part) // 2 :]))
        for part in words
        if min_words <= len(part) <= max_words
    ]


def find(queries: torch.Tensor, documents: torch.Tensor) -> dict[str, float]:
    """
    How well queries find the documents of their own number, by cosine.

    Args:
        queries (`torch.FloatTensor` of shape `(queries, size)`):
            Embeddings of the queries.
        documents (`torch.FloatTensor` of shape `(documents, size)`):
            Embeddings of at least as many documents. The first ones are those to be found.

    Returns:
        `dict` with the mean reciprocal rank, and the shares found first and among the first ten. Ties count against
        the document.
    """
    scores = nn.functional.normalize(queries.float(), dim=1) @ nn.functional.normalize(documents.float(), dim=1).T
    own = scores.diagonal()[:, None]
    ranks = (scores >= own).sum(dim=1).double()
    return {
        "mrr": float((1 / ranks).mean()),
        "recall@1": float((ranks <= 1).double().mean()),
        "recall@10": float((ranks <= 10).double().mean()),
    }


def embedder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pooling: str = "mean") -> Embed:
    """Embeds texts with a backbone, in parts of 64."""

    def encode(texts: list[str]) -> torch.Tensor:
        parts = []
        for first in range(0, len(texts), 64):
            inputs = tokenizer(
                texts[first : first + 64], return_tensors="pt", padding=True, truncation=True, padding_side="right"
            )
            if isinstance(model, LLaDAModelLM):
                parts.append(model.get_text_features(**inputs))
                continue
            states = model.base_model(**inputs).last_hidden_state
            if pooling == "mean":
                parts.append(mean_states(states, inputs["attention_mask"]))
            else:
                parts.append(states[torch.arange(len(states)), inputs["attention_mask"].sum(dim=1) - 1])
        return torch.cat(parts)

    return encode


@torch.no_grad()
def measure(embed: Embed, queries: list[tuple[str, str]], others: list[tuple[str, str]]) -> dict[str, float]:
    """Asks for the other halves of `queries` among those of all."""
    documents = [second for _, second in (*queries, *others)]
    return find(embed([first for first, _ in queries]), embed(documents))


def learn_halves(model: PreTrainedModel, embed: Embed, pairs: list[tuple[str, str]], steps: int, rows: int) -> None:
    """Trains a model to tell the other half of a paragraph from those of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        chosen = [pairs[number] for number in torch.randperm(len(pairs), generator=generator)[:rows].tolist()]
        first, second = (nn.functional.normalize(embed(list(part)), dim=1) for part in zip(*chosen, strict=True))
        loss = nn.functional.cross_entropy(SCALE * first @ second.T, torch.arange(len(chosen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


class AsksOnTheWay(TrainerCallback):
    """Calls a function of the number of steps, every so many."""

    def __init__(self, ask: Callable[[int], None], every: int):
        self.ask, self.every = ask, every

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            model.eval()
            self.ask(state.global_step)
            model.train()


def build(pages: list[str], vocab_size: int, hidden_size: int, layers: int) -> tuple[PreTrainedTokenizerFast, ...]:
    """A tokenizer of the pages, an untrained model and its twin."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(pages, vocab_size=vocab_size, special_tokens=[END, MASK], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END, mask_token=MASK, model_max_length=256
    )
    set_seed(0)
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        max_position_embeddings=256,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, LLaDAModelLM(config), build_causal_twin(config)


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Trains both and asks them; gives a line for every answer."""
    torch.set_num_threads(options.threads)
    pages, held_out = read_pages()
    known, queries = halve_paragraphs(pages), halve_paragraphs(held_out)
    tokenizer, model, twin = build(pages, options.vocab_size, options.hidden_size, options.layers)

    def ask(name: str, embed: Embed, steps: int, halves: int = 0) -> dict:
        return {"model": name, "steps": steps, "halves": halves, **measure(embed, queries, known)}

    yield {"queries": len(queries), "documents": len(queries) + len(known), "tokenizer": len(tokenizer)}
    for encoder in options.encoder:
        from sentence_transformers import SentenceTransformer

        other = SentenceTransformer(encoder, device="cpu")
        yield ask(Path(encoder).name, lambda texts, other=other: torch.tensor(other.encode(texts)), 0)

    common = {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.rows,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": options.steps // 10,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 50,
        "dataloader_pin_memory": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        args = LLaDAPreTrainingConfig(folder, sequence_length=options.length, **common)
        texts = Dataset.from_dict({"text": pages})
        ours = LLaDAPreTrainer(model, args, train_dataset=texts, processing_class=tokenizer)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        rows = ours.train_dataset.select_columns("input_ids")
        theirs = Trainer(twin, TrainingArguments(folder, **common), collator, rows)
        for trainer, name in ((ours, "diffusion"), (theirs, "causal")):
            poolings = ("mean",) if trainer is ours else ("mean", "last")
            embeds = {f"{name}, {pooling}": embedder(trainer.model, tokenizer, pooling) for pooling in poolings}
            trainer.model.eval()
            lines = [ask(called, embed, 0) for called, embed in embeds.items()]

            def look(steps: int, embeds: dict[str, Embed] = embeds, lines: list[dict] = lines) -> None:
                lines += [ask(called, embed, steps) for called, embed in embeds.items()]

            trainer.add_callback(AsksOnTheWay(look, options.every))
            trainer.train()
            yield from lines
            start = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
            for called, embed in embeds.items():
                trainer.model.load_state_dict(start)
                learn_halves(trainer.model, embed, known, options.halves, 32)
                yield ask(called, embed, options.steps, options.halves)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", action="append", default=[], help="a model that sentence-transformers loads")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--halves", type=int, default=100, help="steps in which halves are told from each other")
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden-size", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = []
    for line in run(options):
        print(json.dumps(line), flush=True)
        found.append(line)
        options.results.write_text(json.dumps(found, indent=2) + "\n")


__all__ = ["embedder", "find", "halve_paragraphs", "learn_halves", "main", "measure", "read_pages", "run"]


if __name__ == "__main__":
    main()
