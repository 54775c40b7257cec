"""Named settings of fine-tuning: what LLaDA and LLaDA2 were tuned with, and what has the least noise."""

from typing import Any


# every setting that a recipe has, with the value of the paper (arXiv 2502.09992)
_PAPER: dict[str, Any] = {
    "learning_rate": 2.5e-5,
    "lr_scheduler_type": "warmup_stable_decay",
    "warmup_steps": 50,
    "mask_sampling": "bernoulli",
    "ratio_sampling": "iid",
    "min_mask_ratio": 0.0,
    "max_mask_ratio": 1.0,
    "complementary_masks": False,
    "loss_weighting": "elbo",
    "loss_normalization": "sequence",
    "eos_fill": "longest",
    "eos_fill_length": None,
}
# what the other recipes have instead
_CHANGES: dict[str, dict[str, Any]] = {
    "paper": {},
    # the length is that of generation: the default of `max_new_tokens`
    "stable": {
        "mask_sampling": "exact",
        "ratio_sampling": "stratified",
        "eos_fill": "fixed",
        "eos_fill_length": 128,
    },
    # inclusionAI/dFactory, configs/sft; the fill ends with a block
    "llada2": {
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "min_mask_ratio": 0.3,
        "max_mask_ratio": 0.8,
        "complementary_masks": True,
        "loss_weighting": "uniform",
        "loss_normalization": "masked",
        "eos_fill": "multiple",
        "eos_fill_length": 32,
    },
}
RECIPES: dict[str, dict[str, Any]] = {name: _PAPER | changes for name, changes in _CHANGES.items()}


def describe_recipes() -> str:
    """One line of text: what each recipe sets, where that is not the paper's."""
    parts = [
        f"`{name}`: {', '.join(f'{key} {value}' for key, value in (changes or _PAPER).items() if value is not None)}"
        for name, changes in _CHANGES.items()
    ]
    return "; ".join(parts)


__all__ = ["RECIPES", "describe_recipes"]
