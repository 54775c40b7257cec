"""Trainers for masked diffusion language models, in the manner of TRL."""

from .data_collator import DataCollatorForMaskedDiffusion
from .pre_trainer import LLaDAPreTrainer
from .pretraining_config import LLaDAPreTrainingConfig
from .sampling_callback import SampleCallback
from .sft_config import LLaDASFTConfig
from .sft_trainer import LLaDASFTTrainer
from .trajectories import collect_trajectories


__all__ = [
    "DataCollatorForMaskedDiffusion",
    "LLaDAPreTrainer",
    "LLaDAPreTrainingConfig",
    "LLaDASFTConfig",
    "LLaDASFTTrainer",
    "SampleCallback",
    "collect_trajectories",
]
