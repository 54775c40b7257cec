"""The reverse process: from masks to text, step by step (arXiv 2502.09992, §2.4)."""

from collections.abc import Sequence

from .canvas import Canvas, Delta
from .forwards.full import FullForward
from .proposal import Proposal
from .proposer import Proposer
from .regions import Block, Region
from .rules.revision import Revision
from .rules.selection import Selector
from .watchdog import Watchdog


class Listener:
    """
    Base of what follows the sampling: streamers, traces, stopping rules, rollouts.

    `on_step` and `on_block_end` may return a change of their own, such as [`~llada.generation.canvas.Canvas.ending`]
    of some rows. It is carried out at once, before the next listener is told, and then all are told of it by
    `on_change`.
    """

    def on_proposal(self, proposal: Proposal, canvas: Canvas, block: Block) -> None:
        """
        Called in every step before the canvas changes, with what the model said of the positions that may change:
        their logits, tokens and confidences, and by [`~llada.generation.proposal.Proposal.entropy`] and `top` what
        follows from them, without another forward pass. The logits are valid until the next step.
        """

    def on_step(self, canvas: Canvas, delta: Delta) -> Delta | None:
        """Called after every step, when the canvas has changed."""

    def on_block_end(self, canvas: Canvas, block: Block) -> Delta | None:
        """Called when a block is finished."""

    def on_change(self, canvas: Canvas, delta: Delta) -> None:
        """Called after a change that a listener made."""


def denoise(
    canvas: Canvas,
    region: Region,
    forward: FullForward,
    propose: Proposer,
    selector: Selector,
    revision: Revision,
    listeners: Sequence[Listener] = (),
) -> None:
    """
    Fills the masks of a canvas.

    1. For each block of the region, until nothing in it is to be decided:
        a. Find the positions that may change. Their number is the only thing a step waits for the device to tell.
        b. Run the model, with the head at these positions only.
        c. Propose a token for each and score it.
        d. Select the positions to commit, and those to revise.
        e. Change the canvas, and tell the listeners. They may finish rows.
    2. See that no mask is left.

    Args:
        canvas ([`Canvas`]):
            The canvas. Changed in place.
        region ([`Region`]):
            The blocks.
        forward ([`FullForward`]):
            Computes logits.
        propose ([`Proposer`]):
            Turns logits into tokens and scores.
        selector ([`Selector`]):
            Chooses the positions to commit.
        revision ([`Revision`]):
            Changes what was committed, or where it stands.
        listeners (`Sequence[Listener]`, *optional*):
            Told of every step.

    Raises:
        ValueError: If a step decides nothing where something is to be decided, or masks are left at the end, see
            [`~llada.generation.watchdog.Watchdog`].
    """
    step, watchdog = 0, Watchdog(canvas)
    # 1. blocks and steps
    for block in region:
        for part in (propose, selector, revision, forward):
            part.begin(canvas, block)
        # 1.a. positions that may change
        while (eligible := selector.eligible(canvas, block)) is not None:
            wanted = eligible | selector.observed(canvas, block, eligible) | revision.watched(canvas, block)
            counts = forward.count(canvas, watchdog.mark(wanted.sum(1)))
            watchdog.check(counts)
            if not any(counts):
                if not selector.keeps_idle_steps:
                    break
                propose.skip(canvas)
                continue
            index = forward.index(canvas, wanted, counts)
            canvas.chance.count(counts)
            # 1.b. and 1.c. logits, tokens, scores
            proposal = propose(forward(canvas, wanted, counts), canvas, index, eligible)
            # 1.d. positions to commit and to revise
            for listener in listeners:
                listener.on_proposal(proposal, canvas, block)
            committed = selector.select(proposal, canvas, block)
            positions, tokens = revision.revise(proposal, committed, canvas, block)
            delta = Delta(
                step=step,
                block=block.index,
                positions=positions,
                tokens=tokens,
                confidence=proposal.spread(proposal.confidence, 0.0).float().masked_fill(~positions, 0.0),
                repeats=revision.repeats(proposal, positions, canvas, block),
            )
            watchdog.note(step, block, proposal, eligible, committed)
            # 1.e. the change
            canvas.apply(delta)
            _tell(listeners, canvas, "on_step", delta)
            step += 1
        _tell(listeners, canvas, "on_block_end", block)
    # 2. nothing is left
    watchdog.finish(canvas)


def _tell(listeners: Sequence[Listener], canvas: Canvas, event: str, about: Delta | Block) -> None:
    """Tells all listeners of an event, in their order, and carries out what they change."""
    changes = []
    for listener in listeners:
        change = getattr(listener, event)(canvas, about)
        if change is not None:
            canvas.apply(change)
            changes.append(change)
    for change in changes:
        for listener in listeners:
            listener.on_change(canvas, change)


__all__ = ["Listener", "denoise"]
