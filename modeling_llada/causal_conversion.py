"""
From a causal model to a masked diffusion model: the same tensors, attention in both directions, and a mask token.

What [`from_causal`] returns computes what the causal model computes if it is given a causal mask, and has learned
nothing yet: it is to be trained before it writes anything.
"""

import re
from typing import TYPE_CHECKING, Any

import torch

from .configuration_illada import ILLaDAConfig
from .modeling_llada import ILLaDAForCausalLM


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# what the families have that no key of their configuration says
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"use_qkv_bias": True},
    "qwen3": {"use_qk_norm": True},
}
_SAME_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings rms_norm_eps attention_bias mlp_bias attention_dropout initializer_range "
    "tie_word_embeddings bos_token_id pad_token_id eos_token_id"
)
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_NEW_TOKEN = "<|mask|>"


def from_causal(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    mask_token: str | int | None = None,
    right_shift_logits: bool = False,
) -> ILLaDAForCausalLM:
    """
    Makes a masked diffusion model of a causal one. All weights are those of the causal model, which stays as it is.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal model with its head: Llama, Mistral, Qwen2 or Qwen3.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer, which gets the mask token, and pads on the left as sampling needs it.
        mask_token (`str` or `int`, *optional*):
            The mask token: an added token of the tokenizer that no text holds, a new one, or, without a tokenizer, an
            id. If not given, it is the one that the tokenizer has, the first that its name says is reserved or unused,
            or a new one, `"<|mask|>"`. An id beyond the vocabulary gets a new row, the mean of the others.
        right_shift_logits (`bool`, *optional*, defaults to `False`):
            Whether tokens are still predicted from the position before them (arXiv 2410.17891). The configuration
            keeps it, and sampling, training and scoring heed it.

    Returns:
        [`ILLaDAForCausalLM`]: the model, in the dtype and on the device of the causal one, in evaluation mode.

    Raises:
        ValueError: If the model has something that this architecture has not, or the mask token cannot be used.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> from llada import from_causal

    >>> tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B")
    >>> model = from_causal(AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B"), tokenizer)
    >>> model.save_pretrained("qwen3-diffusion")
    >>> tokenizer.save_pretrained("qwen3-diffusion")
    ```
    """
    values = _read_configuration(model)
    tensors = _read_tensors(model)
    mask_token_id = _find_mask_token(tokenizer, mask_token, values["vocab_size"])
    values["vocab_size"] = max(values["vocab_size"], mask_token_id + 1)
    for name in tensors.keys() & set(_VOCABULARY):
        tensors[name] = _add_rows(tensors[name], values["vocab_size"])

    config = ILLaDAConfig(**values, mask_token_id=mask_token_id, right_shift_logits=right_shift_logits)
    with torch.device("meta"):
        converted = ILLaDAForCausalLM(config)
    keys = converted.load_state_dict(tensors, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing, unexpected = set(keys.missing_keys) - tied, set(keys.unexpected_keys)
    if missing or unexpected:
        raise ValueError(
            f"The {type(model).__name__} has not the tensors of its family: without {sorted(missing)}, with "
            f"{sorted(unexpected)} beside them. Give a model as it was published, adapters merged."
        )
    converted.tie_weights()
    if eos_token_id := getattr(model.generation_config, "eos_token_id", None):
        # instruction-tuned models end a turn with another token than a text
        converted.generation_config.eos_token_id = eos_token_id
    return converted.to(model.device).eval()


def _read_configuration(model: "PreTrainedModel") -> dict[str, Any]:
    """The values of [`ILLaDAConfig`] that describe a causal model."""
    config: PreTrainedConfig = model.config
    family = config.model_type
    if family not in _FAMILIES or getattr(model, "lm_head", None) is None:
        raise ValueError(
            f"`from_causal` was given a {type(model).__name__} (`{family}`); give a causal model with its head of one "
            f"of the families {', '.join(_FAMILIES)}."
        )
    sliding = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
    if sliding or (family == "mistral" and config.sliding_window is not None):
        raise ValueError(
            f"Layers of the model see only the {config.sliding_window} positions before them (`sliding_window`), and "
            "diffusion models see everything. If all texts are shorter, set `model.config.sliding_window = None` "
            '(Mistral), or every entry of `model.config.layer_types` to "full_attention" (Qwen).'
        )
    # what was read from a GGUF file says that it is quantised, and is not
    quantised = [name for name, weight in model.named_parameters() if not _is_plain(weight)]
    if quantised:
        raise ValueError(f"`{quantised[0]}` of the model is quantised; load it in float32 or bfloat16.")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or "meta" in {device.type for device in devices}:
        raise ValueError(
            f"The model is spread over {', '.join(sorted(map(str, devices)))}; load it without `device_map`."
        )
    values = {name: getattr(config, name) for name in _SAME_KEYS.split() if hasattr(config, name)}
    return {
        **values,
        **_FAMILIES[family],
        "rope_parameters": dict(config.rope_parameters),
        "dtype": model.dtype,
        "attn_implementation": config._attn_implementation,
    }


def _is_plain(weight: torch.nn.Parameter) -> bool:
    plain = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return type(weight.data) is torch.Tensor and weight.dtype in plain


def _read_tensors(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Copies of the tensors, a tied head left out."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def _add_rows(weight: torch.Tensor, number: int) -> torch.Tensor:
    """A matrix of `number` rows, the new ones the mean of the others: in the middle of what the model knows."""
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(number - len(weight), -1)])


def _find_mask_token(tokenizer: "PreTrainedTokenizerBase | None", mask_token: str | int | None, size: int) -> int:
    """The id of the mask token, which the tokenizer, if there is one, has afterwards."""
    if tokenizer is None:
        if isinstance(mask_token, str):
            raise ValueError(f"`mask_token={mask_token!r}` needs a `tokenizer` that knows its id; give it, or an id.")
        number = size if mask_token is None else mask_token
        if not 0 <= number <= size:
            raise ValueError(f"`mask_token={number}` is no id; write one from 0 to {size}, the next new one.")
        return number
    if isinstance(mask_token, int):
        mask_token = tokenizer.convert_ids_to_tokens(mask_token)
    if mask_token is None:
        reserved = (name for name in tokenizer.get_added_vocab() if re.search("reserved|unused", name))
        mask_token = tokenizer.mask_token or next(reserved, _NEW_TOKEN)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    if mask_token in vocabulary and mask_token not in added:
        raise ValueError(
            f"`mask_token={mask_token!r}` is a piece of ordinary text; name an added token that no text holds "
            f"({', '.join(sorted(added)[:3])}, ...), or a new one."
        )
    used = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    if mask_token in used:
        raise ValueError(
            f"`mask_token={mask_token!r}` is the start, end, padding or unknown token of the tokenizer; name another."
        )
    tokenizer.add_special_tokens({"mask_token": mask_token})
    tokenizer.padding_side = "left"
    assert tokenizer.mask_token_id is not None, "it has just been given"
    return tokenizer.mask_token_id


__all__ = ["from_causal"]
