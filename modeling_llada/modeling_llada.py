"""
The mask predictor: a Transformer without a causal mask that predicts all masked tokens at once (arXiv 2502.09992, §2).

One backbone serves every family. It reads standard field names from the configuration; what differs between the
families (rope precision and width, norms of queries and keys, dropouts, biases, key-value heads, tying, experts) are
attributes of the configuration, not other classes. Routers and experts have files of their own.
"""

import copy
import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..generation.canvas import true_first
from ..generation.configuration_diffusion import DiffusionGenerationConfig
from ..generation.forwards.canvas_cache import CanvasCache
from ..generation.mixin import LLaDAGenerationMixin
from .adapters import PublishedAdaptersMixin
from .attention import LLaDAAttention, LLaDARMSNorm, LLaDARotaryEmbedding
from .attention_masks import default_positions, expand_attention_mask, find_tokens
from .configuration_base import MaskedDiffusionConfig, MixtureOfExpertsConfig
from .configuration_illada import ILLaDAConfig
from .configuration_llada import LLaDAConfig
from .configuration_llada2_moe import LLaDA2MoeConfig
from .configuration_llada_moe import LLaDAMoEConfig
from .experts import LLaDAExperts
from .forward_checks import refuse_packed_documents, refuse_unknown_arguments, warn_of_unmasked_training
from .kept_positions import apply_head, take_positions, take_queries
from .log_likelihood import LogLikelihoodMixin
from .logit_shift import find_sources
from .pooling import TextFeaturesMixin
from .published_checkpoints import PublishedCheckpointsMixin
from .quantisation import keep_modules_exact
from .router_losses import MoeMaskedLMOutput, router_aux_loss
from .routers import ROUTERS, RoutingBlocks, TopKRouter, find_cut_block, find_routing_blocks
from .token_losses import TokenLossOutput, chunked_cross_entropy, find_leading_positions


# arguments of `from_pretrained` that say where a configuration is
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class LLaDAMLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: MaskedDiffusionConfig, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class LLaDASparseMLP(nn.Module):
    """Mixture of experts: the few that the router chooses for a token and, in some families, one that sees all."""

    def __init__(self, config: MixtureOfExpertsConfig):
        super().__init__()
        self.gate = ROUTERS[config.score_function](config)
        self.experts = LLaDAExperts(config)
        shared = config.shared_expert_intermediate_size
        self.shared_experts = LLaDAMLP(config, shared) if shared else None

    def forward(self, hidden_states: torch.Tensor, routing_blocks: RoutingBlocks | None = None) -> torch.Tensor:
        _, weights, indices = self.gate(hidden_states, routing_blocks)
        output = self.experts(hidden_states.flatten(0, 1), indices, weights).view_as(hidden_states)
        return output if self.shared_experts is None else output + self.shared_experts(hidden_states)


class LLaDALayer(GradientCheckpointingLayer):
    """Norm, attention, add; norm, feed-forward, add."""

    # a `CanvasCache` is written in place: computing a layer again writes the same
    _can_checkpoint_with_cache = True

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = LLaDARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LLaDAAttention(config, layer_idx)
        self.post_attention_layernorm = LLaDARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.is_sparse = config.mlp_layer_types[layer_idx] == "sparse"
        self.mlp = LLaDASparseMLP(config) if self.is_sparse else LLaDAMLP(config, config.intermediate_size)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        routing_blocks: RoutingBlocks | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings,
            attention_mask=attention_mask,
            positions_to_keep=positions_to_keep,
            **kwargs,
        )
        if positions_to_keep is not None:
            hidden_states = take_positions(hidden_states, positions_to_keep)
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.post_attention_layernorm(hidden_states)
        output = self.mlp(normed, routing_blocks) if self.is_sparse else self.mlp(normed)
        return hidden_states + self.dropout(output)


