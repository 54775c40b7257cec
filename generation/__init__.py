"""The reverse process: turning masks into text, and showing it happen."""

from .canvas import Canvas, Delta
from .configuration_diffusion import DiffusionGenerationConfig
from .denoising import Listener
from .listeners.trace import Trace
from .mixin import DiffusionGenerateOutput, LLaDAGenerationMixin
from .positional import CanvasLogitsProcessor
from .presets import preset
from .proposal import Proposal
from .regions import Block
from .rules.revision import Revision
from .rules.selection import AdaptiveSelector, Selector


__all__ = [
    "AdaptiveSelector",
    "Block",
    "Canvas",
    "CanvasLogitsProcessor",
    "Delta",
    "DiffusionGenerateOutput",
    "DiffusionGenerationConfig",
    "LLaDAGenerationMixin",
    "Listener",
    "Proposal",
    "Revision",
    "Selector",
    "Trace",
    "preset",
]
