"""The charts are what was measured."""

import re
from xml.etree import ElementTree

import pytest

from llada.evaluation.svg_charts import Line, bar_chart, line_chart


SPACE = "{http://www.w3.org/2000/svg}"


def circles(chart: str) -> list[tuple[float, float]]:
    return [
        (float(dot.get("cx")), float(dot.get("cy"))) for dot in ElementTree.fromstring(chart).iter(f"{SPACE}circle")
    ]


@pytest.mark.parametrize("log_x", [False, True])
def test_points_stand_where_they_belong(log_x: bool) -> None:
    points = [(1.0, 3.0), (10.0, 2.0), (100.0, 1.0)]
    chart = line_chart("A < B", "x", "y", [Line("one & two", points, 0)], log_x)

    (left, top), (middle, centre), (right, bottom) = circles(chart)
    assert left < middle < right and top < centre < bottom
    assert centre == pytest.approx((top + bottom) / 2, abs=0.2)
    # tenfold is halfway on a logarithmic axis
    assert (middle - left) / (right - left) == pytest.approx(0.5 if log_x else 9 / 99, abs=0.01)
    texts = [text.text for text in ElementTree.fromstring(chart).iter(f"{SPACE}text")]
    assert "A < B" in texts and "one & two" in texts


def test_a_single_point_has_an_axis() -> None:
    assert len(circles(line_chart("", "", "", [Line("one", [(5.0, 0.0)], 0)]))) == 1


def test_bars_are_as_high_as_their_values() -> None:
    chart = bar_chart("t", "y", ["left", "right"], {"a": [(1.0, 0.0), (0.5, 0.1)], "b": [None, (0.25, 0.0)]})
    bars = re.findall(r'width="[\d.]+" height="([\d.]+)" fill="#(?!fff)', chart)
    heights = [float(height) for height in bars if float(height) != 10]

    assert heights == pytest.approx([298, 149, 74.5])
    # what a value may be off by, to both sides
    assert re.findall(r"v([\d.]+)", chart) == ["59.6"]
