"""Plots as inline SVG: points and lines over two axes, readable in light and dark mode, without a library or a script.

Colours are those of the page in `report.py`.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WIDTH: Final = 560
_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 30, 46
_TICKS: Final = 5
#: Number of colours.
MOST_SERIES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series, drawn in one colour."""

    name: str
    points: tuple[tuple[float, float], ...]
    #: Join the points with a line, in their order; otherwise draw dots.
    joined: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A scale from data to pixels."""

    low: float
    high: float
    first_px: float
    last_px: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def px(self, value: float) -> float:
        """Return the pixel position of a value."""
        low, high, value = (self._scaled(one) for one in (self.low, self.high, value))
        return round(self.first_px + (value - low) / (high - low) * (self.last_px - self.first_px), 1)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.logarithmic else value


def plot(title: str, *, x: str, y: str, series: Sequence[Series], logarithmic: bool = False) -> str:
    """Return a `<figure>`, or "" if there are no points; `logarithmic` applies to the y axis.

    At most `MOST_SERIES` series are drawn.
    """
    series = [one for one in series if one.points][:MOST_SERIES]
    if not series:
        return ""
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points]
    across = _linear(0.0, max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _logarithmic(ys) if logarithmic else _linear(0.0, max(ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(across, up, x, y), *_key(series)]
    for index, one in enumerate(series):
        parts.append(f'<g class="s{index}">{_drawn(one, across, up)}</g>')
    label = html.escape(f"{title}: {y} over {x}")
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def nice_ticks(low: float, high: float, count: int = _TICKS) -> tuple[float, ...]:
    """Return about `count` round numbers from below `low` to above `high`."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 10) for number in range(first, last + 1))


def _linear(low: float, high: float, first_px: float, last_px: float) -> Axis:
    ticks = nice_ticks(low, high)
    return Axis(low=ticks[0], high=ticks[-1], first_px=first_px, last_px=last_px, ticks=ticks)


def _logarithmic(values: Sequence[float]) -> Axis:
    positive = [value for value in values if value > 0] or [1.0]
    first = math.floor(math.log10(min(positive)))
    last = max(first + 1, math.ceil(math.log10(max(positive))))
    ticks = tuple(10.0**power for power in range(first, last + 1))
    return Axis(low=ticks[0], high=ticks[-1], first_px=_HEIGHT - _BOTTOM, last_px=_TOP, ticks=ticks, logarithmic=True)


def _grid(across: Axis, up: Axis, x: str, y: str) -> list[str]:
    parts = []
    for tick in up.ticks:
        at = up.px(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{tick:,g}</text>')
    for tick in across.ticks:
        at = across.px(tick)
        parts.append(f'<line class="grid" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" x1="{at}" x2="{at}"/>')
        parts.append(f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:,g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{html.escape(x)}</text>')
    parts.append(
        f'<text transform="rotate(-90)" x="{-_HEIGHT / 2}" y="14" text-anchor="middle">{html.escape(y)}</text>'
    )
    return parts


def _key(series: Sequence[Series]) -> list[str]:
    width = (_WIDTH - _LEFT - _RIGHT) / len(series)
    return [
        f'<g class="s{index}"><rect class="key" x="{_LEFT + index * width:.0f}" y="8" width="10" height="10"/></g>'
        f'<text x="{_LEFT + index * width + 14:.0f}" y="17">{html.escape(one.name)}</text>'
        for index, one in enumerate(series)
    ]


def _drawn(one: Series, across: Axis, up: Axis) -> str:
    places = [(across.px(x), up.px(y)) for x, y in one.points]
    dots = (
        "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in places) if len(places) < 40 or not one.joined else ""
    )
    line = " ".join(f"{x},{y}" for x, y in places)
    return (f'<polyline points="{line}"/>' if one.joined and len(places) > 1 else "") + dots
