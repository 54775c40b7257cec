"""What stands far behind the block is left out: the suffix window of Streaming-dLLM (arXiv 2601.17917)."""

import torch

from ..canvas import Canvas
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from .full import FullForward


class SuffixWindowForward(FullForward):
    """
    Leaves out what stands far behind the current block: of the suffix only the nearest positions and the last are
    there (Streaming-dLLM, arXiv 2601.17917). Works on top of another plan.

    Args:
        plan ([`~llada.generation.forwards.full.FullForward`]):
            What is computed of the positions that are there.
        window (`int`):
            How many positions after the block are there, besides the last of the canvas.
    """

    same_shapes = False

    def __init__(self, plan: FullForward, window: int):
        super().__init__(plan.model, plan.guidance)
        self.plan = plan
        self.window = window
        # counted once, for both
        self.row_forwards = plan.row_forwards

    def begin(self, canvas: Canvas, block: Block) -> None:
        length, device = canvas.tokens.shape[1], canvas.tokens.device
        near = min(block.end + self.window, length - 1)
        self.places = torch.cat(
            [torch.arange(near, device=device), torch.full((1,), length - 1, dtype=torch.long, device=device)]
        )
        part = canvas.part(self.places)
        self.plan.restart(canvas, part)
        inside, reached = block.inside[:, self.places], block.reached[:, self.places]
        self.plan.begin(part, Block(block.index, inside, reached, block.num_masked, block.start, block.end))

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        logits = self.plan(canvas.part(self.places), wanted[:, self.places], counts)
        self.num_forwards = self.plan.num_forwards
        return logits


class SuffixWindow(Rule):
    """A part of what follows the block is left out."""

    switches = ("suffix_window",)
    traits = frozenset({"aligns_rows", "computes_a_part", "leaves_out_suffix", "sees_both_sides"})
    table = Table(
        "plan",
        "suffix window",
        "Streaming-dLLM",
        "L is a + b + window + 1",
        "long answers; loses the signal of how long the answer is to be. With all plans above but delayed and "
        "block-causal",
    )

    class Settings(Fields):
        suffix_window: int | None = setting(
            int,
            "Leaves out what stands farther behind the current block than this many positions, except for the last "
            "one of the canvas (Streaming-dLLM, arXiv 2601.17917). Goes with every cache but `delayed` and `block`.",
            least=0,
        )

    @classmethod
    def wrap_forward(cls, setup: Setup, forward: FullForward) -> SuffixWindowForward:
        return SuffixWindowForward(forward, setup.config.suffix_window)


__all__ = ["SuffixWindow", "SuffixWindowForward"]
