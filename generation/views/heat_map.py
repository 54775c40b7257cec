"""A trace as a picture that stands still: positions from left to right, steps downwards."""

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np

from .story import Cell, Story


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# more tokens than this would not be legible
_MOST_LABELS = 80


def heat_map(story: Story) -> "Figure":
    """
    How sure the model was of the token at every position after every step; white is a mask, and black lines mark when
    a position was written.

    Args:
        story ([`~llada.Replay`]):
            What happened.

    Returns:
        `matplotlib.figure.Figure`: The picture. It belongs to no window.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cells = written_cells(story)
    values, written = confidence_table(story)
    width = min(max(0.22 * len(cells), 4.0), 18.0)
    figure = Figure(figsize=(width, min(max(0.16 * story.num_steps, 2.0), 10.0)), layout="constrained")
    axes = figure.add_subplot()
    # nearest keeps every step and position a rectangle of its own
    rows = (-0.5, len(cells) - 0.5, story.num_steps + 0.5, 0.5)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", vmin=0, vmax=1, cmap="viridis", extent=rows)
    steps, positions = written.nonzero()
    axes.scatter(positions, steps + 1, marker="s", s=6, color="black", linewidths=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("position")
    axes.set_ylabel("step")
    if len(cells) <= _MOST_LABELS:
        # a dollar sign would begin a formula
        labels = [cell.writes[-1].text.strip().replace("$", r"\$") for cell in cells]
        axes.set_xticks(range(len(cells)), labels, rotation=90, fontsize=7)
    figure.colorbar(image, ax=axes, label="confidence")
    return figure


def written_cells(story: Story) -> list[Cell]:
    """The cells that some step wrote: the columns of the picture."""
    return [cell for cell in story.cells if cell.writes]


def confidence_table(story: Story) -> tuple[np.ndarray, np.ndarray]:
    """
    The numbers behind the picture.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Both of shape `(steps, positions)`: the confidence of what stands at each
        position after each step, not a number where that is a mask or the text has ended; and whether it was written
        in this step.
    """
    cells = written_cells(story)
    values = np.full((story.num_steps, len(cells)), np.nan)
    written = np.zeros(values.shape, bool)
    for column, cell in enumerate(cells):
        for write in cell.writes:
            values[write.step - 1 :, column] = write.confidence if write.text else np.nan
            written[write.step - 1, column] = bool(write.text)
        if cell.gone is not None:
            values[cell.gone - 1 :, column] = np.nan
            written[cell.gone - 1 :, column] = False
    return values, written


def heat_map_image(story: Story) -> str:
    """The picture as an element of HTML that needs no file beside it."""
    buffer = io.BytesIO()
    heat_map(story).savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(story.text, quote=True)
    return f'<img alt="confidence at each position after each step: {text}" src="data:image/png;base64,{data}">'


__all__ = ["confidence_table", "heat_map", "heat_map_image", "written_cells"]