class LLaDAPreTrainedModel(PublishedCheckpointsMixin, PublishedAdaptersMixin, PreTrainedModel):
    """Loading, saving and initialisation of all models of this package."""

    config: LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDALayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": LLaDALayer,
        "attentions": LLaDAAttention,
    }

    def __init__(self, config: MaskedDiffusionConfig):
        if not isinstance(config, self.config_class):
            raise ValueError(
                f"{type(self).__name__} is built from a {self.config_class.__name__}, not from a "
                f"{type(config).__name__}. `AutoModelForMaskedLM` finds the class that fits a checkpoint."
            )
        # again, for what was changed since
        config.validate()
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers. What a back-end leaves out of a quantisation is completed by [`keep_modules_exact`]."""
        settings = kwargs.get("quantization_config")
        if settings is not None:
            config = kwargs.get("config")
            if not isinstance(config, MaskedDiffusionConfig):
                given = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
                config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **given)
            with torch.device("meta"):
                keep_modules_exact(cls(copy.deepcopy(config)), settings)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def look_at_training(self, input_ids: torch.Tensor) -> None:
        """Warns if text without a mask is trained. Looks at the first batch only: it waits for the device."""
        backbone = self.base_model
        if backbone.looked_at_training or not (self.training and torch.is_grad_enabled()) or is_tracing(input_ids):
            return
        backbone.looked_at_training = True
        warn_of_unmasked_training(input_ids, self.config.mask_token_id)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LLaDAExperts):
            init.normal_(module.gate_up_proj, std=self.config.initializer_range)
            init.normal_(module.down_proj, std=self.config.initializer_range)
        elif isinstance(module, TopKRouter):
            init.normal_(module.weight, std=self.config.initializer_range)
            for bias in module.buffers():
                init.zeros_(bias)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the decorator of the experts in the source of this file
        return issubclass(cls.config_class, MixtureOfExpertsConfig)


class LLaDAModel(LLaDAPreTrainedModel):
    """
    The backbone: embedding, layers, final norm. Returns `last_hidden_state`.

    Args:
        config ([`LLaDAConfig`]):
            The configuration.
    """

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__(config)
        # no `padding_idx`: the padding token is the end of text, whose embedding must be trained
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(LLaDALayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = LLaDARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LLaDARotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.looked_at_training = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        block_length: int | None = None,
        past_key_values: CanvasCache | None = None,
        cache_position: torch.Tensor | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Encodes a partly masked sequence.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Token ids, `config.mask_token_id` where the token is to be predicted.
            attention_mask (`torch.Tensor`, *optional*):
                Which positions may be seen. `(batch, length)`: 1 for tokens, 0 for padding, on either side.
                `(batch, length, length)` or `(batch or 1, 1 or heads, length, length)`: for every query position,
                boolean (`True` may be seen) or added to the attention scores. Everything is visible if not given.
            position_ids (`torch.LongTensor` of shape `(batch or 1, length)`, *optional*):
                Positions for the rotary embedding and for the blocks, `0 ... length - 1` if not given. The embedding
                is relative, so padding on the left changes nothing; for the blocks it is left out of the count. Packed
                documents, in which positions occur twice, need a mask per query position.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, length, hidden_size)`, *optional*):
                Embeddings instead of `input_ids`.
            block_length (`int`, *optional*):
                Makes attention block-causal: blocks of this many positions, counted from position 0, see themselves
                and the blocks before them. `config.block_size` if not given; 0 for full attention.
            past_key_values ([`~llada.generation.forwards.canvas_cache.CanvasCache`], *optional*):
                Keys and values of a longer canvas, of which the input is the part at `cache_position`. A 2-D
                `attention_mask` is one for the canvas then.
            cache_position (`torch.LongTensor` of shape `(length,)`, *optional*):
                Where the input stands in that canvas.
            positions_to_keep (`torch.LongTensor` of shape `(batch, kept)`, *optional*):
                The positions of the input whose last hidden state is wanted, all if not given. The last layer computes
                no others, apart from their keys and values.
            kwargs (`dict[str, Any]`, *optional*):
                What the libraries pass to every model (`output_hidden_states`, `return_dict`, ...).

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`] with `last_hidden_state` of shape
            `(batch, length or kept, hidden_size)` and, on request, `hidden_states` and `attentions` (eager attention
            only).

        Raises:
            ValueError: If both or neither of `input_ids` and `inputs_embeds` are given, the mask or the positions do
                not fit the input, an argument of other models is given that this one cannot honour, or one that nobody
                knows.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`, and not both.")
        if past_key_values is not None and not isinstance(past_key_values, CanvasCache):
            raise ValueError(
                f"`past_key_values` is a {type(past_key_values).__name__}, whose keys and values can only grow at the "
                "end; give a `CanvasCache`."
            )
        if (past_key_values is None) != (cache_position is None):
            raise ValueError("`past_key_values` and `cache_position` belong together; give both or neither.")
        if kwargs.pop("attention_bias", None) is not None:
            raise ValueError("`attention_bias` is not supported; pass it as a 4-D additive `attention_mask`.")
        has_head = kwargs.pop("has_head", False)
        refuse_unknown_arguments(kwargs, LLaDAModelLM.forward, LLaDAModel.forward)
        # a head looks by itself, where it is given labels
        if input_ids is not None and not has_head:
            self.look_at_training(input_ids)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        batch, length = inputs_embeds.shape[:2]
        block_length = self.config.block_size if block_length is None else block_length
        if position_ids is None:
            position_ids = default_positions(
                inputs_embeds, attention_mask, block_length, past_key_values, cache_position
            )
        elif tuple(position_ids.shape) not in ((1, length), (batch, length)):
            raise ValueError(
                f"`position_ids` has shape {tuple(position_ids.shape)}; give {(batch, length)}, or one row for all."
            )
        elif positions_to_keep is None and past_key_values is None:
            # sampling, which knows its positions, does not wait for the device
            refuse_packed_documents(position_ids, attention_mask)

        visible = expand_attention_mask(
            self.config, attention_mask, inputs_embeds, position_ids, block_length, past_key_values
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        routing_blocks = inexact = None
        if self.config.expert_capacity and self.config.block_size:
            if block_length and block_length % self.config.block_size:
                raise ValueError(
                    f"`block_length={block_length}` is not a multiple of {self.config.block_size}, the length of the "
                    "blocks whose tokens share experts (`config.block_size`): tokens would depend on later blocks."
                )
            is_token = find_tokens(attention_mask, batch, cache_position)
            routing_blocks = find_routing_blocks(position_ids, is_token, batch, self.config.block_size)
            if past_key_values is not None:
                inexact = find_cut_block(position_ids, self.config.block_size)
        # experts that a block shares depend on all its tokens, and only a mask per query can be cut
        by_query = isinstance(visible, torch.Tensor) and visible.ndim == 4
        is_cut = routing_blocks is None and (visible is None or by_query)
        hidden_states = self.dropout(inputs_embeds)
        for index, layer in enumerate(self.layers):
            positions = positions_to_keep if is_cut and index == len(self.layers) - 1 else None
            if positions is not None and isinstance(visible, torch.Tensor):
                visible = take_queries(visible, positions)
            hidden_states = layer(
                hidden_states,
                position_embeddings,
                attention_mask=visible,
                routing_blocks=routing_blocks,
                past_key_values=past_key_values,
                cache_position=cache_position,
                inexact=inexact,
                positions_to_keep=positions,
                **kwargs,
            )
        if positions_to_keep is not None and not is_cut:
            hidden_states = take_positions(hidden_states, positions_to_keep)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class LLaDAModelLM(LLaDAPreTrainedModel, LLaDAGenerationMixin, LogLikelihoodMixin, TextFeaturesMixin):
    """
    The mask predictor: backbone and head. What `AutoModel`, `AutoModelForMaskedLM` and `AutoModelForCausalLM` load.

    Args:
        config ([`LLaDAConfig`]):
            The configuration.
    """

    generation_config_class = DiffusionGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    backbone_class = LLaDAModel

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_logits_to_keep: list[int] | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_router_logits: bool | None = None,
        token_losses: bool = False,
        entropy_temperature: float | None = None,
        loss_weights: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """
        Predicts the tokens under the masks. Logits belong to the position they stand at: nothing is shifted.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Token ids, `config.mask_token_id` where the token is to be predicted.
            attention_mask, position_ids, inputs_embeds (*optional*):
                As in [`LLaDAModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Tokens to score, -100 elsewhere. Gives the plain cross entropy at the same positions. The trainers'
                objective, which weights it by the mask ratio, is in `masked_diffusion.py`.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                The positions that the head is applied to: the last `n` (0 for all), a 1-D tensor of indices, a 2-D
                tensor of indices per row, or a boolean mask of shape `(batch, length)`.
            num_logits_to_keep (`list[int]`, *optional*):
                How many cells of each row of a boolean `logits_to_keep` are true, if that is known: saves waiting for
                the device, and the last layer computes these positions only. With larger numbers, logits of other
                positions of the batch follow.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss, instead of the number of labels.
            output_router_logits (`bool`, *optional*):
                Whether to record the routers, and to add what keeps their load even to the loss.
                `config.output_router_logits` if not given, and never with `num_logits_to_keep`.
            token_losses (`bool`, *optional*, defaults to `False`):
                Whether to return the cross entropy of every token instead of logits, which are then computed for a
                few positions at a time. Scored is where the boolean `logits_to_keep` is true and there is a label.
                Both may be shorter than the input. They are for its first positions then, and the last layer computes
                no others.
            entropy_temperature (`float`, *optional*):
                With `token_losses`, also return the entropy of every prediction, of logits that are divided by it.
            loss_weights (`torch.FloatTensor` of the shape of `labels`, *optional*):
                With `token_losses`, what each of them counts in the `loss` that is returned then. It has the gradient,
                which is computed together with the logits, and `token_losses` has none. Not for a model that FSDP or
                ZeRO-3 spread over processes, whose gradients are there in the backward pass only.

        Returns:
            [`~transformers.modeling_outputs.MaskedLMOutput`] with `logits` of shape `(batch, kept, vocab_size)`, or
            `(num_true, vocab_size)` for a boolean mask, in the dtype of the model (LLaDA2: float32), and `loss` if
            `labels` are given. With `output_router_logits`, a [`~router_losses.MoeMaskedLMOutput`]; with
            `token_losses`, a [`~token_losses.TokenLossOutput`] that has no `logits`, and a `loss` with `loss_weights`
            only. The `aux_loss` of routers is not in the latter.

        Raises:
            ValueError: See [`LLaDAModel.forward`]; or if routers are to be recorded that do not exist, that the loss
                cannot reach, or where the last layer leaves positions out; or if losses of tokens are asked for
                without labels or mask, their entropies without losses or at no temperature, or if there are weights
                without losses or of another shape.
        """
        is_sampling = num_logits_to_keep is not None
        if output_router_logits is None:
            output_router_logits = not is_sampling and self.config.output_router_logits
        if output_router_logits and is_sampling:
            raise ValueError(
                "`output_router_logits=True` is about all positions, and with `num_logits_to_keep` the last layer "
                "leaves some out; leave out one of them."
            )
        if output_router_logits and "sparse" not in self.config.mlp_layer_types:
            raise ValueError("`output_router_logits=True`, but no layer of this model has experts; leave it out.")
        is_mask = isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.dtype == torch.bool
        if token_losses and (labels is None or not is_mask or is_sampling):
            raise ValueError(
                "`token_losses=True` needs `labels` and a boolean `logits_to_keep`, and no `num_logits_to_keep`; "
                "write e.g. `logits_to_keep=labels != -100`."
            )
        if entropy_temperature is not None and not (token_losses and 0 < entropy_temperature < math.inf):
            raise ValueError(
                f"`entropy_temperature={entropy_temperature}` needs `token_losses=True`, and to be above 0; write 1 "
                "for the entropy of the model's distribution."
            )
        if loss_weights is not None and not (
            token_losses and labels is not None and loss_weights.shape == labels.shape
        ):
            given_shape = None if labels is None else tuple(labels.shape)
            raise ValueError(
                f"`loss_weights` of shape {tuple(loss_weights.shape)} needs `token_losses=True` and `labels` of that "
                f"shape, and has labels of shape {given_shape}; write one weight per label."
            )
        positions_to_keep = wanted = None
        if num_logits_to_keep is not None and isinstance(logits_to_keep, torch.Tensor):
            positions_to_keep = true_first(logits_to_keep, max(num_logits_to_keep))
            is_wanted = logits_to_keep.gather(1, positions_to_keep)
            wanted = true_first(is_wanted.flatten(), sum(num_logits_to_keep))
        given = input_ids if inputs_embeds is None else inputs_embeds
        if token_losses and given is not None:
            assert labels is not None and isinstance(logits_to_keep, torch.Tensor), "checked above"
            scored = find_leading_positions(given, labels, logits_to_keep)
            # routers are looked at where they see all positions
            positions_to_keep = None if output_router_logits else scored
        is_shifted = self.config.right_shift_logits
        if input_ids is not None and labels is not None and not token_losses:
            self.look_at_training(input_ids)
        if input_ids is not None and not is_sampling and not self.training:
            # only the first column: text that ends in the padding token, the end of text, is given to see it
            self.warn_if_padding_and_no_attention_mask(input_ids[:, :1], attention_mask)
        # said also where it is false: a configuration with experts may say otherwise
        recorders = [name for name in self._can_record_outputs if name.startswith("router_")]
        kwargs |= dict.fromkeys((f"output_{name}" for name in recorders), output_router_logits)
        outputs = self.model(
            has_head=True,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            positions_to_keep=None if is_shifted else positions_to_keep,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if is_shifted:
            caching = {name: kwargs.get(name) for name in ("past_key_values", "cache_position")}
            sources, hidden_states = find_sources(
                self.config.num_hidden_layers, hidden_states, attention_mask, position_ids, **caching
            )
            kept = sources if positions_to_keep is None else sources.gather(1, positions_to_keep)
            hidden_states = take_positions(hidden_states, kept)
        output_class = MaskedLMOutput
        fields = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        if token_losses:
            assert labels is not None and isinstance(logits_to_keep, torch.Tensor), "checked above"
            output_class = TokenLossOutput
            states = hidden_states[:, : labels.shape[1]]
            fields |= chunked_cross_entropy(
                self.lm_head, states, labels, logits_to_keep, entropy_temperature, loss_weights
            )
        else:
            if wanted is None:
                logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
            else:
                logits = apply_head(self.lm_head, hidden_states.flatten(0, 1)[wanted.to(hidden_states.device)])
            fields["logits"] = logits.float() if self.config.float32_logits else logits
            if labels is not None:
                kept = slice_logits_to_keep(labels.unsqueeze(-1), logits_to_keep).contiguous()
                fields["loss"] = ForMaskedLMLoss(fields["logits"], kept, self.config.vocab_size, num_items_in_batch)
        if not output_router_logits:
            return output_class(**fields)

        recorded = outputs.router_logits, outputs.router_indices
        is_token = find_tokens(attention_mask, len(hidden_states), kwargs.get("cache_position"))
        aux_loss = router_aux_loss(self.config, *recorded, is_token)
        if self.training and hidden_states.requires_grad and not aux_loss.requires_grad:
            raise ValueError(
                "The loss of the routers reaches no weight. Reentrant gradient checkpointing hides them: write "
                '`activation_checkpointing_kwargs={"use_reentrant": False}`. If no layer is trained, write '
                "`output_router_logits=False`."
            )
        if labels is not None and not token_losses:
            fields["loss"] = fields["loss"] + aux_loss.to(fields["loss"].device)
        output_class = TokenLossOutput if token_losses else MoeMaskedLMOutput
        return output_class(aux_loss=aux_loss, router_logits=recorded[0], router_indices=recorded[1], **fields)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # imported here, against the arrows: a model can be pushed, but needs no card for anything else
        from ..export.model_card import replace_placeholder_card

        # the last step of `push_to_hub` and of `save_pretrained(push_to_hub=True)`, with the card in the folder
        replace_placeholder_card(working_dir, self, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


class ILLaDAModel(LLaDAModel):
    """The backbone of iLLaDA."""

    config: ILLaDAConfig


class ILLaDAForCausalLM(LLaDAModelLM):
    """iLLaDA with its head. The published name says causal; the model is not."""

    config: ILLaDAConfig
    backbone_class = ILLaDAModel


class RecordedRouters:
    """What models with experts can record beside the others."""

    _can_record_outputs = {
        **LLaDAPreTrainedModel._can_record_outputs,
        "router_logits": OutputRecorder(TopKRouter, index=0),
        "router_indices": OutputRecorder(TopKRouter, index=2),
    }


class LLaDAMoEModel(RecordedRouters, LLaDAModel):
    """The backbone of LLaDA-MoE."""

    config: LLaDAMoEConfig


class LLaDAMoEModelLM(RecordedRouters, LLaDAModelLM):
    """LLaDA-MoE with its head."""

    config: LLaDAMoEConfig
    backbone_class = LLaDAMoEModel


class LLaDA2MoeModel(RecordedRouters, LLaDAModel):
    """The backbone of LLaDA2.0, 2.1 and 2.2."""

    config: LLaDA2MoeConfig
    _keep_in_fp32_modules_strict = ["expert_bias"]


class LLaDA2MoeModelLM(RecordedRouters, LLaDAModelLM):
    """LLaDA2.0, 2.1 or 2.2 with its head."""

    config: LLaDA2MoeConfig
    _keep_in_fp32_modules_strict = ["expert_bias"]
    backbone_class = LLaDA2MoeModel


__all__ = [
    "ILLaDAForCausalLM",
    "ILLaDAModel",
    "LLaDA2MoeModel",
    "LLaDA2MoeModelLM",
    "LLaDAMoEModel",
    "LLaDAMoEModelLM",
    "LLaDAModel",
    "LLaDAModelLM",
    "LLaDAPreTrainedModel",
]
