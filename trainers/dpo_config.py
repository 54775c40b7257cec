"""Arguments of preference optimisation."""

from dataclasses import dataclass, field

from trl import DPOConfig

from .diffusion_arguments import DiffusionArguments


@dataclass
class LLaDADPOConfig(DiffusionArguments, DPOConfig):
    r"""
    Arguments of [`LLaDADPOTrainer`]: those of [`~trl.DPOConfig`] and [`DiffusionArguments`], and the following.

    Parameters:
        num_draws (`int`, *optional*, defaults to 8):
            Number of masks per answer that a likelihood is estimated from, each with a number of masked tokens of its
            own. It is what the variance of the preference goes down with.
        two_pass (`bool`, *optional*, defaults to `True`):
            Whether to compute the loss first and then the gradient, one mask after the other: the same gradient with
            the memory of one mask, for a third more time. Otherwise the memory grows with `num_draws`.
        eos_fill (`str`, *optional*, defaults to `"pair"`):
            How far a complete answer is filled with end-of-text tokens, which are part of the answer.

            - `"pair"`: both answers of a pair to the length of the longer one.
            - `"longest"`: to the end of the longest row of the batch. What a row is filled with then depends on the
              rows beside it.
            - `"multiple"`: until the answer is a multiple of `eos_fill_length` tokens long.
            - `"fixed"`: until the answer is `eos_fill_length` tokens long, the `max_new_tokens` of generation.
            - `"none"`: only `min_eos` tokens.
        eos_fill_length (`int`, *optional*):
            Required by `"multiple"` and `"fixed"`.
        min_eos (`int`, *optional*, defaults to 1):
            Number of end-of-text tokens that every complete answer ends with, at least.

    > [!NOTE]
    > These parameters have default values different from [`~trl.DPOConfig`]:
    > - `max_length`: 4096, the context of LLaDA.
    > - `bf16`: `True` on accelerators that support it.
    >
    > LLaDA 1.5 was trained for one epoch with 8 draws, and with a term of fine-tuning on the chosen answer:
    > `loss_type=["sigmoid", "sft"]` and `loss_weights=[1.0, 0.05]`.
    """

    max_length: int | None = field(
        default=4096, metadata={"help": "Longest row in tokens, end-of-text tokens included. Longer ones are cut."}
    )
    num_draws: int = field(
        default=8, metadata={"help": "Number of masks per answer that a likelihood is estimated from."}
    )
    two_pass: bool = field(
        default=True,
        metadata={"help": "Whether to take the memory of one mask, however many there are, for a third more time."},
    )
    eos_fill: str = field(
        default="pair",
        metadata={
            "help": "How far a complete answer is filled with end-of-text tokens.",
            "choices": ["pair", "longest", "multiple", "fixed", "none"],
        },
    )
    eos_fill_length: int | None = field(
        default=None, metadata={"help": "Length in tokens for `eos_fill` 'multiple' and 'fixed'."}
    )
    min_eos: int = field(
        default=1, metadata={"help": "Number of end-of-text tokens that a complete answer ends with, at least."}
    )

    def __post_init__(self):
        refused = {
            "precompute_ref_log_probs": "the reference is looked at under the masks of the step",
            "use_weighting": "it weights by probabilities that a masked diffusion model does not give",
            "padding_free": "attention reaches over the answers of a flattened batch",
        }
        for name, reason in refused.items():
            if getattr(self, name):
                raise ValueError(f"`{name}=True` is not supported: {reason}. Write `{name}=False`.")
        if self.ld_alpha is not None:
            raise ValueError(
                f"`ld_alpha={self.ld_alpha}` is not supported: it weights tokens by how late they stand, and they are "
                "not predicted in that order. Write `ld_alpha=None`."
            )
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"`truncation_mode={self.truncation_mode!r}` is not supported: it would cut off the prompt and leave "
                "an answer to nothing. Write `truncation_mode='keep_start'`."
            )
        if not self.disable_dropout:
            raise ValueError(
                "`disable_dropout=False` is not supported: policy and reference are compared under the same noise. "
                "Write `disable_dropout=True`."
            )
        if self.num_draws < 1:
            raise ValueError(f"`num_draws={self.num_draws}` gives no estimate; write at least 1.")
        if self.sample_steps is not None and not self.sample_prompts:
            raise ValueError("`sample_steps` samples after prompts, and preferences are none; write `sample_prompts`.")
        super().__post_init__()
        sorting = sorted({"aot", "aot_unpaired"} & set(self.loss_type))
        if sorting:
            raise ValueError(
                f"`loss_type={sorting[0]!r}` is not supported: it sorts the pairs of a micro-batch, so that its size "
                "changes the loss. Write a loss of single pairs, such as 'sigmoid'."
            )
        if set(self.loss_type) == {"sft"}:
            raise ValueError(
                "`loss_type=['sft']` alone has no use for preferences. Write `loss_type=['sigmoid', 'sft']` with "
                "`loss_weights=[1.0, 0.05]`, or fine-tune with `LLaDASFTTrainer`."
            )


__all__ = ["LLaDADPOConfig"]
