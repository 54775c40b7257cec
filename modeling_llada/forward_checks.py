"""What is looked at before a forward pass: unknown arguments, packed documents, and training as a causal model."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.utils import TransformersKwargs, logging
from transformers.utils.import_utils import is_tracing


logger = logging.get_logger(__name__)

# what transformers, its tokenizers, PEFT and TRL pass to every model, beside the arguments that ours have
FROM_LIBRARIES = frozenset(
    {
        *TransformersKwargs.__annotations__,
        *FlashAttentionKwargs.__annotations__,
        "output_router_indices",
        "return_dict",
        "token_type_ids",
        "use_cache",
    }
)

_UNMASKED_TRAINING = (
    "Text is trained of which not one position is masked, as tools for causal models do (`trl.SFTTrainer`, "
    "`DPOTrainer`, `GRPOTrainer`, a loop that shifts labels). A masked diffusion model learns nothing from it: it "
    "predicts what is masked, and copies what it sees. `llada.LLaDASFTTrainer` and `llada.LLaDAPreTrainer` mask it."
)


def refuse_unknown_arguments(arguments: dict[str, Any], *methods: Callable) -> None:
    """
    Refuses what no library passes and no model here takes. What is `None` is taken: it asks for nothing.

    Args:
        arguments (`dict[str, Any]`):
            What a forward pass was given beside its own arguments.
        methods (`Callable`):
            Methods that have arguments of their own, for hints.

    Raises:
        ValueError: Naming each, with the name it probably stands for.
    """
    unknown = [name for name, value in arguments.items() if name not in FROM_LIBRARIES and value is not None]
    if not unknown:
        return
    known = [name for method in methods for name in inspect.signature(method).parameters if name != "kwargs"]
    hints = [(name, difflib.get_close_matches(name, [*known, *FROM_LIBRARIES], n=1)) for name in unknown]
    listed = ", ".join(f"`{name}`" + (f" (write `{close[0]}`)" if close else "") for name, close in hints)
    raise ValueError(f"The model takes no argument {listed}.")


def refuse_packed_documents(position_ids: torch.Tensor, attention_mask: Any) -> None:
    """
    Refuses positions that occur twice in a row, as in packed documents, which would see each other. Waits for the
    device.

    Args:
        position_ids (`torch.LongTensor` of shape `(batch or 1, length)`):
            The positions that were given.
        attention_mask (`torch.Tensor` or `BlockMask`, *optional*):
            One that says by itself what a position sees may go with any positions.

    Raises:
        ValueError: If one does.
    """
    by_query = attention_mask is not None and (not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim > 2)
    if by_query or is_tracing(position_ids):
        return
    if attention_mask is not None:
        # padding has any position
        elsewhere = -1 - torch.arange(position_ids.shape[1], device=position_ids.device)
        position_ids = torch.where(attention_mask.bool(), position_ids, elsewhere)
    if (position_ids.sort(dim=1).values.diff(dim=1) == 0).any():
        raise ValueError(
            "`position_ids` has a position twice in a row, as packed documents do, and every document would see the "
            "others. Give an `attention_mask` of shape `(batch, length, length)` that says which positions see each "
            "other (`documents[:, :, None] == documents[:, None, :]`), or one document per row."
        )


def warn_of_unmasked_training(input_ids: torch.Tensor, mask_token_id: int | None) -> None:
    """
    Warns once where text without a mask is trained. Waits for the device.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`):
            The input.
        mask_token_id (`int`, *optional*):
            Id of the mask token.
    """
    if mask_token_id is None or not (input_ids == mask_token_id).any():
        logger.warning_once(_UNMASKED_TRAINING)


__all__ = ["FROM_LIBRARIES", "refuse_packed_documents", "refuse_unknown_arguments", "warn_of_unmasked_training"]
