"""The model of the benchmark: trained on synthetic text until it is sure, in minutes, and kept in a cache folder."""

import shutil
from pathlib import Path

import torch
from datasets import Dataset

from llada import LLaDAConfig, LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer

from .synthetic_text import EOS, MASK, PERIOD, draw_texts, word_tokenizer


CACHE = Path(__file__).parent / ".cache"
TRAINED_VOCAB = 8192


def train(folder: Path, steps: int, hidden_size: int = 384, num_layers: int = 4) -> None:
    """
    Trains a model and saves it.

    Args:
        folder (`Path`):
            Where to.
        steps (`int`):
            Number of optimisation steps, of 8 texts of four periods each.
        hidden_size, num_layers (`int`, *optional*, default to 384 and 4):
            Shape of the model, 7 million weights in the backbone by default.
    """
    torch.manual_seed(0)
    config = LLaDAConfig(
        vocab_size=TRAINED_VOCAB,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.04,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    texts = draw_texts(8 * steps, 4 * PERIOD, stops=0.5)
    labels = texts.clone()
    labels[:, :PERIOD] = -100
    trainer = LLaDASFTTrainer(
        model=LLaDAModelLM(config),
        args=LLaDASFTConfig(
            str(folder.with_suffix(".training")),
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            warmup_steps=min(30, steps // 10),
            eos_fill="none",
            min_eos=0,
            mask_sampling="exact",
            loss_weighting="uniform",
            ratio_sampling="stratified",
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_steps=max(steps // 40, 1),
            report_to="none",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()}),
        processing_class=word_tokenizer(TRAINED_VOCAB),
    )
    trainer.train()
    trainer.save_model(str(folder))
    shutil.rmtree(folder.with_suffix(".training"), ignore_errors=True)


def load(steps: int, vocab_size: int = TRAINED_VOCAB, cache: Path = CACHE, **shape: int) -> LLaDAModelLM:
    """
    Loads the model, and trains it before if that has not happened.

    Args:
        steps, shape:
            As in [`train`].
        vocab_size (`int`, *optional*, defaults to 8192):
            Rows of embedding and head. Those beyond the trained ones are copies of a row whose token no text holds,
            which is what unused rows of a real vocabulary look like.
        cache (`Path`, *optional*):
            Where trained models are kept.

    Returns:
        [`LLaDAModelLM`]: In evaluation mode.
    """
    folder = cache / "-".join(["model", str(steps), *(f"{name}{value}" for name, value in sorted(shape.items()))])
    if not (folder / "config.json").is_file():
        train(folder, steps, **shape)
    model = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()
    if vocab_size > TRAINED_VOCAB:
        unused = model.get_input_embeddings().weight[-1].detach().clone()
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        model.get_input_embeddings().weight.data[TRAINED_VOCAB:] = unused
    return model


__all__ = ["CACHE", "TRAINED_VOCAB", "load", "train"]
