"""Arguments of the training that makes a diffusion model of a causal one."""

from dataclasses import dataclass, field

from .block_schedule import BlockSchedule
from .pretraining_config import LLaDAPreTrainingConfig


@dataclass
class LLaDAConversionConfig(LLaDAPreTrainingConfig):
    r"""
    Arguments of [`LLaDAConversionTrainer`]: those of [`LLaDAPreTrainingConfig`] and the following.

    Parameters:
        attention_annealing_steps (`int`, *optional*, defaults to 0):
            In how many steps attention opens: in step `s` a position sees each position after it with probability
            `(s + 1) / attention_annealing_steps`, up to 1 (DiffuLLaMA, arXiv 2410.17891). 0 opens all at once.
        block_warmup_steps (`float`, *optional*, defaults to 0.0):
            For how many steps, or which share of all steps if less than 1, blocks grow from single tokens, which is
            what a causal model knows, to the whole row or to `block_length` (LLaDA2.0, arXiv 2512.15745). Blocks are
            trained by block diffusion.
        block_warmup_lengths (`list[int]`, *optional*, defaults to `[1, 4, 32, 64]`):
            The lengths that they have on the way.
        block_decay_steps (`float`, *optional*, defaults to 0.0):
            For how many of the last steps, or which share, blocks shrink by halves from the whole row to
            `block_length`, which the model then writes in.
        causal_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss of a causal model on the same rows, which is added: what the model knew is not forgotten
            (0.3 is common). Costs a second forward and backward pass.

    > [!NOTE]
    > These parameters have default values different from [`LLaDAPreTrainingConfig`]: a conversion is short.
    > - `mask_sampling`: `"exact"`, and `ratio_sampling`: `"stratified"`, which have less variance.
    > - `learning_rate`: 1e-4.
    > - `lr_scheduler_type`: `"constant_with_warmup"`, and `warmup_steps`: 10.
    > - `sequence_length`: 128.
    > - `separate_documents`: yes, where blocks grow or shrink.
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
    block_warmup_steps: float = field(
        default=0.0, metadata={"help": "Steps, or share of all steps, in which blocks grow from single tokens."}
    )
    block_warmup_lengths: list[int] = field(
        default_factory=lambda: [1, 4, 32, 64], metadata={"help": "The lengths of blocks that grow."}
    )
    block_decay_steps: float = field(
        default=0.0,
        metadata={"help": "Steps, or share of all, at the end in which blocks shrink from the row to `block_length`."},
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
        if self.block_schedule() is not None:
            if self.attention_annealing_steps:
                raise ValueError(
                    f"`attention_annealing_steps={self.attention_annealing_steps}` and blocks that grow or shrink "
                    "both say what is seen; leave one of them out."
                )
            if self.separate_documents is None:
                self.separate_documents = True
        super().__post_init__()

    def block_schedule(self) -> BlockSchedule | None:
        """How blocks grow and shrink, `None` if they do not."""
        if self.block_warmup_steps == 0 == self.block_decay_steps:
            return None
        return BlockSchedule(
            self.sequence_length,
            self.block_length or 0,
            self.block_warmup_lengths,
            self.block_warmup_steps,
            self.block_decay_steps,
        )


__all__ = ["LLaDAConversionConfig"]
