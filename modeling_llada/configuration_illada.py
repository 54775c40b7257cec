"""Configuration of iLLaDA-8B (arXiv 2606.25331), and of causal models that become diffusion models."""

from .configuration_base import MaskedDiffusionConfig


class ILLaDAConfig(MaskedDiffusionConfig):
    r"""
    Configuration of an [`ILLaDAModel`]: Llama's key names, grouped-query attention, a tied head. The defaults are
    those of iLLaDA-8B as far as they are known; `config.json` decides. The last three switches are for models that
    [`from_causal`] makes, which are of this family.

    Args:
        vocab_size (`int`, *optional*, defaults to 155136):
            Rows of the token embedding and of the head.
        hidden_size (`int`, *optional*, defaults to 4096):
            Width of the residual stream.
        intermediate_size (`int`, *optional*, defaults to 14336):
            Width of the feed-forward layers.
        num_hidden_layers (`int`, *optional*, defaults to 32):
            Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 32):
            Number of query heads.
        num_key_value_heads (`int`, *optional*):
            Number of key and value heads, `num_attention_heads` if not given (8 in iLLaDA-8B).
        head_dim (`int`, *optional*):
            Width of one head, `hidden_size // num_attention_heads` if not given.
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the gate.
        max_position_embeddings (`int`, *optional*, defaults to 8192):
            Longest sequence, in tokens.
        rope_theta (`float`, *optional*, defaults to 500000.0):
            Base of the rotary embedding.
        rope_scaling (`dict`, *optional*):
            Rope scaling. Null in the release.
        rms_norm_eps (`float`, *optional*, defaults to 1e-06):
            Added to the mean square in every RMSNorm.
        layer_norm_eps (`float`, *optional*):
            Null in the release, which means RMSNorm. LayerNorm is not implemented.
        attention_bias, mlp_bias (`bool`, *optional*, defaults to `False`):
            Whether the attention projections and the feed-forward layers have biases.
        attention_dropout, resid_pdrop (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities, and on what each sub-layer adds to the residual stream.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly initialised weights.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the head shares the embedding matrix.
        block_causal (`bool`, *optional*, defaults to `False`):
            Whether the model was trained to write block by block, by block diffusion (`block_length` of the trainers).
            `generate` then lets a block see itself and what comes before. No published file has the key, and it is
            saved only if true.
        mask_token_id (`int`, *optional*, defaults to 5):
            Id of `<[MASK]>`. The published file does not store it.
        bos_token_id, pad_token_id, eos_token_id (`int`, *optional*, defaults to 0, 1 and 2):
            Ids of the start, padding and end-of-text tokens.
        use_qk_norm (`bool`, *optional*, defaults to `False`):
            Whether every head norms its queries and keys, as in Qwen3.
        use_qkv_bias (`bool`, *optional*, defaults to `False`):
            Whether queries, keys and values have biases and the output projection has none, as in Qwen2.
        right_shift_logits (`bool`, *optional*, defaults to `False`):
            Whether a token is predicted from the last hidden state of the position before it, as causal models do.
            The logits of the model belong to the position they stand at either way.

    Raises:
        ValueError: If `layer_norm_eps` is set, or no model can be built from the values.
    """

    model_type = "illada"
    attribute_map = {"residual_dropout": "resid_pdrop"}
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 155136
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rope_theta: int | float = 500000.0
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: int | float = 0.0
    resid_pdrop: int | float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    block_causal: bool = False
    mask_token_id: int | None = 5
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = False
    use_qk_norm: bool = False
    use_qkv_bias: bool = False
    right_shift_logits: bool = False

    def validate_architecture(self) -> None:
        """Refuses LayerNorm, which no release uses, and what no model can be built from."""
        if self.layer_norm_eps is not None:
            raise ValueError(
                f"`layer_norm_eps={self.layer_norm_eps}` asks for LayerNorm, which no iLLaDA release uses; leave it "
                "null and set `rms_norm_eps`."
            )
        super().validate_architecture()


__all__ = ["ILLaDAConfig"]
