"""The reverse process: turning masks into text, and showing it happen."""

from .canvas import Canvas, Delta
from .configuration_diffusion import DiffusionGenerationConfig
from .mixin import DiffusionGenerateOutput, LLaDAGenerationMixin
from .presets import preset
from .trace import Trace


__all__ = [
    "Canvas",
    "Delta",
    "DiffusionGenerateOutput",
    "DiffusionGenerationConfig",
    "LLaDAGenerationMixin",
    "Trace",
    "preset",
]
