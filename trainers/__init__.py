"""Trainers for masked diffusion language models, in the manner of TRL."""

from .data.data_collator import DataCollatorForMaskedDiffusion
from .data.preference_collator import DataCollatorForMaskedPreference
from .distill_config import LLaDADistillConfig
from .distill_trainer import DataCollatorForTrajectories, LLaDADistillTrainer
from .dpo_config import LLaDADPOConfig
from .dpo_trainer import LLaDADPOTrainer
from .pre_trainer import LLaDAPreTrainer
from .pretraining_config import LLaDAPreTrainingConfig
from .sampling_callback import SampleCallback
from .sft_config import LLaDASFTConfig
from .sft_trainer import LLaDASFTTrainer
from .trajectories import collect_trajectories


__all__ = [
    "DataCollatorForMaskedDiffusion",
    "DataCollatorForMaskedPreference",
    "DataCollatorForTrajectories",
    "LLaDADPOConfig",
    "LLaDADPOTrainer",
    "LLaDADistillConfig",
    "LLaDADistillTrainer",
    "LLaDAPreTrainer",
    "LLaDAPreTrainingConfig",
    "LLaDASFTConfig",
    "LLaDASFTTrainer",
    "SampleCallback",
    "collect_trajectories",
]
