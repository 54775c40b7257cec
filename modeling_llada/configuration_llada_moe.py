"""Configuration of LLaDA-MoE-7B-A1B, Base and Instruct (arXiv 2509.24389)."""

from typing import Any

from .configuration_base import Constant, MixtureOfExpertsConfig


class LLaDAMoEConfig(MixtureOfExpertsConfig):
    r"""
    Configuration of a [`LLaDAMoEModel`]. The defaults are those of
    [inclusionAI/LLaDA-MoE-7B-A1B-Instruct](https://huggingface.co/inclusionAI/LLaDA-MoE-7B-A1B-Instruct).

    The release and the dense LLaDA have the same `model_type`, `"llada"`. Files keep it; in memory it is `"lladamoe"`.
    `AutoConfig` and [`LLaDAConfig`] tell the two apart by the key `num_experts`.

    The standard name of a field, where it has one, is given in brackets and may be used everywhere instead.

    Args:
        vocab_size (`int`, *optional*, defaults to 157184):
            Rows of the token embedding and of the head. The last 31 are never produced by the tokenizer.
        hidden_size (`int`, *optional*, defaults to 2048):
            Width of the residual stream.
        num_hidden_layers (`int`, *optional*, defaults to 16):
            Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Number of query heads.
        num_key_value_heads (`int`, *optional*):
            Number of key and value heads, `num_attention_heads` if not given.
        head_dim (`int`, *optional*):
            Width of one head, `hidden_size // num_attention_heads` if not given.
        num_experts (`int`, *optional*, defaults to 64):
            Number of experts of a layer.
        num_experts_per_tok (`int`, *optional*, defaults to 8):
            How many of them see a token.
        expert_intermediate_size (`int`, *optional*, defaults to 1024):
            Width of an expert [`moe_intermediate_size`].
        dense_intermediate_size (`int`, *optional*, defaults to 8192):
            Width of the feed-forward layers without experts, which no release has [`intermediate_size`].
        shared_expert_intermediate_size (`int`, *optional*):
            Null in the release: no expert sees all tokens.
        moe_layer_freq (`list[int]`, *optional*):
            1 for layers with experts, 0 for layers without. All have experts if not given.
        norm_topk_prob (`bool`, *optional*):
            Whether the scores of the chosen experts are divided by their sum. Null, as in the release, means no. The
            published code reads neither this nor the next key, whose values in the release change nothing.
        routed_scaling_factor (`float`, *optional*, defaults to 1):
            Multiplies the scores of the chosen experts.
        router_aux_loss_coef (`float`, *optional*, defaults to 0.01):
            Weight of the load balancing loss, see [`router_aux_loss`].
        router_z_loss_coef (`float`, *optional*, defaults to 0.001):
            Weight of the router z-loss. Not a key of the published file; the value is that of the paper.
        output_router_logits (`bool`, *optional*, defaults to `False`):
            Whether the model records its routers and adds their losses to the loss of `labels`.
        qk_layernorm (`bool`, *optional*, defaults to `True`):
            Whether every head norms its queries and keys [`use_qk_norm`].
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the gates.
        max_position_embeddings (`int`, *optional*, defaults to 8192):
            Longest sequence, in tokens.
        rope_theta (`float`, *optional*, defaults to 50000):
            Base of the rotary embedding.
        partial_rotary_factor (`float`, *optional*, defaults to 1):
            The part of a head that is rotated.
        rope_scaling (`dict`, *optional*):
            Rope scaling. Null in the release.
        rms_norm_eps (`float`, *optional*, defaults to 1e-05):
            Added to the mean square in every RMSNorm.
        attention_bias (`bool`, *optional*, defaults to `False`):
            Whether the attention projections have biases.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly initialised weights.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares the embedding matrix.
        block_causal (`bool`, *optional*, defaults to `False`):
            Whether the model was trained to write block by block, by block diffusion (`block_length` of the trainers).
            `generate` then lets a block see itself and what comes before. No published file has the key, and it is
            saved only if true.
        mask_token_id (`int`, *optional*, defaults to 156895):
            Id of `<|mask|>`. The published file does not store it. Null by default in a smaller vocabulary.
        eos_token_id, pad_token_id (`int`, *optional*, defaults to 156892):
            Id of the end of text, and of padding: never derive an attention mask from it.
        bos_token_id (`int`, *optional*):
            There is no start token.

    The other published keys select paths that no release uses. They are kept, and a value that would need such a path
    is refused.

    Raises:
        ValueError: If a key asks for something that no LLaDA-MoE release uses and this model does not implement, or no
            model can be built from the values.
    """

    model_type = "lladamoe"
    attribute_map = {
        "intermediate_size": "dense_intermediate_size",
        "moe_intermediate_size": "expert_intermediate_size",
        "n_group": "router_num_group",
        "score_function": "moe_router_score_function",
        "topk_group": "router_topk_group",
        "use_qk_norm": "qk_layernorm",
    }
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
    }
    accumulates_by_expert = Constant(True)

    vocab_size: int = 157184
    hidden_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    num_experts: int = 64
    num_experts_per_tok: int = 8
    expert_intermediate_size: int = 1024
    dense_intermediate_size: int | None = 8192
    shared_expert_intermediate_size: int | None = None
    moe_layer_freq: list[int] | None = None
    norm_topk_prob: bool | None = None
    routed_scaling_factor: int | float | None = 1
    router_aux_loss_coef: int | float = 0.01
    router_z_loss_coef: int | float = 0.001
    output_router_logits: bool = False
    qk_layernorm: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rope_theta: int | float = 50000
    partial_rotary_factor: int | float = 1
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    block_causal: bool = False
    mask_token_id: int | None = 156895
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 156892
    pad_token_id: int | None = 156892

    clip_qkv: int | float | None = None
    moe_router_enable_expert_bias: bool | None = False
    moe_router_score_function: str = "softmax"
    router_num_group: int | None = None
    router_topk_group: int | None = None
    use_cache: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        # or transformers would warn of the other family
        if config_dict.get("model_type") == "llada" and config_dict.get("num_experts") is not None:
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    def derive_fields(self) -> None:
        super().derive_fields()
        if self.moe_layer_freq is None:
            self.moe_layer_freq = [1] * self.num_hidden_layers

    @property
    def mlp_layer_types(self) -> list[str]:
        """`list[str]`: `"dense"` or `"sparse"` (a mixture of experts), for every layer."""
        return ["sparse" if flag else "dense" for flag in (self.moe_layer_freq or ())[: self.num_hidden_layers]]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": "llada"}

    def validate_architecture(self) -> None:
        """Refuses what no LLaDA-MoE release uses, and what no model can be built from."""
        implemented = {
            "clip_qkv": (None,),
            "moe_router_enable_expert_bias": (False, None),
            "moe_router_score_function": ("softmax",),
            "router_num_group": (None, 0, 1),
            "router_topk_group": (None, 0, 1),
            "shared_expert_intermediate_size": (None, 0),
        }
        self._refuse_other_values("LLaDA-MoE", implemented)
        flags = self.moe_layer_freq or ()
        if len(flags) < self.num_hidden_layers or not set(flags) <= {0, 1}:
            raise ValueError(
                f"`moe_layer_freq={self.moe_layer_freq}` must have 1 (experts) or 0 (none) for each of the "
                f"{self.num_hidden_layers} layers."
            )
        super().validate_architecture()


__all__ = ["LLaDAMoEConfig"]
