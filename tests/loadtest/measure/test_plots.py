"""Plots are well-formed SVG, with everything inside the frame."""

import re
from xml.etree import ElementTree

import pytest

from loadtest.measure.plots import Series, nice_ticks, plot


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, (0, 20, 40, 60, 80, 100)),
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 0, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 730, (0, 200, 400, 600, 800)),
        (0, 0.0004, (0, 0.0001, 0.0002, 0.0003, 0.0004)),
    ],
)
def test_ticks_are_round_and_reach_around_the_data(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "points", [((0, 0),), ((50, 3.2), (100, 900.0)), ((1, 0.0), (2, 0.0)), tuple((x, x % 7) for x in range(200))]
)
def test_everything_is_inside_the_frame(points: tuple[tuple[float, float], ...], logarithmic: bool) -> None:
    drawn = plot("T", x="x", y="y", series=[Series(name="one", points=points)], logarithmic=logarithmic)
    root = ElementTree.fromstring(drawn)
    for text in re.findall(r'points="([^"]*)"', drawn):
        for place in text.split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= 560
            assert 0 <= y <= 300
    assert root.find("svg") is not None


def test_names_are_escaped_and_nothing_is_drawn_of_nothing() -> None:
    drawn = plot("<b>", x="&", y='"', series=[Series(name="a<b", points=((1, 1),))])
    ElementTree.fromstring(drawn)
    assert "a&lt;b" in drawn
    assert plot("T", x="x", y="y", series=[Series(name="none", points=())]) == ""
