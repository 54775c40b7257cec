"""Small charts as SVG, without another package: lines over an axis, and bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


# blue, vermillion, green, purple, orange: told apart by most eyes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c4a9e", "#e69f00", "#666666")
_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 48
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}"
    ".grid{stroke:#ddd}path{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """
    One line of a chart.

    Args:
        label (`str`): What it is.
        points (`list[tuple[float, float]]`): Its points.
        colour (`int`): Number of its colour.
        dashed (`bool`, *optional*, defaults to `False`): Whether it is dashed.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], log_x: bool = False) -> str:
    """
    A chart of lines.

    Args:
        title, x_label, y_label (`str`):
            What stands around it.
        lines (sequence of [`Line`]):
            The lines, with at least one point.
        log_x (`bool`, *optional*, defaults to `False`):
            Whether the axis is logarithmic. Values are positive then.

    Returns:
        `str`: The SVG.
    """
    place = math.log10 if log_x else float
    xs = [place(x) for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_low, x_high = _widen(min(xs), max(xs))
    y_low, y_high = _widen(min(ys), max(ys))
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(_LEFT + across * (x - x_low) / (x_high - x_low), 1),
            round(_HEIGHT - _BOTTOM - up * (y - y_low) / (y_high - y_low), 1),
        )

    parts = []
    for value in _ticks(y_low, y_high):
        _, height = at(x_low, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(_text(_LEFT - 6, height + 4, f"{value:g}", "end"))
    for value in _ticks(x_low, x_high):
        along, _ = at(value, y_low)
        parts.append(_text(along, _HEIGHT - _BOTTOM + 18, f"{10**value:.2g}" if log_x else f"{value:g}", "middle"))
    for number, line in enumerate(lines):
        points = [at(place(x), y) for x, y in line.points]
        colour = COLOURS[line.colour % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        path = "M" + " L".join(f"{x},{y}" for x, y in points)
        parts.append(f'<path d="{path}" stroke="{colour}"{dash}/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in points]
        height = _TOP + 14 + 16 * number
        right = _WIDTH - _RIGHT - 190
        parts.append(f'<path d="M{right},{height - 4} h24" stroke="{colour}"{dash}/>')
        parts.append(_text(right + 30, height, line.label))
    return _draw(title, x_label, y_label, parts)


def bar_chart(
    title: str, y_label: str, groups: Sequence[str], bars: Mapping[str, Sequence[tuple[float, float] | None]]
) -> str:
    """
    A chart of bars with what they may be off by.

    Args:
        title, y_label (`str`):
            What stands around it.
        groups (sequence of `str`):
            What bars stand together for.
        bars (`dict[str, list[tuple[float, float] | None]]`):
            By label, a value between 0 and 1 and its standard error for every group, or `None`.

    Returns:
        `str`: The SVG.
    """
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        height = _HEIGHT - _BOTTOM - up * value
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:g}" y2="{height:g}"/>')
        parts.append(_text(_LEFT - 6, height + 4, f"{value:.0%}", "end"))
    room = across / len(groups)
    width = room * 0.8 / len(bars)
    for number, group in enumerate(groups):
        parts.append(_text(_LEFT + room * (number + 0.5), _HEIGHT - _BOTTOM + 18, group, "middle"))
    for row, (label, values) in enumerate(bars.items()):
        colour = COLOURS[row % len(COLOURS)]
        for number, bar in enumerate(values):
            if bar is None:
                continue
            value, error = bar
            left = _LEFT + room * (number + 0.1) + width * row
            top = _HEIGHT - _BOTTOM - up * value
            size = f'width="{width * 0.92:.1f}" height="{up * value:.1f}"'
            parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}"/>')
            if error > 0:
                centre, off = left + width * 0.46, up * error
                parts.append(f'<path d="M{centre:.1f},{top - off:.1f} v{2 * off:.1f}" stroke="#333"/>')
        parts.append(f'<rect x="{_LEFT + 150 * row}" y="{_TOP - 6}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(_LEFT + 150 * row + 15, _TOP + 3, label))
    return _draw(title, "", y_label, parts)


def _draw(title: str, x_label: str, y_label: str, parts: Sequence[str]) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    around = [
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, "middle"),
        f'<text transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
            *around,
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _widen(low: float, high: float) -> tuple[float, float]:
    """A little more than what is shown, and never nothing."""
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 2.5 or factor == 1)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


__all__ = ["COLOURS", "Line", "bar_chart", "line_chart"]
