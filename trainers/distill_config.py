"""Arguments of distillation."""

from dataclasses import dataclass, field, fields
from typing import Any

from .block_noise import BlockNoise
from .sft_config import LLaDASFTConfig


# what dParallel and d3LLM mask
_RECIPES: dict[str, dict[str, Any]] = {
    "random": {
        "block_lengths": [32],
        "min_mask_ratio": 0.5,
        "max_mask_ratio": 0.5,
        "complementary_masks": True,
    },
    "trajectory": {
        "block_lengths": [16, 24, 32],
        "min_mask_ratio": 0.0,
        "max_mask_ratio": 0.8,
        "complementary_masks": False,
    },
}
# they describe other noise than that of a block
_UNUSED = ("mask_sampling", "ratio_sampling", "mask_schedule", "mask_eps", "edit_ratio")


@dataclass
class LLaDADistillConfig(LLaDASFTConfig):
    r"""
    Arguments of [`LLaDADistillTrainer`]: those of [`LLaDASFTConfig`] and the following.

    Parameters:
        block_masks (`str`, *optional*, defaults to `"trajectory"`):
            What is masked in the block that is trained. `"trajectory"`: what the teacher had still masked when it had
            masked about a drawn share of the block (d3LLM, arXiv 2601.07568). `"random"`: each token with the drawn
            probability (certainty forcing, dParallel, arXiv 2509.26488).
        block_lengths (`list[int]`, *optional*):
            Length of the blocks, one value after the other for equal parts of the training. `[16, 24, 32]` for
            `"trajectory"`, `[32]` for `"random"` if not given.
        min_mask_ratio, max_mask_ratio (`float`, *optional*):
            The mask ratio is uniform between the two, and the lower one rises to the upper one in the course of the
            training. 0 and 0.8 for `"trajectory"`, 0.5 and 0.5 for `"random"` if not given.
        complementary_masks (`bool`, *optional*):
            Whether every row is shown twice, the second time with the other tokens of the block masked. `True` for
            `"random"` and `False` for `"trajectory"` if not given.

    > [!NOTE]
    > These parameters have default values different from [`LLaDASFTConfig`]:
    > - `learning_rate`: 2e-5.
    > - `loss_weighting`: `"uniform"`, and `loss_normalization`: `"masked"`. Nothing else is supported.
    > - `confidence_weight`: 2.0, and `confidence_temperature`: 0.5, as both papers have them.
    > - `eos_fill`: `"none"`, and `min_eos`: 0. The rows of [`collect_trajectories`] are as long as what the teacher
    >   generated, end-of-text tokens included.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "The peak learning rate of AdamW."})
    loss_weighting: str = field(default="uniform", metadata={"help": "`uniform`.", "choices": ["uniform"]})
    loss_normalization: str = field(default="masked", metadata={"help": "`masked`.", "choices": ["masked"]})
    confidence_weight: float = field(
        default=2.0, metadata={"help": "Weight of the entropy at masked tokens that are predicted correctly."}
    )
    confidence_temperature: float = field(
        default=0.5, metadata={"help": "Divides the logits of the entropy of `confidence_weight`."}
    )
    eos_fill: str = field(
        default="none",
        metadata={
            "help": "How far a complete response is filled with end-of-text tokens.",
            "choices": ["longest", "multiple", "fixed", "none"],
        },
    )
    min_eos: int = field(
        default=0, metadata={"help": "Number of end-of-text tokens that a complete response ends with, at least."}
    )
    block_masks: str = field(
        default="trajectory",
        metadata={"help": "What is masked in the block that is trained.", "choices": [*_RECIPES]},
    )
    block_lengths: list[int] | None = field(
        default=None, metadata={"help": "Lengths of the blocks, for equal parts of the training."}
    )
    min_mask_ratio: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Smallest mask ratio. It rises to the largest one."}
    )
    max_mask_ratio: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Largest mask ratio."}
    )
    complementary_masks: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Whether every row is shown twice, with the other tokens of the block masked."}
    )

    def __post_init__(self):
        if self.block_masks not in _RECIPES:
            raise ValueError(f"`block_masks={self.block_masks!r}` is unknown; write one of {tuple(_RECIPES)}.")
        for name, value in _RECIPES[self.block_masks].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not self.block_lengths:
            raise ValueError("`block_lengths=[]` holds no length; write one or more, such as `block_lengths=[32]`.")
        if (self.loss_weighting, self.loss_normalization) != ("uniform", "masked"):
            raise ValueError(
                f"`loss_weighting={self.loss_weighting!r}` with `loss_normalization={self.loss_normalization!r}` is "
                "not supported: the loss is a mean over the masked tokens of blocks, and bounds no likelihood. Leave "
                "both out."
            )
        defaults = {item.name: item.default for item in fields(self)}
        for name in _UNUSED:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` has no meaning for the noise of a block; leave it out, and "
                    "write `min_mask_ratio`, `max_mask_ratio` and `block_lengths`."
                )
        super().__post_init__()

    def make_noise(self, mask_token_id: int, vocab_size: int, progress: float = 0.0) -> BlockNoise:
        """
        The noise at a time of the training.

        Args:
            mask_token_id, vocab_size (`int`):
                Those of the model. The latter is not used, no token is replaced.
            progress (`float`, *optional*, defaults to 0):
                The share of the training that is done.
        """
        assert self.block_lengths and self.min_mask_ratio is not None and self.max_mask_ratio is not None
        assert self.complementary_masks is not None, "all set above"
        stage = min(int(progress * len(self.block_lengths)), len(self.block_lengths) - 1)
        processes = [
            BlockNoise(
                mask_token_id,
                block_length,
                self.min_mask_ratio + (self.max_mask_ratio - self.min_mask_ratio) * progress,
                self.max_mask_ratio,
                self.complementary_masks,
            )
            # all, so that each is checked at once
            for block_length in self.block_lengths
        ]
        return processes[stage]


__all__ = ["LLaDADistillConfig"]
