"""What LLaDA does against answers that end too early: ends of text are not proposed, or come last."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from ..scores import Score


class EndsLast(Score):
    """
    Scores with every end of text behind every other token.

    Args:
        score ([`~llada.generation.scores.Score`]):
            The scores.
        eos_token_ids (`torch.LongTensor` of shape `(ids,)`):
            Ids that end the text.
    """

    def __init__(self, score: Score, eos_token_ids: torch.Tensor):
        self.score = score
        self.eos_token_ids = eos_token_ids

    def begin(self, canvas: Canvas, block: Block) -> None:
        self.score.begin(canvas, block)

    def __call__(self, proposal: Proposal, canvas: Canvas) -> torch.Tensor:
        scores = self.score(proposal, canvas)
        behind = self.score.spread(proposal.logits.shape[1]) + 1.0
        return torch.where(torch.isin(proposal.tokens, self.eos_token_ids), scores - behind, scores)


class NoEndProposed(Rule):
    """No end of text at all."""

    switches = ("suppress_eos",)
    value = "logits"
    traits = frozenset({"bars_the_end"})
    in_reference = True
    table = Table("order", "no end of text", "LLaDA", "nothing", "one long block, answers of a fixed length")

    class Settings(Fields):
        suppress_eos: str | None = setting(
            str,
            'What is done against ending too early: `"logits"` never proposes an end-of-text token, `"confidence"` '
            'proposes it but commits it last, `"rising"` multiplies its confidence by a weight that rises from '
            "`eos_weight` to 1 over the steps (arXiv 2509.23924).",
        )


class EndsCommittedLast(Rule):
    """Ends of text after everything else."""

    switches = ("suppress_eos",)
    value = "confidence"
    traits = frozenset({"changes_order"})
    in_reference = True
    table = Table("order", "ends of text last", "LLaDA", "nothing", "one long block, where ends come too early")

    class Settings(Fields):
        pass

    @classmethod
    def wrap_score(cls, setup: Setup, score: Score) -> Score:
        return EndsLast(score, torch.tensor(setup.config.eos_token_ids, device=setup.canvas.tokens.device))


__all__ = ["EndsCommittedLast", "EndsLast", "NoEndProposed"]
