"""The training arguments that every masked diffusion trainer has."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from ..modeling_llada.masked_diffusion import NORMALIZATIONS, ForwardProcess, MaskedBatch


if TYPE_CHECKING:
    from transformers import TrainingArguments as Base
else:
    Base = object


@dataclass
class DiffusionArguments(Base):
    r"""
    What the arguments of every trainer of masked diffusion models share, whatever it trains them for. To be inherited
    together with [`~transformers.TrainingArguments`] or a subclass of it.

    Parameters:
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            Whether logged losses leave out those that are not finite, which takes a wait for the device in every
            micro-step. A loss that is not finite ends the run either way.
        sample_steps (`int`, *optional*):
            Number of training steps after which the model samples, in the terminal and for what reports the run, see
            [`SampleCallback`]. 0: after every evaluation. It does not sample if not given.
        sample_prompts (`list[str]`, *optional*):
            The prompts. If not given, those of the first rows of the evaluation set.
        sample_kwargs (`dict` or `str`, *optional*):
            Arguments of `generate`, as a `dict` or in JSON, e.g. `{"max_new_tokens": 64}`.
    """

    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether logged losses leave out those that are not finite."}
    )
    sample_steps: int | None = field(
        default=None, metadata={"help": "Steps after which the model samples. 0: after every evaluation."}
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "What it samples after, the first prompts of the evaluation set if not given."}
    )
    sample_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How it samples: arguments of `generate` in JSON."}
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.activation_checkpointing is None:
            # transformers 5.23 warns when only the older name is set, which TRL does
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        self._check_samples()
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel=True` is not supported: its kernels replace a causal loss. Write "
                "`use_liger_kernel=False`; logits are computed for masked tokens only without it."
            )
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"`label_smoothing_factor={self.label_smoothing_factor}` is not supported: a smoothed loss is no "
                "likelihood bound. Write `label_smoothing_factor=0`."
            )

    def _check_samples(self) -> None:
        if isinstance(self.sample_kwargs, str):
            try:
                self.sample_kwargs = json.loads(self.sample_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`sample_kwargs={self.sample_kwargs!r}` is no JSON ({error}); write e.g. "
                    "`'{\"max_new_tokens\": 64}'`."
                ) from error
        if self.sample_kwargs is not None and not isinstance(self.sample_kwargs, dict):
            raise ValueError(
                f"`sample_kwargs={self.sample_kwargs!r}` names no arguments of `generate`; write e.g. "
                "`{'max_new_tokens': 64}`."
            )
        if self.sample_steps is None and (self.sample_prompts or self.sample_kwargs):
            raise ValueError(
                "`sample_prompts` and `sample_kwargs` do nothing without samples; write `sample_steps=100`, or 0 for "
                "samples after every evaluation."
            )
        if self.sample_steps is not None and self.sample_steps < 0:
            raise ValueError(f"`sample_steps={self.sample_steps}` is no number of steps; write 0 or more.")

    def __getstate__(self) -> dict[str, Any]:
        # every checkpoint holds the pickled arguments, and is uploaded as it is
        return self.__dict__ | {"hub_token": None}


@dataclass
class MaskedDiffusionArguments(DiffusionArguments):
    r"""
    The settings of the forward process, the loss and the evaluation. To be inherited together with
    [`~transformers.TrainingArguments`] or a subclass of it. The defaults are those of LLaDA (arXiv 2502.09992).

    Parameters:
        mask_sampling (`str`, *optional*, defaults to `"bernoulli"`):
            `"bernoulli"` masks every token independently, `"exact"` masks a drawn number of tokens, at least one. The
            second has less variance for responses of up to some dozens of tokens.
        ratio_sampling (`str`, *optional*, defaults to `"iid"`):
            How the mask ratios of a batch are drawn: `"iid"`, `"stratified"` or `"low_discrepancy"`. The last two
            spread them evenly over the accumulated batch of all processes.
        mask_schedule (`str`, *optional*, defaults to `"linear"`):
            Distribution of the mask ratio: `"linear"` (uniform) or `"cosine"`.
        min_mask_ratio, max_mask_ratio (`float`, *optional*, default to 0 and 1):
            Band that the mask ratio is limited to, e.g. 0.3 to 0.8. Within it, ratios are distributed as
            `mask_schedule` has them. A narrower band trains a part of the bound: the loss is no bound of the
            likelihood then, and that of evaluations still is.
        mask_eps (`float`, *optional*, defaults to 1e-3):
            Smallest mask probability.
        complementary_masks (`bool`, *optional*, defaults to `False`):
            Whether every sequence is shown twice, the second time with the other tokens masked. Doubles the cost of a
            step.
        loss_weighting (`str`, *optional*, defaults to `"elbo"`):
            `"elbo"` weights the cross entropy so that the loss is the bound on the negative log-likelihood,
            `"uniform"` does not weight it.
        loss_normalization (`str`, *optional*):
            `"sequence"` is the mean over sequences of the loss per token that may be masked, `"token"` the mean over
            all tokens that may be masked, `"masked"` the mean over those that are, which needs
            `loss_weighting="uniform"`, `"batch"` the mean over sequences of the sum. Each over the whole accumulated
            batch of all processes.
        edit_ratio (`float`, *optional*):
            If given, the visible tokens of the response are trained, too, with a weight of 1, which teaches the model
            to edit (LLaDA2.1): this share of them is replaced by random tokens, and it learns which to keep and what
            to write instead of the others. 0 replaces none, for rows whose `labels` differ from their `input_ids`. The
            loss is no bound of the likelihood then.
        confidence_weight (`float`, *optional*, defaults to 0):
            Weight of the confidence loss (LLaDA2.0's CAP, dFactory's `confidence_beta`, for which it recommends 2.0):
            the entropy of the prediction at masked tokens that are predicted correctly, which makes a model certain of
            more tokens at once. It is divided by what the cross entropy is divided by. dFactory divides it by the
            correct predictions of a micro-batch, which is larger by one over the accuracy.
        confidence_temperature (`float`, *optional*, defaults to 1):
            Divides the logits of that entropy; 0.5 in dParallel.
        block_length (`int`, *optional*):
            Length of the blocks of block diffusion (arXiv 2503.09573): each is predicted from its noisy self and from
            clean blocks before it. That is the published objective of LLaDA2, and how models with block-causal
            attention write. They see the text twice, noisy and clean, and a step takes about twice the time. If not
            given: the length that the model generates with, where its attention is block-causal, and no blocks
            elsewhere. Any other length also makes the model write so: `config.block_causal` and
            `generation_config.block_length` are set and saved. 0: no blocks, everything is seen, as in the first
            phases of training LLaDA2.
        mask_ratio_per_block (`bool`, *optional*, defaults to `False`):
            Whether every block has a mask ratio of its own, as BD3LM (arXiv 2503.09573) trains, and not every row. The
            loss has the same mean, and less noise where a row has many blocks. Blocks are those of block diffusion.
        freeze_routers (`bool`, *optional*, defaults to `False`):
            Whether the routers of a model with experts keep their weights, as in fine-tuning LLaDA2: a few rows do
            not change which experts a token sees.
        num_eval_draws (`int`, *optional*, defaults to 8):
            Number of masks per sequence, and of forward passes, that an evaluation averages over.
        eval_seed (`int`, *optional*, defaults to 0):
            Seed of the masks of an evaluation. They depend on it and on the sequence, and on nothing else.
    """

    mask_sampling: str = field(
        default="bernoulli",
        metadata={
            "help": "`bernoulli` masks every token independently, `exact` masks a drawn number of tokens.",
            "choices": ["bernoulli", "exact"],
        },
    )
    ratio_sampling: str = field(
        default="iid",
        metadata={
            "help": "How the mask ratios of a batch are drawn.",
            "choices": ["iid", "stratified", "low_discrepancy"],
        },
    )
    mask_schedule: str = field(
        default="linear",
        metadata={"help": "Distribution of the mask ratio.", "choices": ["linear", "cosine"]},
    )
    min_mask_ratio: float = field(default=0.0, metadata={"help": "Smallest mask ratio."})
    max_mask_ratio: float = field(default=1.0, metadata={"help": "Largest mask ratio."})
    mask_eps: float = field(default=1e-3, metadata={"help": "Smallest mask probability."})
    complementary_masks: bool = field(
        default=False,
        metadata={"help": "Whether every sequence is shown twice, the second time with the other tokens masked."},
    )
    loss_weighting: str = field(
        default="elbo",
        metadata={
            "help": "Whether the cross entropy is weighted so that the loss is the likelihood bound, or not weighted.",
            "choices": ["elbo", "uniform"],
        },
    )
    loss_normalization: str = field(
        default="sequence",
        metadata={"help": "What the loss is a mean over.", "choices": list(NORMALIZATIONS)},
    )
    edit_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the visible response tokens that are replaced; if given, all of them are trained."
        },
    )
    confidence_weight: float = field(
        default=0.0, metadata={"help": "Weight of the entropy at masked tokens that are predicted correctly."}
    )
    confidence_temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of the entropy of `confidence_weight`."}
    )
    block_length: int | None = field(
        default=None,
        metadata={
            "help": "Length of the blocks of block diffusion. If not given: that of generation, where attention is "
            "block-causal (LLaDA2). 0: no blocks."
        },
    )
    mask_ratio_per_block: bool = field(
        default=False,
        metadata={"help": "Whether every block of block diffusion has a mask ratio of its own, and not every row."},
    )
    freeze_routers: bool = field(
        default=False, metadata={"help": "Whether the routers of a model with experts keep their weights."}
    )
    num_eval_draws: int = field(
        default=8, metadata={"help": "Number of masks per sequence that an evaluation averages over."}
    )
    eval_seed: int = field(default=0, metadata={"help": "Seed of the masks of an evaluation."})

    def __post_init__(self):
        super().__post_init__()
        self.make_noise(mask_token_id=0, vocab_size=3)
        if self.loss_normalization not in NORMALIZATIONS:
            raise ValueError(
                f"`loss_normalization={self.loss_normalization!r}` is unknown; write one of {NORMALIZATIONS}."
            )
        if self.loss_normalization == "masked" and self.loss_weighting != "uniform":
            raise ValueError(
                f"`loss_normalization='masked'` with `loss_weighting={self.loss_weighting!r}` would divide by the "
                "number of masks twice. Write `loss_weighting='uniform'`, or `loss_normalization='token'`."
            )
        if not 0 <= self.confidence_weight < math.inf:
            raise ValueError(f"`confidence_weight={self.confidence_weight}` is no weight; write 0 or more.")
        if not 0 < self.confidence_temperature < math.inf:
            raise ValueError(
                f"`confidence_temperature={self.confidence_temperature}` divides the logits; write more than 0, such "
                "as 0.5."
            )
        if self.block_length is not None and self.block_length < 0:
            raise ValueError(f"`block_length={self.block_length}` is negative; write 1 or more, or 0 for no blocks.")
        if self.num_eval_draws < 1:
            raise ValueError(f"`num_eval_draws={self.num_eval_draws}` gives no estimate; write at least 1.")

    def make_noise(self, mask_token_id: int, vocab_size: int, progress: float = 0.0) -> Callable[..., MaskedBatch]:
        """
        The noise that these arguments describe.

        Args:
            mask_token_id, vocab_size (`int`):
                Those of the model.
            progress (`float`, *optional*, defaults to 0):
                The share of the training that is done, for noise that changes with it. This one does not.

        Returns:
            `Callable`: A [`ForwardProcess`].
        """
        names = {item.name for item in fields(ForwardProcess)} - {"mask_token_id", "vocab_size"}
        settings = {name: getattr(self, name) for name in names}
        return ForwardProcess(mask_token_id, vocab_size=vocab_size, **settings)


Arguments = TypeVar("Arguments", bound=DiffusionArguments)


def as_arguments(args: Any, arguments_class: type[Arguments], default_name: str) -> Arguments:
    """
    The arguments of a trainer, from what its user passed.

    Args:
        args ([`~transformers.TrainingArguments`], *optional*):
            An `arguments_class`, a class it is derived from, or `None`.
        arguments_class (`type`):
            What the trainer needs.
        default_name (`str`):
            `output_dir` if `args` is `None`.

    Returns:
        `arguments_class`: `args` itself, or its values together with the defaults of the fields it lacks.

    Raises:
        ValueError: If `args` has fields that `arguments_class` lacks: they would be lost.
    """
    if args is None:
        return arguments_class(default_name)
    if isinstance(args, arguments_class):
        return args
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"`args` is of type {type(args).__name__}; write `args={arguments_class.__name__}(...)`.")
    # not `to_dict`, which hides every field that ends in `_token`
    values = {item.name: getattr(args, item.name) for item in fields(args) if item.init}
    lost = sorted(values.keys() - {item.name for item in fields(arguments_class)})
    if lost:
        raise ValueError(
            f"`args` is a {type(args).__name__}, whose {', '.join(f'`{name}`' for name in lost)} mean nothing here; "
            f"write `args={arguments_class.__name__}(...)`."
        )
    return arguments_class(**values)


__all__ = ["DiffusionArguments", "MaskedDiffusionArguments", "as_arguments"]
