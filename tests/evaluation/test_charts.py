"""The charts are what was measured."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llada.evaluation.charts import COLOURS, Line, bar_chart, line_chart, save_chart


SPACE = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("log_x", [False, True])
def test_points_stand_where_they_belong(log_x: bool, tmp_path: Path) -> None:
    points = [(1.0, 3.0), (10.0, 2.0), (100.0, 1.0)]
    lines = [Line("one & two", points, 0), Line("other", [(5.0, 0.0)], 7, dashed=True)]
    figure = line_chart("A < B", "x", "y", lines, log_x)

    (axes,) = figure.axes
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [list(point) for point in points]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert (first.get_color(), second.get_color()) == (COLOURS[0], COLOURS[1])
    assert axes.get_xscale() == ("log" if log_x else "linear")
    for name in ("chart.svg", "again.svg"):
        save_chart(figure, tmp_path / name)
    texts = [text.text for text in ElementTree.parse(tmp_path / "chart.svg").iter(f"{SPACE}text")]
    assert {"A < B", "one & two", "other", "x", "y"} <= set(texts)


def test_the_same_chart_is_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / name / "chart.svg" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        save_chart(bar_chart("t", "y", ["left"], {"a": [(1.0, 0.0)]}), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bars_are_as_high_as_their_values() -> None:
    bars = {"a": [(1.0, 0.0), (0.5, 0.1)], "b": [None, (0.25, 0.0)], "c": [None, None]}
    (axes,) = bar_chart("t", "y", ["left", "right"], bars).axes

    found = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert [height for _, height in found] == [1.0, 0.5, 0.25]
    # beside each other around the place of their group
    assert [place for place, _ in found] == pytest.approx([-0.8 / 3, 1 - 0.8 / 3, 1])
    errors = axes.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in errors] == [[1.0, 1.0], [pytest.approx(0.4), pytest.approx(0.6)]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["left", "right"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'llada-hf\[eval\]'"):
        line_chart("", "", "", [])
