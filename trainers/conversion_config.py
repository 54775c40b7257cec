"""Arguments of the training that makes a diffusion model of a causal one."""

from dataclasses import dataclass, field

from .pretraining_config import LLaDAPreTrainingConfig


@dataclass
class LLaDAConversionConfig(LLaDAPreTrainingConfig):
    r"""
    Arguments of [`LLaDAConversionTrainer`]: those of [`LLaDAPreTrainingConfig`] and the following.

    Parameters:
        attention_annealing_steps (`int`, *optional*, defaults to 0):
            In how many steps attention opens: in step `s` a position sees each position after it with probability
            `(s + 1) / attention_annealing_steps`, up to 1 (DiffuLLaMA, arXiv 2410.17891). 0 opens all at once.
        causal_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss of a causal model on the same rows, which is added: what the model knew is not forgotten
            (0.3 is common). Costs a second forward and backward pass.

    > [!NOTE]
    > These parameters have default values different from [`LLaDAPreTrainingConfig`]: a conversion is short.
    > - `mask_sampling`: `"exact"`, and `ratio_sampling`: `"stratified"`, which have less variance.
    > - `learning_rate`: 1e-4.
    > - `lr_scheduler_type`: `"constant_with_warmup"`, and `warmup_steps`: 10.
    > - `sequence_length`: 128.
    """

    mask_sampling: str = field(
        default="exact",
        metadata={
            "help": "`bernoulli` masks every token independently, `exact` masks a drawn number of tokens.",
            "choices": ["bernoulli", "exact"],
        },
    )
    ratio_sampling: str = field(
        default="stratified",
        metadata={
            "help": "How the mask ratios of a batch are drawn.",
            "choices": ["iid", "stratified", "low_discrepancy"],
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The peak learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Learning rate schedule. A short run has no use for stages."}
    )
    warmup_steps: float = field(default=10, metadata={"help": "Steps, or share of all steps, of linear warm-up."})
    sequence_length: int = field(default=128, metadata={"help": "Tokens per sequence."})
    attention_annealing_steps: int = field(
        default=0, metadata={"help": "In how many steps attention to later positions opens; 0 opens it at once."}
    )
    causal_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss of a causal model, which is added; 0.3 is common."}
    )

    def __post_init__(self):
        if self.attention_annealing_steps < 0:
            raise ValueError(
                f"`attention_annealing_steps={self.attention_annealing_steps}` is no number of steps; write 0 or more."
            )
        if not 0 <= self.causal_loss_weight < float("inf"):
            raise ValueError(f"`causal_loss_weight={self.causal_loss_weight}` is no weight; write 0 or more.")
        super().__post_init__()


__all__ = ["LLaDAConversionConfig"]
