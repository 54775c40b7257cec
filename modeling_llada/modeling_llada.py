"""
The mask predictor: a Transformer without a causal mask that predicts all masked tokens at once (arXiv 2502.09992, §2).

One backbone serves every family. It reads standard field names from the configuration; what differs between the
families (rope precision, dropouts, biases, key-value heads, tying) are fields of the configuration, not other classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..generation.canvas_cache import CanvasCache
from ..generation.configuration_diffusion import DiffusionGenerationConfig
from ..generation.mixin import LLaDAGenerationMixin
from .adapters import PublishedAdaptersMixin
from .attention_masks import default_positions, expand_attention_mask
from .checkpoint_layouts import in_memory_names
from .configuration_base import MaskedDiffusionConfig
from .configuration_illada import ILLaDAConfig
from .configuration_llada import LLaDAConfig
from .model_card import replace_placeholder_card


class LLaDARMSNorm(nn.Module):
    """Root mean square norm, computed in float32 and scaled in the dtype of its input."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        exact = hidden_states.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class LLaDARotaryEmbedding(nn.Module):
    """
    Cosines and sines of the rotary embedding, in float32 if the model rotates in full precision (LLaDA-8B) and in the
    activation dtype otherwise.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self.compute_rope_parameters()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def compute_rope_parameters(self) -> tuple[torch.Tensor, float]:
        """Inverse frequencies and scaling for the rope type of the configuration."""
        init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        # real even under `torch.device("meta")`: no checkpoint holds these buffers, so nothing would fill them
        with torch.device("cpu"):
            return init_fn(self.config)

    @staticmethod
    def compute_default_rope_parameters(config: MaskedDiffusionConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies (float32, shape `(head_dim / 2,)`) and the scaling of cosines and sines (1)."""
        dim = config.head_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float) / dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    def _apply(self, fn, recurse=True):
        # `model.to(torch.bfloat16)` must not round the frequencies: an error of 1e-3 turns far positions by radians
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if buffer.is_meta:
                buffer, _ = self.compute_rope_parameters()
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)  # [batch or 1, length, head_dim]
        dtype = torch.float if self.config.rope_full_precision else x.dtype
        return (angles.cos() * self.attention_scaling).to(dtype), (angles.sin() * self.attention_scaling).to(dtype)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotates queries or keys, `states` of shape `(batch, heads, length, head_dim)`, half against half. The arithmetic
    runs in the dtype of `cos`, the result has the dtype of `states`.
    """
    exact = states.to(cos.dtype)
    first, second = exact.chunk(2, dim=-1)
    rotated = exact * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
    return rotated.to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `output_attentions`. `attention_mask` is additive."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class LLaDAAttention(nn.Module):
    """Grouped-query attention in which every position sees every other."""

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        # read by the attention back-ends: without it they would apply a causal mask
        self.is_causal = False
        width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=bool(config.attention_bias))
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=bool(config.attention_bias))
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=bool(config.attention_bias))
        self.o_proj = nn.Linear(width, config.hidden_size, bias=bool(config.attention_bias))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: CanvasCache | None = None,
        cache_position: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_and_length = hidden_states.shape[:-1]
        by_head = (*batch_and_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(by_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(by_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)
        query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)

        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx, cache_position)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_length, -1).contiguous()), weights


class LLaDAMLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, config: MaskedDiffusionConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class LLaDALayer(GradientCheckpointingLayer):
    """Norm, attention, add; norm, feed-forward, add."""

    def __init__(self, config: MaskedDiffusionConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = LLaDARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LLaDAAttention(config, layer_idx)
        self.post_attention_layernorm = LLaDARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LLaDAMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings, attention_mask=attention_mask, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class LLaDAPreTrainedModel(PublishedAdaptersMixin, PreTrainedModel):
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
    _can_record_outputs = {"hidden_states": LLaDALayer, "attentions": LLaDAAttention}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False):
        """
        As in torch, and published names do as well: trainers resume from what `save_pretrained` wrote by calling this,
        and with `strict=False`.
        """
        names = in_memory_names(state_dict)
        if any(name != published for published, name in names.items()):
            state_dict = {names[published]: tensor for published, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


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
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        block_length: int | None = None,
        past_key_values: CanvasCache | None = None,
        cache_position: torch.LongTensor | None = None,
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
                is relative, so padding on the left changes nothing; for the blocks it is left out of the count.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, length, hidden_size)`, *optional*):
                Embeddings instead of `input_ids`.
            block_length (`int`, *optional*):
                Makes attention block-causal: blocks of this many positions, counted from position 0, see themselves
                and the blocks before them. `config.block_size` if not given; 0 for full attention.
            past_key_values ([`~llada.generation.canvas_cache.CanvasCache`], *optional*):
                Keys and values of a longer canvas, of which the input is the part at `cache_position`. A 2-D
                `attention_mask` is one for the canvas then.
            cache_position (`torch.LongTensor` of shape `(length,)`, *optional*):
                Where the input stands in that canvas.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`] with `last_hidden_state` of shape
            `(batch, length, hidden_size)` and, on request, `hidden_states` and `attentions` (eager attention only).

        Raises:
            ValueError: If both or neither of `input_ids` and `inputs_embeds` are given, the mask or the positions do
                not fit the input, or an argument of other models is given that this one cannot honour.
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

        attention_mask = expand_attention_mask(
            self.config, attention_mask, inputs_embeds, position_ids, block_length, past_key_values
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                cache_position=cache_position,
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class LLaDAModelLM(LLaDAPreTrainedModel, LLaDAGenerationMixin):
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
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_logits_to_keep: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
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
            num_logits_to_keep (`int`, *optional*):
                How many cells of a boolean `logits_to_keep` are true, if that is known: saves waiting for the device.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss, instead of the number of labels.

        Returns:
            [`~transformers.modeling_outputs.MaskedLMOutput`] with `logits` of shape `(batch, kept, vocab_size)`, or
            `(num_true, vocab_size)` for a boolean mask, in the dtype of the model, and `loss` if `labels` are given.

        Raises:
            ValueError: See [`LLaDAModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if num_logits_to_keep is not None:
            # counted through the batch row by row, true cells first
            index = (~logits_to_keep).flatten().argsort(stable=True)[:num_logits_to_keep]
            hidden_states = outputs.last_hidden_state.flatten(0, 1)[index]
        else:
            hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            kept = slice_logits_to_keep(labels.unsqueeze(-1), logits_to_keep)
            loss = ForMaskedLMLoss(logits, kept.contiguous(), self.config.vocab_size, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
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


__all__ = [
    "ILLaDAForCausalLM",
    "ILLaDAModel",
    "LLaDAModel",
    "LLaDAModelLM",
    "LLaDAPreTrainedModel",
]
