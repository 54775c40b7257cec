"""What the trainers of masked diffusion models share, whatever they train them for."""

import copy
import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from peft import LoraConfig, PeftConfig, PromptLearningConfig
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from ..export.model_card import create_model_card
from ..generation.configuration_diffusion import DEFAULTS
from ..modeling_llada.adapters import lora_target_modules
from ..modeling_llada.checkpoint_layouts import in_memory_names
from ..modeling_llada.routers import TopKRouter
from .data.data_collator import DataCollatorForMaskedDiffusion
from .diffusion_arguments import DiffusionArguments
from .resumption import ResumableTrainerMixin
from .sampling_callback import SampleCallback


logger = logging.get_logger(__name__)


def find_mask_token_id(config: PreTrainedConfig) -> int:
    """
    The id of the mask token.

    Raises:
        ValueError: If the model has none, that is, if it is no masked diffusion model.
    """
    mask_token_id = getattr(config, "mask_token_id", None)
    if mask_token_id is None:
        raise ValueError(
            f"The configuration of this `{config.model_type}` model has no `mask_token_id`, so it is no masked "
            "diffusion model. Set `model.config.mask_token_id`, or use TRL's own trainers for a causal model."
        )
    return mask_token_id


def find_block_length(model: PreTrainedModel, block_length: int | None) -> int:
    """
    The length of the blocks that a model is to be trained in.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        block_length (`int`, *optional*):
            What was asked for.

    Returns:
        `int`: That, or else the length of the blocks that the model generates in, if its attention is block-causal. 0
        if there are no blocks.
    """
    if block_length is not None or not getattr(model.config, "block_causal", False):
        return block_length or 0
    return model.generation_config.block_length or model.config.block_size or DEFAULTS["block_length"]


def write_in_blocks(model: PreTrainedModel, block_length: int) -> None:
    """
    Lets `generate` attend as block diffusion trains, also in a checkpoint that is saved.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, possibly with adapters, whose files say nothing of it.
        block_length (`int`):
            Length of the blocks.
    """
    model.config.block_causal = True
    model.generation_config.block_length = block_length
    model.generation_config.with_defaults(model.config)


def freeze_routers(model: torch.nn.Module) -> None:
    """
    Keeps the routers of a model with experts as they are.

    Args:
        model (`torch.nn.Module`):
            The model, possibly with adapters.

    Raises:
        ValueError: If it has none.
    """
    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    if not routers:
        raise ValueError("`freeze_routers=True`, but no layer of this model has experts; leave it out.")
    for router in routers:
        router.requires_grad_(False)


def read_model(
    model: Any, model_id: str, args: Any, processing_class: Any
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """
    Configuration and tokenizer of a model that a trainer of TRL's kind is given, or that it is to load.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The model, or its id or path.
        model_id (`str`):
            Its id or path in any case.
        args ([`~trl.SFTConfig`] or another with `model_init_kwargs`):
            How it is loaded.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer, if it is given.

    Raises:
        ValueError: If that is no masked diffusion model, or no tokenizer.
    """
    loading = {"trust_remote_code": args.trust_remote_code}
    if isinstance(model, str):
        loading["revision"] = (args.model_init_kwargs or {}).get("revision")
        config = AutoConfig.from_pretrained(model_id, **loading)
    else:
        config = model.config
    find_mask_token_id(config)
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(model_id, **loading)
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"`processing_class` is a {type(processing_class).__name__}; write the tokenizer, the models of this "
            "package read text only."
        )
    return config, processing_class


def refuse_virtual_tokens(*peft_configs: Any) -> None:
    """
    Complains about adapters that put tokens before those of the row.

    Raises:
        ValueError: If a configuration describes one.
    """
    for peft_config in peft_configs:
        if isinstance(peft_config, PromptLearningConfig):
            raise ValueError(
                f"The adapter is a {type(peft_config).__name__}, whose virtual tokens shift the positions that the "
                "masks refer to. Write a `LoraConfig`."
            )


def complete_adapter(peft_config: PeftConfig | None, config: PreTrainedConfig) -> PeftConfig | None:
    """The adapter with target modules, if it is a [`~peft.LoraConfig`] without."""
    if isinstance(peft_config, LoraConfig) and not (peft_config.target_modules or peft_config.target_parameters):
        peft_config = copy.deepcopy(peft_config)
        peft_config.target_modules = set(lora_target_modules(config))
    return peft_config


def take_back_forward(model: torch.nn.Module) -> None:
    """
    Gives a model the `forward` that it had before a trainer of TRL's put its own there, which nothing here calls. That
    one is bound to the weights of this very model: a copy of the model, such as a reference, would compute with them.

    Args:
        model (`torch.nn.Module`):
            The model, possibly with adapters, or with hooks of accelerate, which stay.
    """
    base: Any = model
    if is_peft_model(model):
        base = base.get_base_model()
    forward = getattr(vars(base).get("forward"), "__func__", None)
    before = inspect.getclosurevars(forward).nonlocals.get("original_forward") if inspect.isfunction(forward) else None
    if before is None:
        return
    del base.forward
    if getattr(before, "__func__", None) is not type(base).forward:
        base.forward = before


def refuse_what_needs_logits(arguments: dict[str, Any]) -> None:
    """
    Complains about arguments of a trainer that look at the logits of all tokens.

    Raises:
        ValueError: If one is given.
    """
    for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
        if arguments.get(name) is not None:
            raise ValueError(
                f"`{name}` is not supported: logits are computed for masked tokens only. Leave it out; "
                "evaluations report `nll_bound`, `ppl_bound` and accuracies."
            )


