"""A trace as a page to step through: one file, which asks nothing of the network."""

import json
from dataclasses import asdict
from pathlib import Path

from .story import Story


_PAGE = Path(__file__).with_name("replay_page.html")


def replay_page(story: Story) -> str:
    """
    A page with a slider, on which the steps are played, with what was written when, how sure the model was of it, and
    what else it thought of, if the trace has that (`trace_top_k`).

    Args:
        story ([`~llada.Replay`]):
            What happened.

    Returns:
        `str`: The page, as HTML.
    """
    steps = story.trace.step_of
    data = {
        "steps": story.num_steps,
        "tokens": sum(step >= 0 for step in steps),
        "rate": f"{story.trace.tokens_per_forward:.1f}",
        "text": story.text,
        "settings": story.trace.settings,
        "cells": [asdict(cell) for cell in story.cells],
    }
    # what is text here must not end the element that holds it
    content = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return _PAGE.read_text(encoding="utf-8").replace("{{DATA}}", content)


__all__ = ["replay_page"]
