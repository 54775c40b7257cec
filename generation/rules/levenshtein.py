"""Editing that inserts and deletes: LLaDA2.2 (technical report, §3.1)."""

import torch

from ..canvas import Canvas
from ..proposal import Proposal
from ..regions import Block
from ..rule import Fields, Rule, Setup, Table, setting
from .editing import Editing, TokenEditing


# after this many steps a block is filled without further editing, as on the model card
MAX_STEPS_PER_BLOCK = 1000


class LevenshteinEditing(TokenEditing):
    """
    Edits the current block as [`~llada.generation.rules.editing.TokenEditing`] does, and moves its text (LLaDA2.2
    technical report, §3.1). Where the model proposes one of two control tokens for a committed token, and is surer
    than the threshold:

    - *delete* removes the token; what follows it moves to the left, and the block ends with another mask;
    - *split* puts a mask before the token; what follows moves to the right, and what leaves the block is lost.

    A step that opens masks fills at least one more than it opens, as far as there are masks to fill. A step that would
    lead back to an earlier state of the block writes another token, that this position has not held yet, where it is
    least sure. Control tokens are never written.

    Args:
        editing_threshold (`float`):
            Confidence that a proposal has to exceed. 0 edits everything that differs.
        max_post_steps (`int`):
            Steps per block that may find no mask.
        delete_token_id, split_token_id (`int`):
            The control tokens.
    """

    def __init__(self, editing_threshold: float, max_post_steps: int, delete_token_id: int, split_token_id: int):
        super().__init__(editing_threshold, max_post_steps)
        self.delete_token_id = delete_token_id
        self.split_token_id = split_token_id

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.window = slice(block.start, block.end)
        text = canvas.tokens[:, self.window]
        # every state the block has been in, [step, batch, block]
        self.states = text.new_empty(MAX_STEPS_PER_BLOCK + 1, *text.shape)
        self.states[0] = text
        self.num_states = 1

    def watched(self, canvas: Canvas, block: Block) -> torch.Tensor:
        watched = super().watched(canvas, block)
        return watched if self.num_states <= MAX_STEPS_PER_BLOCK else torch.zeros_like(watched)

    def revise(
        self, proposal: Proposal, committed: torch.Tensor, canvas: Canvas, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        proposed = proposal.spread(proposal.tokens, canvas.tokens)
        sure = proposal.spread(proposal.confidence, 0.0) > self.editing_threshold
        if self.num_states > MAX_STEPS_PER_BLOCK:
            return committed, torch.where(committed, proposed, canvas.tokens)
        watched = block.inside & ~canvas.masked & self.open.unsqueeze(1)
        edited = watched & sure & (proposed != canvas.tokens)
        deleted, split = edited & (proposed == self.delete_token_id), edited & (proposed == self.split_token_id)
        written = edited & ~deleted & ~split

        committed = committed | self._fill(proposal, (deleted | split).sum(1))
        tokens = torch.where(written | committed, proposed, canvas.tokens)
        after = self._lay_out(tokens, deleted, split, canvas, block)
        states = self.states[: self.num_states]
        returns = (states == after[:, self.window]).all(2).any(0) & edited.any(1)
        tokens = self._write_anew(tokens, written & returns.unsqueeze(1), proposal)
        after = self._lay_out(tokens, deleted, split, canvas, block)

        self.states[self.num_states] = after[:, self.window]
        self.num_states += 1
        self.open = self.open & ~(self.clean & ~edited.any(1))
        return block.inside & (after != canvas.tokens), after

    @staticmethod
    def _fill(proposal: Proposal, num_opened: torch.Tensor) -> torch.Tensor:
        """The best masked positions, one more than are opened in each row that opens any."""
        scores = proposal.eligible_scores()
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        wanted = torch.where(num_opened > 0, num_opened + 1, 0)
        return (rank < wanted.unsqueeze(1)) & (scores > -torch.inf)

    @staticmethod
    def _lay_out(
        tokens: torch.Tensor, deleted: torch.Tensor, split: torch.Tensor, canvas: Canvas, block: Block
    ) -> torch.Tensor:
        """The canvas after deleting and splitting, with every block as long as before."""
        length = tokens.shape[1]
        places = (1 - deleted.long() + split.long()) * block.inside  # how many each token takes
        first = block.inside.int().argmax(1, keepdim=True)
        start = first + places.cumsum(1) - places
        end = first + block.inside.sum(1, keepdim=True)
        after = torch.where(block.inside, canvas.mask_token_id, tokens)
        # one more column takes what leaves the block
        after = torch.cat([after, after[:, :1]], dim=1)
        moved = torch.where(block.inside & ~deleted, start + split.long(), length)
        after.scatter_(1, torch.where(moved < end, moved, length), tokens)
        return torch.where(block.inside, after[:, :length], tokens)

    def _write_anew(self, tokens: torch.Tensor, written: torch.Tensor, proposal: Proposal) -> torch.Tensor:
        """Where a row would return to an earlier state: another token at the written position that is least sure."""
        doubt = proposal.spread(proposal.confidence, torch.inf).masked_fill(~written, torch.inf)
        position = doubt.argmin(1, keepdim=True)
        place = proposal.spread(torch.arange(len(proposal.index), device=tokens.device), 0).gather(1, position)
        logits = proposal.logits[place.squeeze(1)].clone()  # [batch, vocab_size]
        inside = (position - self.window.start).clamp(0, self.states.shape[2] - 1)
        held = self.states[: self.num_states].gather(2, inside.expand(self.num_states, -1, 1)).squeeze(2).T
        logits.scatter_(1, held, -torch.inf)
        for control in (self.delete_token_id, self.split_token_id):
            logits[:, control].fill_(-torch.inf)
        anew = torch.where(written.any(1, keepdim=True), logits.argmax(1, keepdim=True), tokens.gather(1, position))
        return tokens.scatter(1, position, anew)


class Levenshtein(Rule):
    """Two tokens that delete and make room."""

    switches = ("editing_threshold",)
    refines = "editing_threshold"
    table = Table(
        "any",
        "inserting and deleting",
        "LLaDA2.2 report, §3.1",
        "masks that edits open have to be filled",
        "LLaDA2.2, which was trained for it",
    )

    class Settings(Fields):
        delete_token_id: int | None = setting(
            int,
            "Id of the token by which LLaDA2.2 deletes a token, that of the model by default. With "
            "`editing_threshold`, such proposals are carried out; they are never written.",
            least=0,
            alone=True,
        )
        split_token_id: int | None = setting(
            int, "Id of the token by which it makes room before a token, likewise.", least=0, alone=True
        )

    @classmethod
    def revision(cls, setup: Setup) -> LevenshteinEditing | None:
        config, canvas = setup.config, setup.canvas
        if not config.control_token_ids:
            return None
        # what follows a block moves with it, so nothing given may follow
        if bool((canvas.has_suffix & canvas.masked).any()):
            raise ValueError(
                "Text was given after a mask, and this model edits by inserting and deleting, which would move it. "
                "Pass `delete_token_id=None, split_token_id=None` to edit without."
            )
        post_steps = Editing.get(config, "max_post_steps")
        return LevenshteinEditing(config.editing_threshold, post_steps, *config.control_token_ids)


__all__ = ["MAX_STEPS_PER_BLOCK", "Levenshtein", "LevenshteinEditing"]
