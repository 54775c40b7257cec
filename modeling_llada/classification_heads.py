"""Classifiers of texts and of tokens on top of the backbone, which is an encoder: every token sees all others."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_base import MaskedDiffusionConfig
from .configuration_illada import ILLaDAConfig
from .configuration_llada2_moe import LLaDA2MoeConfig
from .configuration_llada_moe import LLaDAMoEConfig
from .modeling_llada import (
    ILLaDAModel,
    LLaDA2MoeModel,
    LLaDAModel,
    LLaDAMoEModel,
    LLaDAPreTrainedModel,
)
from .pooling import mean_states


class LLaDAClassifier(LLaDAPreTrainedModel):
    """
    What both kinds share: a backbone, and one linear layer that is drawn anew where a checkpoint has none.

    Args:
        config ([`LLaDAConfig`]):
            The configuration, with `num_labels`.
    """

    backbone_class = LLaDAModel
    # the head of the mask predictor, in a published checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        # under the name that PEFT trains, too, where it adapts a classifier
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _encode(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **kwargs
    ) -> BaseModelOutput:
        output_router_logits = kwargs.pop("output_router_logits", None)
        if self.config.output_router_logits if output_router_logits is None else output_router_logits:
            raise ValueError(
                "Classifiers do not record their routers, and add nothing to the loss that keeps the load of the "
                "experts even; write `output_router_logits=False`, also in the configuration."
            )
        if input_ids is not None and not self.training:
            # only the first column, as where tokens are predicted
            self.warn_if_padding_and_no_attention_mask(input_ids[:, :1], attention_mask)
        return self.model(
            has_head=True, input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs
        )


class LLaDAForSequenceClassification(LLaDAClassifier):
    """
    Classifies texts, by the mean of the states of their tokens. What `AutoModelForSequenceClassification` loads, of a
    checkpoint with or without such a head.

    Args:
        config ([`LLaDAConfig`]):
            The configuration, with `num_labels` and, if it is not to be guessed from the labels, `problem_type`.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        Scores the labels of texts. Padding changes nothing, on either side.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds (*optional*):
                As in [`LLaDAModel.forward`].
            labels (`torch.Tensor`, *optional*):
                `(batch,)` class numbers (cross entropy) or, with `num_labels=1`, numbers (squared error);
                `(batch, num_labels)` of 0.0 and 1.0 where several labels may hold (binary cross entropy), or numbers
                with `config.problem_type="regression"`.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss, instead of the number of labels. What `Trainer` gives when it accumulates.

        Returns:
            [`~transformers.modeling_outputs.SequenceClassifierOutput`] with `logits` of shape `(batch, num_labels)`
            and, if `labels` are given, `loss`.

        Raises:
            ValueError: See [`LLaDAModel.forward`]; or if routers are to be recorded.
        """
        outputs = self._encode(
            input_ids, attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits = self.score(mean_states(outputs.last_hidden_state, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, logits=logits, pooled_logits=logits.float(), config=self.config)
            if num_items_in_batch is not None:
                # not all kinds of losses in transformers know it
                loss = loss * (labels != -100).sum() / num_items_in_batch
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LLaDAForTokenClassification(LLaDAClassifier):
    """
    Classifies every token, by its own state. What `AutoModelForTokenClassification` loads, of a checkpoint with or
    without such a head.

    Args:
        config ([`LLaDAConfig`]):
            The configuration, with `num_labels`.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """
        Scores the labels of tokens.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds (*optional*):
                As in [`LLaDAModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Class numbers, -100 where there is none.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss, instead of the number of labels. What `Trainer` gives when it accumulates.

        Returns:
            [`~transformers.modeling_outputs.TokenClassifierOutput`] with `logits` of shape
            `(batch, length, num_labels)` and, if `labels` are given, `loss`.

        Raises:
            ValueError: See [`LLaDAModel.forward`]; or if routers are to be recorded.
        """
        outputs = self._encode(
            input_ids, attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits = self.score(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ILLaDAForSequenceClassification(LLaDAForSequenceClassification):
    """iLLaDA as a classifier of texts."""

    config: ILLaDAConfig
    backbone_class = ILLaDAModel


class ILLaDAForTokenClassification(LLaDAForTokenClassification):
    """iLLaDA as a classifier of tokens."""

    config: ILLaDAConfig
    backbone_class = ILLaDAModel


class LLaDAMoEForSequenceClassification(LLaDAForSequenceClassification):
    """LLaDA-MoE as a classifier of texts."""

    config: LLaDAMoEConfig
    backbone_class = LLaDAMoEModel


class LLaDAMoEForTokenClassification(LLaDAForTokenClassification):
    """LLaDA-MoE as a classifier of tokens."""

    config: LLaDAMoEConfig
    backbone_class = LLaDAMoEModel


class LLaDA2MoeForSequenceClassification(LLaDAForSequenceClassification):
    """LLaDA2.0, 2.1 or 2.2 as a classifier of texts."""

    config: LLaDA2MoeConfig
    _keep_in_fp32_modules_strict = ["expert_bias"]
    backbone_class = LLaDA2MoeModel


class LLaDA2MoeForTokenClassification(LLaDAForTokenClassification):
    """LLaDA2.0, 2.1 or 2.2 as a classifier of tokens."""

    config: LLaDA2MoeConfig
    _keep_in_fp32_modules_strict = ["expert_bias"]
    backbone_class = LLaDA2MoeModel


__all__ = [
    "ILLaDAForSequenceClassification",
    "ILLaDAForTokenClassification",
    "LLaDA2MoeForSequenceClassification",
    "LLaDA2MoeForTokenClassification",
    "LLaDAForSequenceClassification",
    "LLaDAForTokenClassification",
    "LLaDAMoEForSequenceClassification",
    "LLaDAMoEForTokenClassification",
]
