"""Arguments of supervised fine-tuning."""

from dataclasses import dataclass, field, fields
from typing import Any

from trl import SFTConfig

from .diffusion_arguments import MaskedDiffusionArguments
from .sft_recipes import RECIPES, describe_recipes


# the value is that of the recipe, unless one is given
OF_RECIPE: Any = None


def _of_recipe(name: str) -> Any:
    """A setting of [`MaskedDiffusionArguments`] that recipes have."""
    return field(
        default=OF_RECIPE,
        metadata=next(item.metadata for item in fields(MaskedDiffusionArguments) if item.name == name),
    )


@dataclass
class LLaDASFTConfig(MaskedDiffusionArguments, SFTConfig):
    r"""
    Arguments of [`LLaDASFTTrainer`]: those of [`~trl.SFTConfig`] and [`MaskedDiffusionArguments`], and the following.

    Parameters:
        recipe (`str`, *optional*, defaults to `"paper"`):
            What the following settings are, where they are not given:

            | setting | `"paper"` | `"stable"` | `"llada2"` |
            |---|---|---|---|
            | `learning_rate` | 2.5e-05 | 2.5e-05 | 1e-05 |
            | `lr_scheduler_type` | warmup_stable_decay | warmup_stable_decay | cosine |
            | `warmup_steps` | 50 | 50 | 0.03 |
            | `mask_sampling` | bernoulli | exact | bernoulli |
            | `ratio_sampling` | iid | stratified | iid |
            | `min_mask_ratio` | 0.0 | 0.0 | 0.3 |
            | `max_mask_ratio` | 1.0 | 1.0 | 0.8 |
            | `complementary_masks` | False | False | True |
            | `loss_weighting` | elbo | elbo | uniform |
            | `loss_normalization` | sequence | sequence | masked |
            | `eos_fill` | longest | fixed | multiple |
            | `eos_fill_length` | None | 128 | 32 |

            `"paper"` is LLaDA's (arXiv 2502.09992). `"stable"` estimates the same bound with less noise where answers
            are short, and what a row is filled with does not depend on the rows beside it. `"llada2"` is LLaDA2's, as
            dFactory has it.
        eos_fill (`str`, *optional*):
            How far a complete response is filled with end-of-text tokens. They are part of the response: masked, seen
            and trained, which is how the model learns where to stop. A response that `max_length` cut off is not
            filled.

            - `"longest"`: to the end of the longest row of the batch, as in LLaDA. What a row is filled with then
              depends on the rows beside it.
            - `"multiple"`: until the response is a multiple of `eos_fill_length` tokens long.
            - `"fixed"`: until the response is `eos_fill_length` tokens long, the `max_new_tokens` of generation.
            - `"none"`: only `min_eos` tokens.
        eos_fill_length (`int`, *optional*):
            Required by `"multiple"` and `"fixed"`.
        min_eos (`int`, *optional*, defaults to 1):
            Number of end-of-text tokens that every complete response ends with, at least.
        multi_turn (`str`, *optional*, defaults to `"sample"`):
            Which answers of a conversation are trained on. `"last"`: the last one. `"sample"`: one that is drawn anew
            in every epoch; what follows it is cut off. This is how the authors of LLaDA train. `"all"`: all at once,
            so that an answer is predicted while later questions are visible, which generation never does.
        packing (`bool`, *optional*, defaults to `False`):
            Whether rows of a batch are shown to the model as fewer rows, as long as the longest, that hold several.
            They do not see each other, and positions count from 0 in each, so that the loss is what it is without. A
            batch has as many rows of the dataset as before. Not together with `eos_fill="longest"`, after which
            nothing is left to pack.
        eval_packing (`bool`, *optional*):
            The same for evaluations. If not given: as `packing`.
        assistant_only_loss (`bool`, *optional*):
            Whether only answers are trained on. If not given: yes for `messages`, where anything else would mask the
            questions too; in `prompt` and `completion` data the completion is trained on anyway.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`], and follow arXiv 2502.09992:
    > - `learning_rate`: that of the recipe.
    > - `lr_scheduler_type`: that of the recipe. `"warmup_stable_decay"` without `lr_scheduler_kwargs` is constant, and
    >   linear to a tenth over the last tenth of training.
    > - `warmup_steps`: that of the recipe. A run of less than four times as many steps says what is left of it.
    > - `weight_decay`: 0.1.
    > - `max_length`: 4096.
    > - `bf16`: `True` on accelerators that support it.
    >
    > The paper trains for 3 epochs with a global batch of 256.

    Example:

    ```python
    >>> from llada import LLaDASFTConfig

    >>> # less noise than in the paper where answers are short, and a fill of our own
    >>> args = LLaDASFTConfig("run", recipe="stable", eos_fill_length=32)
    >>> args.mask_sampling, args.eos_fill_length
    ('exact', 32)
    ```
    """

    recipe: str = field(
        default="paper",
        metadata={
            "help": f"What settings are that are not given. {describe_recipes()}.",
            "choices": list(RECIPES),
        },
    )
    learning_rate: float = field(default=OF_RECIPE, metadata={"help": "The peak learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default=OF_RECIPE,
        metadata={"help": "Learning rate schedule. That of LLaDA is `warmup_stable_decay` without kwargs."},
    )
    warmup_steps: float = field(
        default=OF_RECIPE, metadata={"help": "Steps, or share of all steps, of linear warm-up."}
    )
    mask_sampling: str = _of_recipe("mask_sampling")
    ratio_sampling: str = _of_recipe("ratio_sampling")
    min_mask_ratio: float = _of_recipe("min_mask_ratio")
    max_mask_ratio: float = _of_recipe("max_mask_ratio")
    complementary_masks: bool = _of_recipe("complementary_masks")
    loss_weighting: str = _of_recipe("loss_weighting")
    loss_normalization: str = _of_recipe("loss_normalization")
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    max_length: int | None = field(
        default=4096, metadata={"help": "Longest row in tokens, end-of-text tokens included. Longer ones are cut."}
    )
    eos_fill: str = field(
        default=OF_RECIPE,
        metadata={
            "help": "How far a complete response is filled with end-of-text tokens.",
            "choices": ["longest", "multiple", "fixed", "none"],
        },
    )
    eos_fill_length: int | None = field(
        default=None, metadata={"help": "Length in tokens for `eos_fill` 'multiple' and 'fixed'."}
    )
    min_eos: int = field(
        default=1, metadata={"help": "Number of end-of-text tokens that a complete response ends with, at least."}
    )
    multi_turn: str = field(
        default="sample",
        metadata={
            "help": "Which answers of a conversation are trained on.",
            "choices": ["last", "sample", "all"],
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "Whether rows of a batch are packed into fewer, in which they do not see each other."},
    )
    assistant_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Whether only answers are trained on. If not given: yes for `messages`."},
    )

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise ValueError(f"`recipe={self.recipe!r}` is unknown; write one of {tuple(RECIPES)}.")
        recipe = RECIPES[self.recipe]
        if self.eos_fill is not None and self.eos_fill != recipe["eos_fill"]:
            # its length is that of another fill
            recipe = recipe | {"eos_fill_length": None}
        for name, value in recipe.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.padding_free:
            raise ValueError(
                "`padding_free=True` is not supported: attention reaches over the documents of a flattened batch. "
                "Write `padding_free=False`, and `packing=True` for less padding."
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(
                f"`packing_strategy={self.packing_strategy!r}` cuts rows, and an answer without its prompt is not "
                "learned from. Write `packing_strategy='bfd'`; `max_length` is what rows are cut to."
            )
        if self.packing and self.eos_fill == "longest":
            raise ValueError(
                "`packing=True` has nothing to pack where every row is filled to the longest. Write "
                "`eos_fill='multiple'` with an `eos_fill_length`, such as 32, or `eos_fill='none'`."
            )
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"`truncation_mode={self.truncation_mode!r}` is not supported: it would cut off the prompt and leave "
                "an answer to nothing. Write `truncation_mode='keep_start'`."
            )
        if self.loss_type not in ("nll", "chunked_nll"):
            raise ValueError(
                f"`loss_type={self.loss_type!r}` is not supported: the loss is the likelihood bound. Write "
                "`loss_type='nll'`, and `loss_weighting='uniform'` for an unweighted cross entropy."
            )
        super().__post_init__()


__all__ = ["LLaDASFTConfig"]
