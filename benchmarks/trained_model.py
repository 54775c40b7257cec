"""The models that are measured: trained on synthetic text until they are sure, in minutes, and kept in a folder."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset

from llada import (
    LLaDA2MoeConfig,
    LLaDA2MoeModelLM,
    LLaDAConfig,
    LLaDAModelLM,
    LLaDASFTConfig,
    LLaDASFTTrainer,
)

from .synthetic_text import EOS, MASK, PERIOD, draw_texts, word_tokenizer


CACHE = Path(__file__).parent / ".cache"
TRAINED_VOCAB = 8192
# the last words, which no text holds
CONTROL_TOKENS = {"delete_token_id": TRAINED_VOCAB - 2, "split_token_id": TRAINED_VOCAB - 1}


def make_model(
    family: Literal["LLaDA", "LLaDA2"] = "LLaDA", hidden_size: int | None = None, num_layers: int = 4
) -> LLaDAModelLM | LLaDA2MoeModelLM:
    """
    A model to train.

    Args:
        family (`str`, *optional*, defaults to `"LLaDA"`):
            `"LLaDA"` has full attention, `"LLaDA2"` block-causal attention and, after the first layer, experts.
        hidden_size (`int`, *optional*):
            Width, 384 for LLaDA and 256 for LLaDA2 if not given.
        num_layers (`int`, *optional*, defaults to 4):
            Number of layers. By default the backbones have 7 million weights.
    """
    torch.manual_seed(0)
    hidden_size = hidden_size or {"LLaDA": 384, "LLaDA2": 256}[family]
    settings = {
        "vocab_size": TRAINED_VOCAB,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 8 // 3,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": 0.04,
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    }
    if family == "LLaDA":
        model = LLaDAModelLM(LLaDAConfig(**settings))
        # however little it is trained: the authors' sampler writes the mask token where it is the likeliest
        model.get_output_embeddings().weight.data[settings["mask_token_id"]].zero_()
        return model
    settings |= {
        "num_key_value_heads": hidden_size // 64,
        "block_size": PERIOD,
        "first_k_dense_replace": min(1, num_layers - 1),
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": hidden_size * 3 // 4,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "partial_rotary_factor": 1.0,
        "rope_theta": 10_000,
    }
    return LLaDA2MoeModelLM(LLaDA2MoeConfig(**settings))


def train(model: LLaDAModelLM | LLaDA2MoeModelLM, folder: Path, steps: int) -> None:
    """
    Trains a model and saves it: on short texts, then, a quarter as long, on texts of the length of the workloads.

    Args:
        model ([`LLaDAModelLM`] or [`LLaDA2MoeModelLM`]):
            The model.
        folder (`Path`):
            Where to.
        steps (`int`):
            Number of optimisation steps on short texts.
    """
    working = folder.with_suffix(".training")
    for num_steps, batch, periods, learning_rate in ((steps, 8, 4, 1e-3), (max(steps // 4, 1), 2, 20, 3e-4)):
        length = periods * PERIOD
        texts = draw_texts(batch * num_steps, length, stops=0.5, before=length // 4)
        labels = texts.clone()
        labels[:, :PERIOD] = -100
        trainer = LLaDASFTTrainer(
            model=model,
            args=LLaDASFTConfig(
                str(working),
                max_steps=num_steps,
                per_device_train_batch_size=batch,
                learning_rate=learning_rate,
                warmup_steps=min(30, num_steps // 10),
                eos_fill="none",
                min_eos=0,
                mask_sampling="exact",
                loss_weighting="uniform",
                # LLaDA2.1 edits
                edit_ratio=0.1 if model.config.block_causal else None,
                ratio_sampling="stratified",
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                logging_steps=max(num_steps // 40, 1),
                report_to="none",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()}),
            processing_class=word_tokenizer(TRAINED_VOCAB),
        )
        trainer.train()
    trainer.save_model(str(folder))
    shutil.rmtree(working, ignore_errors=True)


def load(
    steps: int,
    vocab_size: int = TRAINED_VOCAB,
    cache: Path = CACHE,
    family: Literal["LLaDA", "LLaDA2"] = "LLaDA",
    **shape: int,
) -> LLaDAModelLM | LLaDA2MoeModelLM:
    """
    Loads a model, and trains it before if that has not happened.

    Args:
        steps (`int`):
            As in [`train`].
        vocab_size (`int`, *optional*, defaults to 8192):
            Rows of embedding and head. Those beyond the trained ones are copies of a row whose token no text holds,
            which is what unused rows of a real vocabulary look like.
        cache (`Path`, *optional*):
            Where trained models are kept.
        family, shape:
            As in [`make_model`].

    Returns:
        [`LLaDAModelLM`] or [`LLaDA2MoeModelLM`]: In evaluation mode.
    """
    settings = [str(steps), *(f"{name}{value}" for name, value in sorted(shape.items()))]
    folder = cache / "-".join([family.lower(), *settings])
    if not (folder / "config.json").is_file():
        train(make_model(family, **shape), folder, steps)
    model = {"LLaDA": LLaDAModelLM, "LLaDA2": LLaDA2MoeModelLM}[family].from_pretrained(folder, dtype=torch.float32)
    model.eval()
    if vocab_size > TRAINED_VOCAB:
        unused = model.get_input_embeddings().weight[-1].detach().clone()
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        model.get_input_embeddings().weight.data[TRAINED_VOCAB:] = unused
    return model


__all__ = ["CACHE", "CONTROL_TOKENS", "TRAINED_VOCAB", "load", "make_model", "train"]
