"""Charts of an experiment, as SVG files (matplotlib)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# told apart by most eyes (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c4a9e", "#e69f00", "#666666")


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


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], log_x: bool = False) -> "Figure":
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
        `matplotlib.figure.Figure`: The chart, for [`save_chart`].

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _begin(title, x_label, y_label)
    for line in lines:
        xs, ys = zip(*line.points, strict=True)
        style = "--" if line.dashed else "-"
        axes.plot(xs, ys, style, marker="o", markersize=3, color=COLOURS[line.colour % len(COLOURS)], label=line.label)
    if log_x:
        axes.set_xscale("log")
    axes.legend(frameon=False)
    return figure


def bar_chart(
    title: str, y_label: str, groups: Sequence[str], bars: Mapping[str, Sequence[tuple[float, float] | None]]
) -> "Figure":
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
        `matplotlib.figure.Figure`: The chart, for [`save_chart`].

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _begin(title, "", y_label)
    width = 0.8 / len(bars)
    for row, (label, values) in enumerate(bars.items()):
        found = [(number, *bar) for number, bar in enumerate(values) if bar is not None]
        groups_of, heights, errors = zip(*found, strict=True) if found else ((), (), ())
        places = [place + width * (row - (len(bars) - 1) / 2) for place in groups_of]
        colour = COLOURS[row % len(COLOURS)]
        axes.bar(places, heights, 0.92 * width, yerr=errors or None, color=colour, ecolor="#333333", label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.legend(frameon=False, ncols=len(bars), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def save_chart(figure: "Figure", path: Path) -> None:
    """Writes a chart as SVG, with text as text, and the same file for the same chart."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def find_figure() -> "type[Figure]":
    """
    The class of charts. A command that takes long asks for it before it begins.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A chart needs matplotlib: pip install 'llada-hf[eval]'") from error
    return Figure


def _begin(title: str, x_label: str, y_label: str) -> "tuple[Figure, Axes]":
    figure = find_figure()(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


__all__ = ["COLOURS", "Line", "bar_chart", "find_figure", "line_chart", "save_chart"]
