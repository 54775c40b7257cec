"""Credit for tokens that the model has proposed before: credit decoding (arXiv 2510.06133)."""

import torch

from ..canvas import Canvas
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, probability, setting


class Credit:
    """
    Raises the logits of what was the likeliest token of a position in earlier steps, so that steady proposals are
    committed earlier (credit decoding, arXiv 2510.06133; dInfer, arXiv 2510.08666). In every step the credit of a
    position fades, its likeliest token gains a power of its probability, and logits grow by the logarithm of one plus
    the credit.

    Args:
        weight (`float`):
            Factor of what is added to logits.
        exponent (`float`):
            Power of the probability that is gained. Below 1 it favours the unlikely.
        decay (`float`):
            Share of the credit that is left after a step.
    """

    def __init__(self, weight: float, exponent: float, decay: float):
        self.weight = weight
        self.exponent = exponent
        self.decay = decay

    def begin(self, canvas: Canvas, block: Block) -> None:
        """Called before the first step of a block. No credit passes from one block to another."""
        self.block = block
        self.account: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(positions, vocab_size)`):
                Logits of some positions.
            canvas ([`Canvas`]):
                The canvas they were computed from.
            index (`torch.LongTensor` of shape `(positions,)`):
                Where they are, counted through the canvas row by row.

        Returns:
            `torch.FloatTensor` of shape `(positions, vocab_size)`: The logits, raised where masks of the block are.
        """
        (rows, length), width = canvas.tokens.shape, self.block.end - self.block.start
        if self.account is None:
            self.account = logits.new_zeros((rows * width, logits.shape[1]), dtype=torch.float32)
        counts = (canvas.masked & self.block.inside).flatten()[index]
        cells = index // length * width + (index % length - self.block.start).clamp(0, width - 1)
        best, token = logits.float().softmax(1).max(1)
        # where nothing is allowed nothing is gained
        gained = (best**self.exponent).masked_fill(~counts | best.isnan(), 0.0)
        self.account.mul_(self.decay)
        self.account.view(-1).scatter_add_(0, cells * logits.shape[1] + token, gained)
        gain = self.weight * self.account[cells].log1p().masked_fill(~counts.unsqueeze(1), 0.0)
        return logits + gain.to(logits.dtype)


class CreditDecoding(Rule):
    """Logits raised by credit."""

    switches = ("credit_weight",)
    traits = frozenset({"remembers_positions"})
    table = Table(
        "any",
        "credit",
        "[2510.06133](https://arxiv.org/abs/2510.06133), dInfer",
        "block × vocabulary floats per row",
        "a threshold that steady, unsure tokens never reach. May reinforce repetitions",
    )

    class Settings(Fields):
        credit_weight: float | None = setting(
            float,
            "Raises the logits of what was the likeliest token of a position in earlier steps, by this times the "
            "logarithm of one plus its credit (credit decoding, arXiv 2510.06133).",
            least=0,
        )
        credit_exponent: float | None = setting(
            float,
            "Power of the probability that the likeliest token gains as credit in a step.",
            default=0.2,
            least=0,
        )
        credit_decay: float | None = probability("Share of the credit that is left after a step.", default=0.8)

    @classmethod
    def logits(cls, setup: Setup) -> Credit:
        config = setup.config
        return Credit(config.credit_weight, cls.get(config, "credit_exponent"), cls.get(config, "credit_decay"))


__all__ = ["Credit", "CreditDecoding"]
