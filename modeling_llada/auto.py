"""What makes transformers know the models and checkpoints of this package."""

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .checkpoint_layouts import register_checkpoint_layouts
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
from .feature_extraction import register_feature_extraction
from .modeling_llada import ILLaDAForCausalLM, LLaDA2MoeModelLM, LLaDAModelLM, LLaDAMoEModelLM


MODELS = {
    ILLaDAConfig: ILLaDAForCausalLM,
    LLaDA2MoeConfig: LLaDA2MoeModelLM,
    LLaDAConfig: LLaDAModelLM,
    LLaDAMoEConfig: LLaDAMoEModelLM,
}

# the first classifies texts, the second tokens
CLASSIFIERS = {
    ILLaDAConfig: (ILLaDAForSequenceClassification, ILLaDAForTokenClassification),
    LLaDA2MoeConfig: (LLaDA2MoeForSequenceClassification, LLaDA2MoeForTokenClassification),
    LLaDAConfig: (LLaDAForSequenceClassification, LLaDAForTokenClassification),
    LLaDAMoEConfig: (LLaDAMoEForSequenceClassification, LLaDAMoEForTokenClassification),
}


def register_with_transformers() -> None:
    """
    Register every config and model with `AutoConfig`, `AutoModel`, `AutoModelForMaskedLM` and `AutoModelForCausalLM`,
    their classifiers with `AutoModelForSequenceClassification` and `AutoModelForTokenClassification`, the tensor names
    of published checkpoints, and what `pipeline("feature-extraction")` returns of these models.

    The first three model classes give the model with the head, as the `auto_map` of most published checkpoints does:
    existing scripts read `AutoModel.from_pretrained(...)(input_ids).logits`. Only the `auto_map` of LLaDA2 names the
    backbone for `AutoModel`; here that is [`LLaDA2MoeModel`], or `model.model`. A registered class goes before the
    code a checkpoint carries, with and without `trust_remote_code=True`.
    """
    register_checkpoint_layouts()
    register_feature_extraction()
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for model_type in config_class.other_model_types:
            CONFIG_MAPPING.register(model_type, config_class, exist_ok=True)
        for auto_class in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
            auto_class.register(config_class, model_class, exist_ok=True)
        for_texts, for_tokens = CLASSIFIERS[config_class]
        AutoModelForSequenceClassification.register(config_class, for_texts, exist_ok=True)
        AutoModelForTokenClassification.register(config_class, for_tokens, exist_ok=True)


__all__ = ["CLASSIFIERS", "MODELS", "register_with_transformers"]
