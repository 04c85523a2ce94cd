"""Errors of predicted viewports: what holds of any angles, and where the published rule differs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from testbed.vp_metrics import (
    axis_mae_deg,
    error_deg,
    great_circle_deg,
    mae_deg,
    published_error_deg,
    published_mae_deg,
    rmse_deg,
    wrapped_deg,
)
from traces.viewports import gaze

ANY = arrays(float, (2, 4, 3), elements=st.floats(-2000, 2000, allow_nan=False, width=32))
MEASURES = (mae_deg, axis_mae_deg, rmse_deg, great_circle_deg)


@given(ANY, ANY, st.integers(-3, 3), st.integers(-3, 3))
def test_whole_turns_change_nothing(a, b, turns, other):
    for measure in MEASURES:
        np.testing.assert_allclose(measure(a + 360 * turns, b + 360 * other), measure(a, b), atol=1e-4)


@given(ANY, ANY)
def test_it_is_symmetric_and_at_most_half_a_turn(a, b):
    for measure in MEASURES:
        there, back = measure(a, b), measure(b, a)
        np.testing.assert_allclose(there, back, atol=1e-9)
        assert (there >= 0).all()
        assert (there <= 180 + 1e-9).all()


@given(ANY)
def test_only_the_truth_has_no_error(a):
    for measure in MEASURES:
        np.testing.assert_allclose(measure(a, a), 0, atol=1e-9)
    np.testing.assert_allclose(mae_deg(a + 1, a), 1, atol=1e-9)


@given(ANY)
def test_wrapping_keeps_the_angle(a):
    wrapped = wrapped_deg(a)
    assert ((wrapped >= -180) & (wrapped < 180)).all()
    np.testing.assert_allclose(np.exp(1j * np.radians(wrapped)), np.exp(1j * np.radians(a)), atol=1e-9)


@given(ANY, ANY)
def test_the_measures_hang_together(a, b):
    np.testing.assert_allclose(axis_mae_deg(a, b).mean(axis=1), mae_deg(a, b), atol=1e-9)
    assert (rmse_deg(a, b) >= mae_deg(a, b) - 1e-9).all()
    assert (published_error_deg(a, b) >= error_deg(a, b) - 1e-9).all()


@given(st.floats(-540, 540), st.floats(-180, 180))
def test_the_published_rule_agrees_up_to_a_turn_and_a_half(off_deg, true_deg):
    assert published_error_deg(true_deg + off_deg, true_deg) == pytest.approx(error_deg(true_deg + off_deg, true_deg), abs=1e-9)


@pytest.mark.parametrize(
    ("predicted", "true", "around", "published"), [(179, -179, 2, 2), (360, 0, 0, 0), (720, 0, 0, 360), (-900, 0, 180, 540)]
)
def test_single_angles(predicted, true, around, published):
    assert (error_deg(predicted, true), published_error_deg(predicted, true)) == (around, published)


def test_published_mae_is_the_mean_of_the_published_errors():
    predicted = np.full((1, 2, 3), 720.0)
    assert published_mae_deg(predicted, np.zeros((1, 2, 3))).tolist() == [360.0]


@given(arrays(float, (3,), elements=st.floats(-180, 180)), arrays(float, (3,), elements=st.floats(-180, 180)))
def test_the_great_circle_is_the_angle_between_lines_of_sight(a, b):
    cosine = float(np.clip(gaze(a) @ gaze(b), -1, 1))
    assert great_circle_deg(a[None, None], b[None, None])[0] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-5)


def test_a_tilted_head_looks_the_same_way():
    """At the front a change of `pitch` alone tilts the head: three degrees by the axes, none along the sphere."""
    front, tilted = np.array([[[5.0, 0.0, 90.0]]]), np.array([[[5.0, 9.0, 90.0]]])
    assert mae_deg(tilted, front)[0] == pytest.approx(3.0)
    assert great_circle_deg(tilted, front)[0] == pytest.approx(0.0, abs=1e-9)
