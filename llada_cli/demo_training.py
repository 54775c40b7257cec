"""The two models of the demo: a LLaDA trained by this package, and a Llama of its size trained by TRL."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from llada import LLaDAConfig, LLaDAModelLM, LLaDASFTConfig, LLaDASFTTrainer
from llada.evaluation.causal_twin import build_causal_twin
from llada.evaluation.reversal_facts import Fact, ReversalFacts, build_reversal_tokenizer
from llada.evaluation.reversal_scores import longest_answer
from llada.export.model_card import create_model_card
from llada.trainers.checkpoint_files import newest_complete

from .progress import LossBar


# 132 thousand parameters, and the shortest training that teaches them the facts
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 168,
    "rope_theta": 10000.0,
}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.1,
    "adam_beta2": 0.98,
    "weight_decay": 0.0,
    "activation_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 20,
}


def train_llada(
    facts: ReversalFacts,
    output_dir: str,
    steps: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    made_by: str | None = None,
    checkpoints: Path | None = None,
) -> None:
    """
    Trains a masked diffusion model and saves it with tokenizer, generation config, model card and the facts.

    Args:
        facts ([`~llada.evaluation.ReversalFacts`]): What it is trained on.
        output_dir (`str`): The folder.
        steps (`int`): Number of training steps.
        seed (`int`): Seed of weights, batches and masks.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): That of invented facts if not given.
        made_by (`str`, *optional*): The command that the card names, the demo if not given.
        checkpoints (`Path`, *optional*): Where to save checkpoints, and to go on from one. Removed at the end.
    """
    tokenizer = build_reversal_tokenizer() if tokenizer is None else tokenizer
    answer_length = longest_answer(tokenizer, facts)
    set_seed(seed)
    model = LLaDAModelLM(build_config(tokenizer))
    config = LLaDASFTConfig(
        output_dir=output_dir if checkpoints is None else str(checkpoints),
        max_steps=steps,
        seed=seed,
        mask_sampling="exact",
        ratio_sampling="stratified",
        loss_normalization="batch",
        eos_fill="fixed",
        eos_fill_length=answer_length,
        **_training(steps, checkpoints),
    )
    _train(LLaDASFTTrainer, model, config, facts, tokenizer, "LLaDA ")

    # what `generate` and `pipeline` use where they are told nothing
    model.generation_config.update(
        max_new_tokens=answer_length, block_length=answer_length, max_denoising_steps=answer_length
    )
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    facts.save(Path(output_dir) / "facts.json")
    example = facts.held_out[0]
    num_facts = len(facts.names)
    kind = "invented facts" if made_by is None else "facts" if isinstance(example, Fact) else "couplets"
    card = create_model_card(
        model,
        Path(output_dir).name,
        dataset_name=f"{num_facts} {kind}",
        training={
            "made by": made_by or f"`llada demo --num-facts {num_facts} --steps {steps} --seed {seed}`",
            "trainer": LLaDASFTTrainer.__name__,
            "steps": steps,
            "batch": config.per_device_train_batch_size,
            "peak learning rate": config.learning_rate,
        },
        prompt=f"{example.reverse[0]}\n",
        gaps=example.renamed(f"___{len(tokenizer(example.name, add_special_tokens=False)['input_ids'])}").sentence,
    )
    card.save(Path(output_dir) / "README.md")
    if checkpoints is not None:
        shutil.rmtree(checkpoints)


def train_causal_twin(
    facts: ReversalFacts,
    steps: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    checkpoints: Path | None = None,
) -> LlamaForCausalLM:
    """
    Trains a causal model of the same size on the same rows.

    Args:
        facts ([`~llada.evaluation.ReversalFacts`]): What it is trained on.
        steps (`int`): Number of training steps.
        seed (`int`): Seed of weights and batches.
        tokenizer, checkpoints (*optional*): As in [`train_llada`]. The caller saves the model, and removes them.

    Returns:
        [`~transformers.LlamaForCausalLM`]: The model.
    """
    from trl import SFTConfig, SFTTrainer

    tokenizer = build_reversal_tokenizer() if tokenizer is None else tokenizer
    set_seed(seed)
    twin = build_causal_twin(build_config(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        output_dir = folder if checkpoints is None else str(checkpoints)
        config = SFTConfig(output_dir=output_dir, max_steps=steps, seed=seed, **_training(steps, checkpoints))
        _train(SFTTrainer, twin, config, facts, tokenizer, "causal")
    return twin


def _training(steps: int, checkpoints: Path | None) -> dict[str, Any]:
    """Arguments of both trainers."""
    if checkpoints is None:
        return TRAINING
    return TRAINING | {"save_strategy": "steps", "save_steps": max(1, steps // 10), "save_total_limit": 1}


def build_config(tokenizer: PreTrainedTokenizerBase) -> LLaDAConfig:
    """The configuration of the demo's models for the tokens of a tokenizer."""
    return LLaDAConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        **SIZES,
    )


def _train(
    trainer_class: type[Trainer],
    model: PreTrainedModel,
    config: Any,
    facts: ReversalFacts,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    dataset = Dataset.from_list(facts.training_rows())
    trainer = trainer_class(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    for callback in LossBar.replaces:
        trainer.remove_callback(callback)
    trainer.add_callback(LossBar(label))
    found = None if config.save_strategy == "no" else newest_complete(config.output_dir)[0]
    trainer.train(resume_from_checkpoint=None if found is None else str(found))
    model.eval()


__all__ = ["SIZES", "TRAINING", "build_config", "train_causal_twin", "train_llada"]
