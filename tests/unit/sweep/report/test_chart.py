"""Positions on charts: ends, ticks, logarithms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcoder_train.sweep.report.chart import HEIGHT, LEFT, RIGHT, WIDTH, Datum, Series, _Axis, draw, short

values = st.integers(-(10**9), 10**9).map(lambda number: number / 1000)


def line(*points: tuple[float, float], **more) -> Series:
    return Series(label="a", colour=0, data=[Datum(*point) for point in points], **more)


@given(st.lists(st.tuples(st.integers(0, 10**18), values), min_size=1, max_size=20))
def test_everything_lies_inside(points):
    chart = draw("t", [line(*points)], x_label="x")
    for mark in chart.lines[0].marks:
        assert 0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT
    for tick in chart.y_ticks:
        assert 0 <= tick.at <= HEIGHT
    assert 1 <= len(chart.x_ticks) <= 8 and len(chart.y_ticks) <= 8


def test_points_lie_where_they_should():
    chart = draw("t", [line((0, 1), (50, 2), (100, 3))], x_label="x")
    xs, ys = [mark.x for mark in chart.lines[0].marks], [mark.y for mark in chart.lines[0].marks]
    assert xs == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert ys[0] > ys[1] > ys[2] and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)


def test_a_logarithmic_axis_gives_every_factor_the_same_room_and_leaves_out_what_it_cannot_show():
    chart = draw("t", [line((1, 0.01), (2, 1.0), (3, 100.0), (4, 0.0))], x_label="x", log_y=True)
    ys = [mark.y for mark in chart.lines[0].marks]
    assert len(ys) == 3 and ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.02)
    assert {"0.01", "1", "100"} <= {tick.label for tick in chart.y_ticks}


def test_a_second_axis_has_a_scale_of_its_own():
    chart = draw("t", [line((1, 1), (2, 2)), line((1, 100), (2, 200), right=True)], x_label="x", whole_x=True)
    first, second = ([mark.y for mark in one.marks] for one in chart.lines)
    assert first == second and chart.right_ticks and [tick.label for tick in chart.x_ticks] == ["1", "2"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_left_out(bad):
    chart = draw("t", [line((1, bad), (2, 1.0, bad, 2.0), (3, 2.0, 1.0, 3.0))], x_label="x", whole_x=True)
    assert [mark.low is None for mark in chart.lines[0].marks] == [True, False]


def test_nothing_to_draw_is_no_chart():
    assert draw("t", [line()], x_label="x") is None
    assert draw("t", [line((1, 0.0))], x_label="x", log_y=True) is None


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 1e3))
def test_ticks_are_round_and_inside(low, share):
    axis = _Axis(low, low + share * max(abs(low), 1e-3), 0, 100)
    ticks = [tick.at for tick in axis.ticks()]
    assert all(-0.1 <= at <= 100.1 for at in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.02"), (4.5678, "4.568"), (12_345, "12.3k"), (2.4576e6, "2.46M"), (3.2e12, "3.2T"),
     (1.5e18, "1.5e+18"), (2e-5, "2e-05")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert short(value) == text and (value == 0 or math.isfinite(value))


def test_a_narrow_logarithmic_axis_has_ticks_too():
    chart = draw("t", [line((2, 0.62), (3, 0.71))], x_label="x", log_y=True)
    assert 2 <= len(chart.y_ticks) <= 4
    assert all(0.5 < float(tick.label) < 0.8 for tick in chart.y_ticks)
