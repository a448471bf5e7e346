"""Line charts as inline SVG: data -> positions in a small box, which the browser scales to any width.

Every series has a colour class (`series-0` ...) and a shape of its points (:func:`marker`), which tells
them apart without colour. The numbers of all points are listed under the chart. Intervals are drawn as vertical bars.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 12.0, 34.0
_RIGHT_WITH_AXIS = 46.0
_PADDING = 0.06  # of the range, above and below the data


@dataclass(frozen=True, slots=True)
class Datum:
    """One point; `low` and `high` where it has an interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """`colour`: number of the colour. `right`: measured on the second axis. `dashed`: of a reference arm."""

    label: str
    colour: int
    data: Sequence[Datum]
    dashed: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """`at`: position in the box."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A drawn point with its numbers as text."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A drawn series."""

    series: Series
    path: str
    marks: list[Mark]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawn chart. `horizontal`: y of a line across it, with `horizontal_label` (a baseline)."""

    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    right_ticks: list[Tick] = field(default_factory=list)
    y_label: str = ""
    right_label: str = ""
    horizontal: float | None = None
    horizontal_label: str = ""
    right_edge: float = WIDTH - RIGHT


@dataclass(frozen=True, slots=True)
class _Axis:
    """Value -> position: linear or logarithmic, from `begin` to `end` of the box."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.begin + (self.end - self.begin) * (value - low) / (high - low), 2)

    def ticks(self) -> list[Tick]:
        values = _decades(self.low, self.high) if self.log else _nice(self.low, self.high)
        return [Tick(self.at(value), short(value)) for value in values]


def marker(number: int, x: float, y: float, size: float = 3.2) -> str:
    """The outline of a point of the series with colour `number`: circle, square, diamond or triangle; an SVG path."""
    corners = (
        None,
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        ((0, -1.3), (1.2, 1), (-1.2, 1)),
    )[number % 4]
    if corners is None:
        return f"M{x - size} {y}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    return "M" + "L".join(f"{x + dx * size:.2f} {y + dy * size:.2f}" for dx, dy in corners) + "z"


def draw(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    right_label: str = "",
    log_y: bool = False,
    whole_x: bool = False,
    baseline: tuple[float, str] | None = None,
) -> Chart | None:
    """A chart of what has data; None when nothing has. `whole_x`: x counts something (loops), each has a tick.

    Points that are no finite number are left out (a run that diverged); on a logarithmic axis those of 0 or less, too.
    """
    series = [_finite(one) for one in series]
    series = [_positive(one) if log_y and not one.right else one for one in series]
    series = [one for one in series if one.data]
    left = [one for one in series if not one.right]
    if not left:
        return None
    with_right = [one for one in series if one.right]
    edge = WIDTH - (_RIGHT_WITH_AXIS if with_right else RIGHT)
    x_axis = _x_axis([datum.x for one in series for datum in one.data], edge, whole_x)
    y_axis = _y_axis(left, log_y, [baseline[0]] if baseline else [])
    right_axis = _y_axis(with_right, False, []) if with_right else None
    whole = sorted({datum.x for one in series for datum in one.data})
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        right_label=right_label,
        lines=[_line(one, x_axis, right_axis if one.right else y_axis, x_label) for one in series],
        x_ticks=[Tick(x_axis.at(x), f"{x:g}") for x in whole] if whole_x else x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        right_ticks=right_axis.ticks() if right_axis else [],
        horizontal=y_axis.at(baseline[0]) if baseline else None,
        horizontal_label=baseline[1] if baseline else "",
        right_edge=edge,
    )


def _finite(series: Series) -> Series:
    def known(value: float | None) -> bool:
        return value is not None and math.isfinite(value)

    kept = [
        Datum(d.x, d.y, *((d.low, d.high) if known(d.low) and known(d.high) else ())) for d in series.data if known(d.y)
    ]
    return replace(series, data=kept)


def _positive(series: Series) -> Series:
    kept = [datum for datum in series.data if datum.y > 0]
    kept = [Datum(d.x, d.y, d.low if (d.low or 0) > 0 else None, d.high) for d in kept]
    return replace(series, data=kept)


def _x_axis(values: list[float], edge: float, whole: bool) -> _Axis:
    low, high = min(values), max(values)
    if whole:
        return _Axis(low - 0.3, high + 0.3, LEFT, edge)
    return _Axis(0.0, high or 1.0, LEFT, edge)


def _y_axis(series: Sequence[Series], log: bool, others: list[float]) -> _Axis:
    values = [value for one in series for d in one.data for value in (d.y, d.low, d.high) if value is not None] + others
    low, high = min(values), max(values)
    if log:
        span = max(math.log10(high / low), 0.3) * _PADDING
        return _Axis(low / 10**span, high * 10**span, HEIGHT - BOTTOM, TOP, log=True)
    span = (high - low) or abs(high) or 1.0
    return _Axis(low - span * _PADDING, high + span * _PADDING, HEIGHT - BOTTOM, TOP)


def _line(series: Series, x_axis: _Axis, y_axis: _Axis, x_label: str) -> Line:
    marks = [
        Mark(
            x_axis.at(d.x),
            y_axis.at(d.y),
            None if d.low is None else y_axis.at(d.low),
            None if d.high is None else y_axis.at(d.high),
            f"{series.label}: {d.y:.4g} at {x_label} {short(d.x)}",
        )
        for d in series.data
    ]
    path = "".join(f"{'L' if number else 'M'}{mark.x} {mark.y}" for number, mark in enumerate(marks))
    return Line(series, path, marks)


def _nice(low: float, high: float, most: int = 6) -> list[float]:
    """Round values inside of the range, at most `most`."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten; only these powers where that were too many, other values where too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    coarse = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(fine) < 2:
        return _nice(low, high, most=4)
    return fine if len(fine) <= 6 or len(coarse) < 2 else coarse


def short(value: float) -> str:
    """At most three digits and a power: `0.02`, `1.5M`, `3e-06`, `2.1e+18`."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.3g}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"