def stage_factor(step: int, *, warmup: int, total: int, stages: Sequence[tuple[float, float]]) -> float:
    """
    Factor of the learning rate: linear warm-up, then straight lines between the points `(share of training, factor)`.
    """
    shares, factors = zip(*stages, strict=True)
    warm = min(1.0, step / warmup) if warmup else 1.0
    return warm * float(np.interp(step / max(total, 1), shares, factors))


class DiffusionTrainerMixin(ResumableTrainerMixin):
    """
    What every trainer of masked diffusion models has, whatever its objective: the mask token, the attention of
    generation, the learning rate of the paper, a model card, and a collator that draws anew in every pass. To be
    inherited before [`~transformers.Trainer`] or a subclass; `__init__` has to call `_init_diffusion` when the base is
    initialised.
    """

    args: DiffusionArguments
    # learning rate of the paper, as points (share of training, factor of the peak)
    _stages: Sequence[tuple[float, float]] = ((0.0, 1.0), (1.0, 1.0))
    _tag_names = ["llada", "masked-diffusion"]

    def _init_diffusion(self, eos_token_id: int | None) -> None:
        self.mask_token_id = find_mask_token_id(self.model.config)
        take_back_forward(self.model)
        # no token has this id if there is no end of text
        self._eos_token_id = -1 if eos_token_id is None else eos_token_id
        # of the attention of the model
        self.block_length = find_block_length(self.model, None)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "Context and sequence parallelism are not supported: both assume causal attention. Write `cp_size=1` "
                "and `sp_size=1` in the parallelism configuration; data and tensor parallelism work."
            )
        args = self.args
        if args.sample_steps is not None:
            assert not isinstance(args.sample_kwargs, str), "read from JSON when it was given"
            every, settings = args.sample_steps or None, args.sample_kwargs or {}
            self.add_callback(SampleCallback(self, args.sample_prompts, freq=every, **settings))

    @property
    def _data_parallel(self) -> tuple[int, int]:
        """Rank and number of the processes that hold different data."""
        group = self.get_tp_size()
        return self.accelerator.process_index // group, self.accelerator.num_processes // group

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        if self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not self.args.lr_scheduler_kwargs:
            factor = partial(stage_factor, warmup=warmup, total=num_training_steps, stages=self._stages)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        if 4 * warmup > num_training_steps:
            self._report_warmup(warmup, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _report_warmup(self, warmup: int, total: int) -> None:
        peak = self.args.learning_rate
        if warmup < total:
            outcome = f"the peak of {peak:g} is reached for {total - warmup} of them at most"
        else:
            outcome = (
                f"the learning rate stays below {peak * total / warmup:.3g} and never reaches its peak of {peak:g}"
            )
        logger.warning(
            f"`warmup_steps={self.args.warmup_steps:g}` takes {warmup} of the {total} steps of this run: {outcome}. A "
            f"short run needs a shorter warm-up, e.g. `warmup_steps={max(total // 10, 1)}`, or a share of all steps, "
            "`warmup_steps=0.1`."
        )

    def _run_epoch(self, **kwargs) -> None:
        if isinstance(self.data_collator, DataCollatorForMaskedDiffusion):
            # it draws other answers of a conversation than in the last pass. A stream has more of them than epochs
            self.data_collator.epoch.fill_(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # a sharded checkpoint is compared by its published names, although it is loaded, and a tied head is not saved
        names = in_memory_names(load_result.unexpected_keys, self.model.config.model_type)
        found = {*chain(*names.values()), *getattr(self.model, "all_tied_weights_keys", ())}
        missing = [name for name in load_result.missing_keys if name not in found]
        unexpected = [published for published, new in names.items() if not {*new} <= {*load_result.missing_keys}]
        super()._issue_warnings_after_load(type(load_result)(missing, unexpected))

    @contextmanager
    def _evaluation_collator(self):
        collator = self.data_collator
        if isinstance(collator, DataCollatorForMaskedDiffusion):
            self.data_collator = collator.for_evaluation()
        try:
            yield
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs):
        with self._evaluation_collator():
            return super().get_test_dataloader(*args, **kwargs)

    def _describe_objective(self) -> dict[str, Any]:
        """Hook for what the model card says of the objective."""
        return {}

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Writes `README.md` to `args.output_dir`: what the model is, how to run it, how it was trained.

        Args:
            model_name (`str`, *optional*):
                Not used, the card is named after the repository.
            dataset_name (`str` or `list[str]`, *optional*):
                What the model was trained on.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        _, num_ranks = self._data_parallel
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_ranks
        card = create_model_card(
            self.model,
            self.hub_model_id or args.output_dir,
            dataset_name=dataset_name,
            tags={*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())},
            training={
                "trainer": type(self).__name__,
                "steps": self.state.global_step,
                "global batch": batch,
                "peak learning rate": args.learning_rate,
                "attention": f"blocks of {self.block_length}" if self.block_length else "full",
                **self._describe_objective(),
            },
        )
        card.save(Path(args.output_dir) / "README.md")


__all__ = [
    "DiffusionTrainerMixin",
    "complete_adapter",
    "find_block_length",
    "find_mask_token_id",
    "freeze_routers",
    "read_model",
    "refuse_virtual_tokens",
    "refuse_what_needs_logits",
    "stage_factor",
    "take_back_forward",
    "write_in_blocks",
]
