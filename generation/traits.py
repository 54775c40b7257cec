"""What rules are like, and which likes cannot work together: no rule thinks of another one."""

# trait -> what a rule that has it does
TRAITS = {
    "aligns_rows": "computes the same positions in all rows",
    "bars_the_end": "never proposes an end of text",
    "changes_order": "changes which of the proposals come first",
    "compares_probabilities": "compares the probabilities of proposed tokens with a bound",
    "computes_a_part": "computes a part of the canvas, from where the text stood before",
    "counts_by_score": "lets the scores of a step say how many positions it commits",
    "ends_block_early": "commits all that is left of a block at once",
    "fills_no_block": "decides without a look at how much of the block is left",
    "has_its_own_steps": "says by itself how many steps there are",
    "keeps_committed": "does not compute what was committed",
    "leaves_out_suffix": "leaves out a part of what follows the block",
    "moves_text": "moves text that stands behind a mask",
    "needs_a_plan": "works on a fixed number of positions per step",
    "needs_block_causal": "keeps what only block-causal attention never changes",
    "needs_full_attention": "keeps keys and values of a model with full attention",
    "needs_the_end": "asks where the model would end the text",
    "needs_the_suffix": "needs all that follows the block",
    "needs_whole_canvas": "decides by itself what of the whole canvas is computed",
    "orders_at_random": "commits any positions",
    "outlasts_a_plan": "leaves masks that a plan of steps would not fill",
    "plans_steps": "shares out the masks over a number of steps",
    "ranks": "adds up over the surest positions",
    "remembers_positions": "remembers earlier steps by position",
    "reopens": "changes what was committed",
    "reveals_by_chance": "commits positions whatever the model says there",
    "scores_no_probability": "ranks by something that is no probability",
    "sees_both_sides": "needs attention to what follows the current block",
    "settles_for_good": "counts on what is decided to stay",
    "takes_one_row": "computes other positions in every row",
}

# two traits -> why they cannot work together
CONFLICTS = {
    ("needs_whole_canvas", "computes_a_part"): "the one decides what of the whole canvas is computed, and the other "
    "leaves a part of it out or reads it from a cache",
    ("moves_text", "computes_a_part"): "what stands behind inserted masks moves, and a cache or a window has it where "
    "it was",
    ("moves_text", "remembers_positions"): "a position that moves leaves its history behind",
    ("moves_text", "reopens"): "edits keep the places of a block, and masks that are inserted move them; a token that "
    "is taken back is unsure, which would be taken for want of room",
    ("has_its_own_steps", "plans_steps"): "a plan shares out the masks that there are, and the other says by itself "
    "how many steps there are",
    ("keeps_committed", "reopens"): "committed positions are not computed, so nothing tells whether they are still "
    "likely",
    ("needs_the_suffix", "leaves_out_suffix"): "the one needs what follows a block, in its cache or to see where the "
    "text ends, and the other leaves it out",
    ("needs_the_end", "bars_the_end"): "an end of text is what tells how long the answer is",
    ("settles_for_good", "reopens"): "the one counts on what is decided, or has no history of it, and the other opens "
    "it again",
    (
        "ends_block_early",
        "fills_no_block",
    ): "the one ends a block by what is left of it, and the other says nothing of the block",
    ("needs_a_plan", "counts_by_score"): "the one works on a fixed plan, and the other compares the scores of the "
    'model; for the end of text use `suppress_eos="confidence"`',
    ("compares_probabilities", "scores_no_probability"): "the one compares the probabilities of the proposed tokens, "
    'and the other ranks by something else; use `remasking="low_confidence"`',
    ("reveals_by_chance", "changes_order"): "positions are revealed in any order; against an early end of text use "
    '`suppress_eos="logits"`',
    ("ranks", "orders_at_random"): 'the one keeps the surest, and `remasking="random"` any; use "entropy", '
    '"low_confidence" or "margin"',
}


def conflict(first: frozenset[str], second: frozenset[str]) -> str | None:
    """
    Why two rules cannot work together.

    Args:
        first, second (`frozenset[str]`):
            Their traits. In a sentence of [`CONFLICTS`] "the one" is the first.

    Returns:
        `str` or `None`: The reason, `None` if there is none, or if it is said of them the other way round.
    """
    reasons = (reason for (one, other), reason in CONFLICTS.items() if one in first and other in second)
    return next(reasons, None)


__all__ = ["CONFLICTS", "TRAITS", "conflict"]
