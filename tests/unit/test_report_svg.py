"""Scales, ticks and paths."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.drawing.figures import strip_axis
from testbed.drawing.svg import Scale, figure, line_path, marker, num, padded, step_points, text, tick_label

ranges = st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4)).map(lambda r: (r[0], r[0] + r[1]))


@given(ranges, st.integers(2, 12))
def test_ticks_are_round_few_and_inside(limits, count):
    low, high = limits
    ticks = Scale(low, high, 0, 100).ticks(count)
    assert 1 <= len(ticks) <= 2 * count + 2
    assert all(low - 1e-6 * (high - low) <= t <= high + 1e-6 * (high - low) for t in ticks)
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-6


@given(st.floats(1e-3, 1e3), st.floats(1.5, 1e6))
def test_logarithmic_ticks_are_inside(low, factor):
    ticks = Scale(low, low * factor, 0, 100, log=True).ticks()
    assert all(low * 0.99 <= t <= low * factor * 1.01 for t in ticks)
    assert factor < 10 or ticks


@given(ranges, st.floats(-1e5, 1e5))
def test_scale_never_leaves_its_pixels(limits, value):
    assert 10 <= Scale(*limits, 10, 90)(value) <= 90


@given(st.lists(st.tuples(st.floats(-5e3, 5e3), st.floats(-5e3, 5e3)), min_size=1, max_size=40))
def test_relative_path_does_not_drift(points):
    path = line_path(points)
    x = y = 0.0
    for command, arguments in re.findall(r"([Mlhv])([^Mlhv]*)", path):
        values = [float(v) for v in arguments.split()]
        if command == "M":
            x, y = values
        elif command == "l":
            x, y = x + values[0], y + values[1]
        elif command == "h":
            x += values[0]
        else:
            y += values[0]
    assert x == pytest.approx(points[-1][0], abs=0.06) and y == pytest.approx(points[-1][1], abs=0.06)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9), max_size=9))
@example([0.3, 0.1 + 0.2])
@example([0.0, 5e-324])
def test_padded_range_is_never_empty_and_can_be_drawn(values):
    low, high = padded(values)
    assert low < high and all(low <= v <= high for v in values)
    assert strip_axis(Scale(low, high, 8, 230), "QoE").count('class="tick"') >= 2


def test_small_parts():
    assert (num(3.0), num(3.04), num(-0.26)) == ("3", "3", "-0.3")
    assert tick_label(-0.5) == "\N{MINUS SIGN}0.5" and tick_label(-0.0) == "0"
    assert step_points([0, 1, 3], [5, 6]) == [(0, 5), (1, 5), (1, 6), (3, 6)]
    assert "&lt;b&gt;" in text(0, 0, "<b>") and "&quot;" in figure(1, 1, '"', [])


@pytest.mark.parametrize("shape", range(6))
def test_markers_of_policies_differ_in_shape(shape):
    assert marker(10, 10, shape, "m") not in {marker(10, 10, other, "m") for other in range(6) if other != shape}
    assert marker(10, 10, shape, "m") == marker(10, 10, shape + 6, "m")


@pytest.mark.parametrize("low, high", [(128.5, 129.9), (0.0, 1.0), (1.08, 1.33), (-120.0, 340.0), (0.001, 0.0019)])
def test_labels_above_strips_do_not_run_into_each_other(low, high):
    drawn = strip_axis(Scale(low, high, 8, 230), "JCT s")
    found = re.findall(r'<text[^>]*x="([\d.]+)"[^>]*>([^<]+)</text>', drawn)
    ends = [(float(x) - 3 * len(label), float(x) + 3 * len(label)) for x, label in found]
    assert len(ends) >= 2 and all(one[1] < next_one[0] for one, next_one in pairwise(ends))
    assert drawn.count('class="tick"') >= len(found)
