"""
Masked diffusion language models of the LLaDA family (arXiv 2502.09992) for transformers, TRL and PEFT.

Importing the package registers its models with the Auto classes, so that
`AutoModelForMaskedLM.from_pretrained("GSAI-ML/LLaDA-8B-Instruct")` gives a model with the methods `generate` and
`infill`. What else there is is imported when it is first asked for; the trainers need the `train` extra.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


# in a checkout the sub-packages are siblings of this folder, in an installation they are inside it
if not (Path(__file__).parent / "modeling_llada").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

from .generation.configuration_diffusion import DiffusionGenerationConfig
from .modeling_llada.auto import register_with_transformers
from .modeling_llada.classification_heads import (
    ILLaDAForSequenceClassification,
    ILLaDAForTokenClassification,
    LLaDA2MoeForSequenceClassification,
    LLaDA2MoeForTokenClassification,
    LLaDAForSequenceClassification,
    LLaDAForTokenClassification,
    LLaDAMoEForSequenceClassification,
    LLaDAMoEForTokenClassification,
)
from .modeling_llada.configuration_illada import ILLaDAConfig
from .modeling_llada.configuration_llada import LLaDAConfig
from .modeling_llada.configuration_llada2_moe import LLaDA2MoeConfig
from .modeling_llada.configuration_llada_moe import LLaDAMoEConfig
from .modeling_llada.modeling_llada import (
    ILLaDAForCausalLM,
    ILLaDAModel,
    LLaDA2MoeModel,
    LLaDA2MoeModelLM,
    LLaDAModel,
    LLaDAModelLM,
    LLaDAMoEModel,
    LLaDAMoEModelLM,
)


if TYPE_CHECKING:
    from .generation.listeners.terminal import TerminalStreamer
    from .generation.listeners.trace import Trace
    from .generation.presets import preset
    from .generation.views.replay import Replay
    from .modeling_llada.causal_conversion import from_causal
    from .trainers.data.data_collator import DataCollatorForMaskedDiffusion
    from .trainers.data.preference_collator import DataCollatorForMaskedPreference
    from .trainers.distill_config import LLaDADistillConfig
    from .trainers.distill_trainer import LLaDADistillTrainer
    from .trainers.dpo_config import LLaDADPOConfig
    from .trainers.dpo_trainer import LLaDADPOTrainer
    from .trainers.grpo_config import LLaDAGRPOConfig
    from .trainers.grpo_trainer import LLaDAGRPOTrainer
    from .trainers.pre_trainer import LLaDAPreTrainer
    from .trainers.pretraining_config import LLaDAPreTrainingConfig
    from .trainers.sampling_callback import SampleCallback
    from .trainers.sft_config import LLaDASFTConfig
    from .trainers.sft_trainer import LLaDASFTTrainer

__all__ = [
    "DataCollatorForMaskedDiffusion",
    "DataCollatorForMaskedPreference",
    "DiffusionGenerationConfig",
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
    "LLaDADPOConfig",
    "LLaDADPOTrainer",
    "LLaDADistillConfig",
    "LLaDADistillTrainer",
    "LLaDAForSequenceClassification",
    "LLaDAForTokenClassification",
    "LLaDAGRPOConfig",
    "LLaDAGRPOTrainer",
    "LLaDAMoEConfig",
    "LLaDAMoEForSequenceClassification",
    "LLaDAMoEForTokenClassification",
    "LLaDAMoEModel",
    "LLaDAMoEModelLM",
    "LLaDAModel",
    "LLaDAModelLM",
    "LLaDAPreTrainer",
    "LLaDAPreTrainingConfig",
    "LLaDASFTConfig",
    "LLaDASFTTrainer",
    "Replay",
    "SampleCallback",
    "TerminalStreamer",
    "Trace",
    "from_causal",
    "preset",
]

__version__ = "0.1.0"

_LAZY = {
    "DataCollatorForMaskedDiffusion": ".trainers.data.data_collator",
    "LLaDADistillConfig": ".trainers.distill_config",
    "LLaDADistillTrainer": ".trainers.distill_trainer",
    "DataCollatorForMaskedPreference": ".trainers.data.preference_collator",
    "LLaDADPOConfig": ".trainers.dpo_config",
    "LLaDADPOTrainer": ".trainers.dpo_trainer",
    "LLaDAGRPOConfig": ".trainers.grpo_config",
    "LLaDAGRPOTrainer": ".trainers.grpo_trainer",
    "LLaDAPreTrainer": ".trainers.pre_trainer",
    "LLaDAPreTrainingConfig": ".trainers.pretraining_config",
    "LLaDASFTConfig": ".trainers.sft_config",
    "LLaDASFTTrainer": ".trainers.sft_trainer",
    "Replay": ".generation.views.replay",
    "SampleCallback": ".trainers.sampling_callback",
    "TerminalStreamer": ".generation.listeners.terminal",
    "Trace": ".generation.listeners.trace",
    "from_causal": ".modeling_llada.causal_conversion",
    "preset": ".generation.presets",
}
_TRAIN_EXTRA = frozenset({"accelerate", "datasets", "peft", "trl"})
_SUBPACKAGES = frozenset({"evaluation", "export", "generation", "modeling_llada", "trainers"})


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f".{name}", __name__)
    if name in _LAZY:
        try:
            return getattr(import_module(_LAZY[name], __name__), name)
        except ModuleNotFoundError as error:
            if error.name in _TRAIN_EXTRA:
                raise ImportError(f"llada.{name} needs {error.name}: pip install 'llada-hf[train]'") from error
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


register_with_transformers()
