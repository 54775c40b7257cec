"""A trace as an animated picture (SVG) that plays wherever pictures are shown, without a script."""

import html
import unicodedata
from dataclasses import dataclass

from .colours import ink_on, order_colour
from .story import Cell, Story


# of a monospaced font of 16 pixels
_WIDTH, _LINE, _MARGIN = 9.6, 30, 16
_HOLD = 3.0
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


@dataclass
class _Box:
    x: float
    y: float
    width: float


def animated_svg(story: Story, columns: int = 80, seconds_per_step: float = 0.25) -> str:
    """
    The text as it comes about, over and over: masks as grey boxes, tokens in the colour of their step, light early and
    dark late. It shows the finished text where motion is not wanted.

    Args:
        story ([`~llada.Replay`]):
            What happened.
        columns (`int`, *optional*, defaults to 80):
            Characters in a line.
        seconds_per_step (`float`, *optional*, defaults to 0.25):
            How long a step is shown.

    Returns:
        `str`: The picture.
    """
    boxes, rows = _place(story.cells, columns)
    steps = story.num_steps
    seconds = (steps + 1) * seconds_per_step + _HOLD
    spans: set[tuple[int, int]] = set()
    shapes = []
    for cell, box in zip(story.cells, boxes, strict=True):
        shapes.append(_draw(cell, box, steps, spans))
    width, height = columns * _WIDTH + 2 * _MARGIN, rows * _LINE + 2 * _MARGIN
    frames = "".join(_keyframes(*span, steps, seconds_per_step, seconds) for span in sorted(spans))
    title = html.escape(story.text.strip() or "a text that is being denoised")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" role="img"><title>{title}</title><style>'
        f"svg{{--t:{seconds:.2f}s}}text{{font:16px {_FONT};white-space:pre}}.h{{opacity:0}}{frames}"
        "@media (prefers-reduced-motion:reduce){g{animation:none!important}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#fff"/>{"".join(shapes)}</svg>\n'
    )


def _place(cells: list[Cell], columns: int) -> tuple[list[_Box], int]:
    """Where each cell lies, broken into lines between cells, and the number of lines."""
    boxes, column, row = [], 0, 0
    for cell in cells:
        texts = [cell.given] if cell.given is not None else [write.text for write in cell.writes] or [" "]
        # what is hidden of the given text takes no room
        width = max(int(cell.given is None), *(_columns(text.rstrip("\n")) for text in texts))
        if column and column + width > columns:
            column, row = 0, row + 1
        boxes.append(_Box(_MARGIN + column * _WIDTH, _MARGIN + row * _LINE, width * _WIDTH))
        column += width
        if "\n" in texts[-1]:
            column, row = 0, row + 1
    return boxes, row + 1


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "FW") for char in text)


def _draw(cell: Cell, box: _Box, steps: int, spans: set[tuple[int, int]]) -> str:
    """The shapes of a cell, each for the steps in which it is seen, which are added to `spans`."""
    if cell.given is not None:
        return _text(cell.given, box, "#24292f")
    last = steps + 1 if cell.gone is None else cell.gone
    states = [(cell.born, "", "")]
    states += [(write.step, write.text, order_colour((write.step - 1) / max(steps - 1, 1))) for write in cell.writes]
    shapes = []
    for (start, text, colour), end in zip(states, [step for step, *_ in states[1:]] + [last], strict=True):
        if start >= end:
            continue
        if text:
            ink = ink_on(colour)
            shape = _rectangle(box, colour) + _text(text, box, ink)
        else:
            shape = _rectangle(box, "#d0d7de")
        stays = end == steps + 1
        if start == 0 and stays:
            shapes.append(shape)
            continue
        spans.add((start, end))
        hidden = "" if stays else ' class="h"'
        shapes.append(f'<g{hidden} style="animation:k{start}-{end} var(--t) step-end infinite">{shape}</g>')
    return "".join(shapes)


def _rectangle(box: _Box, colour: str) -> str:
    return (
        f'<rect x="{box.x + 0.5:.1f}" y="{box.y + 3}" width="{box.width - 1:.1f}" height="{_LINE - 6}" rx="3" '
        f'fill="{colour}"/>'
    )


def _text(text: str, box: _Box, ink: str) -> str:
    text = text.rstrip("\n")
    if not text.strip():
        return ""
    # fonts differ in their widths
    width = _columns(text) * _WIDTH
    return (
        f'<text x="{box.x:.1f}" y="{box.y + 21}" fill="{ink}" textLength="{width:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{html.escape(text)}</text>'
    )


def _keyframes(start: int, end: int, steps: int, seconds_per_step: float, seconds: float) -> str:
    """An animation in which something is seen from one step to another."""

    def at(step: int) -> str:
        return f"{100 * step * seconds_per_step / seconds:.3f}%"

    opening = "0%{opacity:1}" if start == 0 else f"0%{{opacity:0}}{at(start)}{{opacity:1}}"
    closing = "" if end > steps else f"{at(end)}{{opacity:0}}"
    return f"@keyframes k{start}-{end}{{{opening}{closing}}}"


__all__ = ["animated_svg"]
