"""Training that makes a masked diffusion model of a causal one."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from ..modeling_llada.masked_diffusion import noise_generator, reduce_loss
from .conversion_config import LLaDAConversionConfig
from .diffusion_arguments import as_arguments
from .pre_trainer import LLaDAPreTrainer


def anneal_attention(length: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """
    A causal mask in which a share of what comes later is open (DiffuLLaMA, arXiv 2410.17891).

    Args:
        length (`int`):
            Number of positions.
        share (`float`):
            Probability that a position sees a later one: 0 for causal attention, 1 for full.
        generator (`torch.Generator`):
            The noise.

    Returns:
        `torch.BoolTensor` of shape `(length, length)`: Which positions see which.
    """
    opened = torch.rand(length, length, generator=generator) < share
    return opened | torch.ones(length, length, dtype=torch.bool).tril()


class LLaDAConversionTrainer(LLaDAPreTrainer):
    """
    Trains what [`from_causal`] returns: pre-training in which attention may open step by step, or block by block, and
    in which the model may go on being trained as a causal one, too. Evaluations are of the model as it is to generate:
    with full attention, or in blocks of `block_length`.

    Args:
        model, args, kwargs:
            As in [`LLaDAPreTrainer`], with a [`LLaDAConversionConfig`].

    Raises:
        ValueError: If a setting cannot work with masked diffusion, with what to write instead.

    Example:

    ```python
    >>> # blocks grow from single tokens to the whole row, and shrink to those that it will write in
    >>> blocks = {"block_warmup_steps": 0.2, "block_decay_steps": 0.2, "block_length": 32}
    >>> trainer = LLaDAConversionTrainer(
    ...     model=from_causal(causal_model, tokenizer),
    ...     args=LLaDAConversionConfig("converted", max_steps=400, **blocks),
    ...     train_dataset=documents,
    ...     processing_class=tokenizer,
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["llada", "masked-diffusion", "from-causal"]
    args: LLaDAConversionConfig

    def __init__(self, model, args=None, **kwargs):
        super().__init__(model, as_arguments(args, LLaDAConversionConfig, "LLaDA-conversion"), **kwargs)
        self._block_schedule = self.args.block_schedule()
        if self._block_schedule is not None and self.model.config.right_shift_logits:
            raise ValueError(
                "This model predicts a token from the position before it (`right_shift_logits`), which is noisy where "
                "blocks are trained and clean where they are written. Leave out `block_warmup_steps` and "
                "`block_decay_steps`, or convert without the shift."
            )

    def _describe_objective(self) -> dict[str, Any]:
        args = self.args
        annealing, blocks = args.attention_annealing_steps, self._block_schedule
        opened = {"attention opened": f"in {annealing} steps" if annealing else "at once"}
        return {
            **super()._describe_objective(),
            **(opened if blocks is None else {"blocks": blocks.describe()}),
            **({"causal loss": f"weight {args.causal_loss_weight}"} if args.causal_loss_weight else {}),
        }

    def _find_block_length(self, training: bool) -> int:
        if self._block_schedule is None or not training:
            return super()._find_block_length(training)
        return self._block_schedule(self.state.global_step, self.state.max_steps)

    def _has_blocks(self) -> bool:
        return super()._has_blocks() or self.args.block_schedule() is not None

    def _lay_out(
        self, noisy_ids: torch.Tensor, masked: torch.Tensor, labels: torch.Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        seen = super()._lay_out(noisy_ids, masked, labels, inputs)
        share = (self.state.global_step + 1) / max(self.args.attention_annealing_steps, 1)
        if not self.model.training or share >= 1:
            return seen
        key = (self.args.seed, "attention", self.state.global_step, self._micro_step, self._data_parallel[0])
        visible = anneal_attention(noisy_ids.shape[1], share, noise_generator(*key)).to(noisy_ids.device)
        if (is_token := inputs.get("attention_mask")) is not None:
            visible = visible & is_token[:, None, :].bool()
        return {**seen, "attention_mask": visible.expand(len(noisy_ids), -1, -1)}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """As in [`LLaDAPreTrainer`], with the weighted loss of a causal model added if there is a weight."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.args.causal_loss_weight == 0:
            return loss
        labels = inputs["labels"]
        maskable = labels != -100
        if not self.model.config.right_shift_logits:
            # the logits of a position are those of the next token, as they were in the causal model
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
        scored = labels != -100
        if self.model.config.right_shift_logits:
            # nothing stands before the first token
            scored[:, 0] = False
        seen = {name: value for name, value in inputs.items() if name != "labels"}
        # blocks of one position are causal attention
        output = model(**seen, labels=labels, logits_to_keep=scored, token_losses=True, block_length=1)
        rows, normalization = output.token_losses.sum(dim=1), self.args.loss_normalization
        causal = reduce_loss(rows, maskable.sum(dim=1), normalization, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            causal = causal * self._data_parallel[1]
        return loss + self.args.causal_loss_weight * causal


class TimeLimit(TrainerCallback):
    """
    Ends a training after some time.

    Args:
        minutes (`float`):
            How long it may take.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes

    def on_train_begin(self, args, state, control, **kwargs):
        self.end = time.monotonic() + 60 * self.minutes

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() >= self.end:
            control.should_training_stop = True


__all__ = ["LLaDAConversionTrainer", "TimeLimit", "anneal_attention"]
