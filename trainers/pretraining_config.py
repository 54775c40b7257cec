"""Arguments of pre-training."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .diffusion_arguments import MaskedDiffusionArguments


@dataclass
class LLaDAPreTrainingConfig(MaskedDiffusionArguments, TrainingArguments):
    r"""
    Arguments of [`LLaDAPreTrainer`]: those of [`~transformers.TrainingArguments`] and [`MaskedDiffusionArguments`],
    and the following.

    Parameters:
        sequence_length (`int`, *optional*, defaults to 4096):
            Tokens per sequence. Documents are joined and cut into sequences of this length.
        random_length_probability (`float`, *optional*, defaults to 0.01):
            Probability that the batch of a step is cut to a length drawn from `1 ... sequence_length`, so that the
            model knows short inputs.
        separate_documents (`bool`, *optional*):
            Whether the documents of a sequence do not see each other. If not given: no, as in LLaDA, and yes in block
            diffusion, as in LLaDA2.
        dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column that holds the text.
        dataset_num_proc (`int`, *optional*):
            Number of processes that tokenise.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`], and follow
    > arXiv 2502.09992:
    > - `loss_normalization`: `"token"`.
    > - `learning_rate`: 4e-4.
    > - `lr_scheduler_type`: `"warmup_stable_decay"`. Without `lr_scheduler_kwargs` in the stages of the paper:
    >   constant for 1.2 of 2.3 trillion tokens, a quarter of it for 0.8, and linear to a fortieth for 0.3.
    > - `warmup_steps`: 2000. A run of less than four times as many steps says what is left of it.
    > - `weight_decay`: 0.1.
    >
    > The paper trains with a global batch of 1280 sequences.
    """

    learning_rate: float = field(default=4e-4, metadata={"help": "The peak learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default="warmup_stable_decay",
        metadata={"help": "Learning rate schedule. The default without `lr_scheduler_kwargs` is that of LLaDA."},
    )
    warmup_steps: float = field(default=2000, metadata={"help": "Steps, or share of all steps, of linear warm-up."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    loss_normalization: str = field(
        default="token",
        metadata={"help": "What the loss is a mean over.", "choices": ["sequence", "token", "batch"]},
    )
    sequence_length: int = field(default=4096, metadata={"help": "Tokens per sequence."})
    random_length_probability: float = field(
        default=0.01, metadata={"help": "Probability that the batch of a step is cut to a random length."}
    )
    separate_documents: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the documents of a sequence do not see each other. If not given: in block diffusion only."
        },
    )
    dataset_text_field: str = field(default="text", metadata={"help": "Column that holds the text."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Number of processes that tokenise."})

    def __post_init__(self):
        if self.sequence_length < 1:
            raise ValueError(f"`sequence_length={self.sequence_length}` holds no token; write at least 1.")
        if not 0 <= self.random_length_probability <= 1:
            raise ValueError(
                f"`random_length_probability={self.random_length_probability}` is no probability; write 0 to 1."
            )
        super().__post_init__()


__all__ = ["LLaDAPreTrainingConfig"]
