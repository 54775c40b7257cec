"""Trainers for masked diffusion language models, in the manner of TRL."""

from .data.data_collator import DataCollatorForMaskedDiffusion
from .data.preference_collator import DataCollatorForMaskedPreference
from .distill_config import LLaDADistillConfig
from .distill_trainer import DataCollatorForTrajectories, LLaDADistillTrainer
from .dpo_config import LLaDADPOConfig
from .dpo_trainer import LLaDADPOTrainer
from .grpo_config import LLaDAGRPOConfig
from .grpo_trainer import LLaDAGRPOTrainer
from .pre_trainer import LLaDAPreTrainer
from .pretraining_config import LLaDAPreTrainingConfig
from .rewards import exact_match, reasoning_gym_task
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
    "LLaDAGRPOConfig",
    "LLaDAGRPOTrainer",
    "LLaDAPreTrainer",
    "LLaDAPreTrainingConfig",
    "LLaDASFTConfig",
    "LLaDASFTTrainer",
    "SampleCallback",
    "collect_trajectories",
    "exact_match",
    "reasoning_gym_task",
]
