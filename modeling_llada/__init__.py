"""The mask predictor: configurations, models, checkpoint layouts, adapters and the forward process."""

from .adapters import LORA_TARGET_MODULES, translate_adapter_config
from .configuration_illada import ILLaDAConfig
from .configuration_llada import LLaDAConfig
from .configuration_llada2_moe import LLaDA2MoeConfig
from .configuration_llada_moe import LLaDAMoEConfig
from .modeling_llada import (
    ILLaDAForCausalLM,
    ILLaDAModel,
    LLaDA2MoeModel,
    LLaDA2MoeModelLM,
    LLaDAModel,
    LLaDAModelLM,
    LLaDAMoEModel,
    LLaDAMoEModelLM,
)


__all__ = [
    "LORA_TARGET_MODULES",
    "ILLaDAConfig",
    "ILLaDAForCausalLM",
    "ILLaDAModel",
    "LLaDA2MoeConfig",
    "LLaDA2MoeModel",
    "LLaDA2MoeModelLM",
    "LLaDAConfig",
    "LLaDAMoEConfig",
    "LLaDAMoEModel",
    "LLaDAMoEModelLM",
    "LLaDAModel",
    "LLaDAModelLM",
    "translate_adapter_config",
]
