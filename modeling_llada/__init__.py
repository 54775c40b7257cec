"""The mask predictor: configurations, models, checkpoint layouts, adapters and the forward process."""

from .adapters import LORA_TARGET_MODULES, lora_target_modules, translate_adapter_config
from .classification_heads import (
    ILLaDAForSequenceClassification,
    ILLaDAForTokenClassification,
    LLaDA2MoeForSequenceClassification,
    LLaDA2MoeForTokenClassification,
    LLaDAForSequenceClassification,
    LLaDAForTokenClassification,
    LLaDAMoEForSequenceClassification,
    LLaDAMoEForTokenClassification,
)
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
from .router_losses import expert_usage, load_balancing_loss, router_aux_loss, router_z_loss


__all__ = [
    "LORA_TARGET_MODULES",
    "ILLaDAConfig",
    "ILLaDAForCausalLM",
    "ILLaDAForSequenceClassification",
    "ILLaDAForTokenClassification",
    "ILLaDAModel",
    "LLaDA2MoeConfig",
    "LLaDA2MoeForSequenceClassification",
    "LLaDA2MoeForTokenClassification",
    "LLaDA2MoeModel",
    "LLaDA2MoeModelLM",
    "LLaDAConfig",
    "LLaDAForSequenceClassification",
    "LLaDAForTokenClassification",
    "LLaDAMoEConfig",
    "LLaDAMoEForSequenceClassification",
    "LLaDAMoEForTokenClassification",
    "LLaDAMoEModel",
    "LLaDAMoEModelLM",
    "LLaDAModel",
    "LLaDAModelLM",
    "expert_usage",
    "load_balancing_loss",
    "lora_target_modules",
    "router_aux_loss",
    "router_z_loss",
    "translate_adapter_config",
]
