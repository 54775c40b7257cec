"""Configuration of LLaDA2.0, 2.1 and 2.2, mini and flash (arXiv 2512.15745)."""

from .configuration_base import Constant, MixtureOfExpertsConfig


class LLaDA2MoeConfig(MixtureOfExpertsConfig):
    r"""
    Configuration of a [`LLaDA2MoeModel`]. The defaults are those of
    [inclusionAI/LLaDA2.1-mini](https://huggingface.co/inclusionAI/LLaDA2.1-mini), not those of the published class,
    which describe no model. Every published `config.json` stores all that matters.

    LLaDA2.2 differs in its keys, not in its class: with `expert_capacity`, the tokens of a block share a pool of
    experts, and the groups that the file still has are not used.

    Args:
        vocab_size (`int`, *optional*, defaults to 157184):
            Rows of the token embedding and of the head. The last 31 are never produced by the tokenizer.
        hidden_size (`int`, *optional*, defaults to 2048):
            Width of the residual stream.
        intermediate_size (`int`, *optional*, defaults to 5120):
            Width of the feed-forward layers without experts.
        num_hidden_layers (`int`, *optional*, defaults to 20):
            Number of layers.
        first_k_dense_replace (`int`, *optional*, defaults to 1):
            How many of them, from the first on, have no experts.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Number of query heads.
        num_key_value_heads (`int`, *optional*, defaults to 4):
            Number of key and value heads, `num_attention_heads` if null.
        head_dim (`int`, *optional*):
            Width of one head, `hidden_size // num_attention_heads` if not given.
        num_experts (`int`, *optional*, defaults to 256):
            Number of experts of a layer that the router chooses from.
        num_experts_per_tok (`int`, *optional*, defaults to 8):
            How many of them see a token.
        moe_intermediate_size (`int`, *optional*, defaults to 512):
            Width of an expert.
        num_shared_experts (`int`, *optional*, defaults to 1):
            Number of experts that see every token. They are one feed-forward layer, as wide as all of them together.
        n_group, topk_group (`int`, *optional*, defaults to 8 and 4):
            A token's experts come from the `topk_group` best of `n_group` groups, a group being as good as its two
            best experts.
        expert_capacity (`int`, *optional*):
            With a value above 0, the tokens of a block choose from the `expert_capacity` experts that score highest
            for any of them, and not from groups. 48 in LLaDA2.2, absent before.
        block_size (`int`, *optional*):
            Length of such a block, counted from position 0. 32 in LLaDA2.2, absent before.
        norm_topk_prob (`bool`, *optional*, defaults to `True`):
            Whether the scores of the chosen experts are divided by their sum. Null means no.
        routed_scaling_factor (`float`, *optional*, defaults to 2.5):
            Multiplies the scores of the chosen experts.
        router_aux_loss_coef, router_z_loss_coef (`float`, *optional*, defaults to 0.0):
            Weights of the load balancing loss and of the router z-loss, see [`router_aux_loss`]. Not keys of the
            published files: the releases are balanced by the bias of their routers.
        output_router_logits (`bool`, *optional*, defaults to `False`):
            Whether the model records its routers and adds their losses to the loss of `labels`.
        use_qk_norm (`bool`, *optional*, defaults to `True`):
            Every head norms its queries and keys, also in files without the key.
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the gates.
        max_position_embeddings (`int`, *optional*, defaults to 32768):
            Longest sequence, in tokens.
        rope_theta (`float`, *optional*, defaults to 600000):
            Base of the rotary embedding. 3000000 in LLaDA2.2.
        partial_rotary_factor (`float`, *optional*, defaults to 0.5):
            The part of a head that is rotated.
        rotary_dim (`int`, *optional*):
            Published duplicate: the width of that part.
        rope_scaling (`dict`, *optional*):
            Rope scaling. Null in all releases.
        rms_norm_eps (`float`, *optional*, defaults to 1e-06):
            Added to the mean square in every RMSNorm.
        attention_dropout, embedding_dropout, output_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities, on embeddings, and on what each sub-layer adds to the residual stream
            [`residual_dropout`].
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly initialised weights.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares the embedding matrix.
        mask_token_id (`int`, *optional*, defaults to 156895):
            Id of `<|mask|>`. The published files do not store it. Null by default in a smaller vocabulary.
        eos_token_id (`int` or `list[int]`, *optional*, defaults to 156892):
            Id of the end of text. The published files do not store it. Chats end a turn with 156900, too.
        pad_token_id (`int`, *optional*, defaults to 156892):
            Id of padding, the same: never derive an attention mask from it.
        bos_token_id (`int`, *optional*):
            There is no start token.
        delete_token_id, split_token_id (`int`, *optional*):
            Ids that LLaDA2.2 predicts to delete a token, and to open a place before one: 156930 and 156931.

    The other published keys select paths that no release uses. They are kept, and a value that would need such a path
    is refused.

    Raises:
        ValueError: If a key asks for something that no LLaDA2 release uses and this model does not implement, or no
            model can be built from the values.
    """

    model_type = "llada2_moe"
    # dLLM and dFactory
    other_model_types = ("llada21_moe", "llada2_moe_veomni")
    attribute_map = {"residual_dropout": "output_dropout"}
    # no plan for attention: its projections are one tensor on disk, which transformers cannot split into shards
    base_model_tp_plan = {
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
    }
    block_causal = Constant(True)
    float32_logits = Constant(True)

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    first_k_dense_replace: int = 1
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    num_experts: int = 256
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    num_shared_experts: int | None = 1
    n_group: int | None = 8
    topk_group: int | None = 4
    expert_capacity: int | None = None
    block_size: int | None = None
    norm_topk_prob: bool | None = True
    routed_scaling_factor: int | float = 2.5
    router_aux_loss_coef: int | float = 0.0
    router_z_loss_coef: int | float = 0.0
    output_router_logits: bool = False
    use_qk_norm: bool = True
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rope_theta: int | float = 600000
    partial_rotary_factor: int | float = 0.5
    rms_norm_eps: float = 1e-6
    attention_dropout: int | float = 0.0
    embedding_dropout: int | float = 0.0
    output_dropout: int | float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    mask_token_id: int | None = 156895
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 156892
    pad_token_id: int | None = 156892
    delete_token_id: int | None = None
    split_token_id: int | None = None

    moe_router_enable_expert_bias: bool = True
    norm_head: bool = False
    norm_softmax: bool = False
    router_dtype: str | None = "fp32"
    score_function: str = "sigmoid"
    use_bias: bool = False
    use_cache: bool = False
    use_qkv_bias: bool = False
    use_rmsnorm: bool = True
    use_sliding_window: bool = False
    using_split_qkv_in_self_attention: bool = False

    def __post_init__(self, **kwargs):
        rotary_dim = kwargs.pop("rotary_dim", None)
        super().__post_init__(**kwargs)
        if rotary_dim not in (None, self.rotary_dim):
            raise ValueError(
                f"`rotary_dim={rotary_dim}` does not fit `partial_rotary_factor={self.partial_rotary_factor}`, which "
                f"is {self.rotary_dim} of {self.head_dim} dimensions; change one of them."
            )

    def to_dict(self):
        return {**super().to_dict(), "rotary_dim": self.rotary_dim}

    @property
    def mlp_layer_types(self) -> list[str]:
        """`list[str]`: `"dense"` or `"sparse"` (a mixture of experts), for every layer."""
        return ["dense" if i < self.first_k_dense_replace else "sparse" for i in range(self.num_hidden_layers)]

    @property
    def shared_expert_intermediate_size(self) -> int:
        """`int`: Width of the shared experts together, 0 if there are none."""
        return self.moe_intermediate_size * (self.num_shared_experts or 0)

    def validate_architecture(self) -> None:
        """Refuses what no LLaDA2 release uses, and what no model can be built from."""
        implemented = {
            "moe_router_enable_expert_bias": (True,),
            "norm_head": (False,),
            "norm_softmax": (False,),
            "router_dtype": ("fp32", None),
            "score_function": ("sigmoid",),
            "use_bias": (False,),
            "use_qk_norm": (True,),
            "use_qkv_bias": (False,),
            "use_rmsnorm": (True,),
            "use_sliding_window": (False,),
            "using_split_qkv_in_self_attention": (False,),
        }
        self._refuse_other_values("LLaDA2", implemented)
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"`first_k_dense_replace={self.first_k_dense_replace}` layers without experts are more than "
                f"`num_hidden_layers={self.num_hidden_layers}`; write at most as many as there are."
            )
        super().validate_architecture()


__all__ = ["LLaDA2MoeConfig"]
