"""The mask predictor: configurations, models, checkpoint layouts, adapters and the forward process."""

from .adapters import LORA_TARGET_MODULES, translate_adapter_config
from .configuration_illada import ILLaDAConfig
from .configuration_llada import LLaDAConfig
from .modeling_llada import ILLaDAForCausalLM, ILLaDAModel, LLaDAModel, LLaDAModelLM


__all__ = [
    "LORA_TARGET_MODULES",
    "ILLaDAConfig",
    "ILLaDAForCausalLM",
    "ILLaDAModel",
    "LLaDAConfig",
    "LLaDAModel",
    "LLaDAModelLM",
    "translate_adapter_config",
]
