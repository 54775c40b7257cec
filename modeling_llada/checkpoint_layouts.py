"""How published tensor names correspond to the names in memory, in both directions."""

from collections.abc import Iterable

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming


# published leaf name of a layer -> name in memory
LLADA_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}

# published name outside the layers -> name in memory
LLADA_MODEL_NAMES = {
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
}


def llada_layout() -> list[WeightRenaming]:
    """
    The renamings between a LLaDA-8B checkpoint and [`LLaDAModelLM`].

    Patterns are anchored at both ends of the module name: `ff_out` is the head at the top level and the
    down-projection inside a layer, and transformers searches patterns and reverses them on save.
    """
    model = [
        WeightRenaming(rf"^{published.replace('.', chr(92) + '.')}\.", f"{name}.")
        for published, name in LLADA_MODEL_NAMES.items()
    ]
    layers = [
        WeightRenaming(rf"^model\.transformer\.blocks\.(\d+)\.{published}\.", rf"model.layers.\1.{name}.")
        for published, name in LLADA_LAYER_NAMES.items()
    ]
    return model + layers


def in_memory_names(published: Iterable[str]) -> dict[str, str]:
    """
    The name in memory of every tensor.

    Args:
        published (`Iterable[str]`):
            Names of tensors. Those that are no published ones stand for themselves.

    Returns:
        `dict[str, str]`: Name in memory by the name given.
    """
    layout, names = llada_layout(), {}
    for name in published:
        renamed = (renaming.rename_source_key(name) for renaming in layout)
        names[name] = next((new for new, pattern in renamed if pattern is not None), name)
    return names


def register_checkpoint_layouts() -> None:
    """Tells transformers and PEFT how to read and write published checkpoints. iLLaDA needs no renaming."""
    register_checkpoint_conversion_mapping("llada", llada_layout(), overwrite=True)


__all__ = ["LLADA_LAYER_NAMES", "LLADA_MODEL_NAMES", "in_memory_names", "llada_layout", "register_checkpoint_layouts"]
