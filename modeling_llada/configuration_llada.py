"""Configuration of the dense LLaDA models: LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5."""

from typing import Any

from .configuration_base import MaskedDiffusionConfig
from .configuration_llada_moe import LLaDAMoEConfig


class LLaDAConfig(MaskedDiffusionConfig):
    r"""
    Configuration of a [`LLaDAModel`]. The defaults are those of
    [GSAI-ML/LLaDA-8B-Instruct](https://huggingface.co/GSAI-ML/LLaDA-8B-Instruct) (arXiv 2502.09992).

    Every key of the published `config.json` is a field and is written back on save. The standard name of a field,
    where it has one, is given in brackets and may be used everywhere instead, in the constructor too.

    Args:
        vocab_size (`int`, *optional*, defaults to 126464):
            Rows of the token embedding and of the head. Ids from 126349 on are never produced by the tokenizer.
        embedding_size (`int`, *optional*):
            Published duplicate of `vocab_size`. If both are given, this one counts the rows.
        d_model (`int`, *optional*, defaults to 4096):
            Width of the residual stream [`hidden_size`].
        n_layers (`int`, *optional*, defaults to 32):
            Number of layers [`num_hidden_layers`].
        n_heads (`int`, *optional*, defaults to 32):
            Number of query heads [`num_attention_heads`].
        n_kv_heads (`int`, *optional*):
            Number of key and value heads, `n_heads` if not given [`num_key_value_heads`].
        mlp_hidden_size (`int`, *optional*):
            Width of the feed-forward layers, `mlp_ratio * d_model` if not given [`intermediate_size`].
        mlp_ratio (`int`, *optional*, defaults to 4):
            Used only if `mlp_hidden_size` is not given.
        max_sequence_length (`int`, *optional*, defaults to 4096):
            Longest sequence, in tokens [`max_position_embeddings`].
        rope_theta (`float`, *optional*, defaults to 500000.0):
            Base of the rotary embedding.
        rope_scaling (`dict`, *optional*):
            Rope scaling, e.g. `{"rope_type": "linear", "factor": 2.0}`. No published checkpoint has one.
        rope_full_precision (`bool`, *optional*, defaults to `True`):
            Whether queries and keys are rotated in float32, whatever the dtype of the model.
        rms_norm_eps (`float`, *optional*, defaults to 1e-05):
            Added to the mean square in every RMSNorm.
        activation_type (`str`, *optional*, defaults to `"silu"`):
            Activation of the gate [`hidden_act`].
        init_std (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly initialised weights [`initializer_range`].
        attention_dropout, embedding_dropout, residual_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention probabilities, on embeddings, and on what each sub-layer adds to the residual stream.
        weight_tying (`bool`, *optional*, defaults to `False`):
            Whether the head shares the embedding matrix [`tie_word_embeddings`].
        block_causal (`bool`, *optional*, defaults to `False`):
            Whether the model was trained to write block by block, by block diffusion (`block_length` of the trainers).
            `generate` then lets a block see itself and what comes before. No published file has the key, and it is
            saved only if true.
        mask_token_id (`int`, *optional*, defaults to 126336):
            Id of the mask token `<|mdm_mask|>`.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*):
            Ids of the start token (126080 in the tokenizer, absent from the published file), of the end of text
            (126081), and of padding (the same id as the end of text: never derive an attention mask from it).

    The other published keys (`alibi`, `block_type`, `layer_norm_type`, ...) select code paths of the training code
    base that no release uses. They are kept, and a value that would need such a path is refused.

    Raises:
        ValueError: If a key asks for something that no LLaDA release uses and this model does not implement.

    Example:

    ```python
    >>> from llada import LLaDAConfig, LLaDAModelLM

    >>> config = LLaDAConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320)
    >>> config.d_model
    64
    >>> model = LLaDAModelLM(config)
    ```
    """

    model_type = "llada"
    attribute_map = {
        "attention_bias": "include_qkv_bias",
        "hidden_act": "activation_type",
        "hidden_size": "d_model",
        "initializer_range": "init_std",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "mlp_bias": "include_bias",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "tie_word_embeddings": "weight_tying",
    }
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 126464
    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    mlp_hidden_size: int | None = 12288
    mlp_ratio: int = 4
    max_sequence_length: int = 4096
    rope_theta: int | float = 500000.0
    rope_full_precision: bool = True
    rms_norm_eps: float = 1e-5
    activation_type: str = "silu"
    init_std: float = 0.02
    attention_dropout: int | float = 0.0
    embedding_dropout: int | float = 0.0
    residual_dropout: int | float = 0.0
    weight_tying: bool = False
    block_causal: bool = False
    mask_token_id: int | None = 126336
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 126081
    pad_token_id: int | None = 126081

    alibi: bool = False
    alibi_bias_max: int | float = 8.0
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    bias_for_layer_norm: bool | None = False
    block_group_size: int = 1
    block_type: str = "llama"
    flash_attention: bool = False
    include_bias: bool = False
    include_qkv_bias: bool | None = False
    init_cutoff_factor: int | float | None = None
    init_device: str | None = "meta"
    init_fn: str = "mitchell"
    input_emb_norm: bool = False
    layer_norm_type: str = "rms"
    layer_norm_with_affine: bool = True
    multi_query_attention: bool | None = None
    precision: str | None = "amp_bf16"
    rope: bool = True
    scale_logits: bool = False
    use_cache: bool = False

    def __post_init__(self, **kwargs):
        head_dim = kwargs.pop("head_dim", None)
        # published twice
        self.embedding_size = kwargs.pop("embedding_size", None)
        super().__post_init__(**kwargs)
        if head_dim not in (None, self.head_dim):
            raise ValueError(
                f"`head_dim={head_dim}` does not fit a dense LLaDA, whose heads are `d_model / n_heads` = "
                f"{self.d_model} / {self.n_heads} wide; change `d_model` or `n_heads`."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "LLaDAConfig | LLaDAMoEConfig":
        """
        As in transformers, except that the configuration of LLaDA-MoE, whose files have the same `model_type`, is a
        [`LLaDAMoEConfig`].
        """
        if cls is LLaDAConfig and config_dict.get("num_experts") is not None:
            return LLaDAMoEConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    def derive_fields(self) -> None:
        super().derive_fields()
        if self.mlp_hidden_size is None:
            self.mlp_hidden_size = self.mlp_ratio * self.d_model

    @property
    def embedding_size(self) -> int:
        """`int`: Rows of the token embedding, the same number as `vocab_size`."""
        return self.vocab_size

    @embedding_size.setter
    def embedding_size(self, rows: int | None) -> None:
        self.vocab_size = rows or self.vocab_size

    @property
    def head_dim(self) -> int:
        """`int`: Width of one attention head."""
        return self.d_model // self.n_heads

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "embedding_size": self.vocab_size}

    def validate_architecture(self) -> None:
        """Refuses what no LLaDA release uses, and heads that do not divide the width."""
        implemented = {
            "alibi": (False,),
            "attention_layer_norm": (False,),
            "bias_for_layer_norm": (False, None),
            "block_type": ("llama",),
            "include_bias": (False,),
            "include_qkv_bias": (False, None),
            "input_emb_norm": (False,),
            "layer_norm_type": ("rms",),
            "layer_norm_with_affine": (True,),
            "multi_query_attention": (False, None),
            "rope": (True,),
            "scale_logits": (False,),
        }
        self._refuse_other_values("LLaDA", implemented)
        if self.n_heads > 0 and self.d_model % self.n_heads:
            raise ValueError(f"`d_model={self.d_model}` is not a multiple of `n_heads={self.n_heads}`.")
        super().validate_architecture()


__all__ = ["LLaDAConfig"]
