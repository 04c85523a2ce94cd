"""How far predicted viewports are from the true ones: degrees around the circle, per axis and over all three, and along the sphere.

| measure | of a window with T future samples |
| --- | --- |
| `mae_deg` | mean over T samples and three axes of the error around the circle, 0 to 180 degrees: the metric |
| `axis_mae_deg` | the same of each axis |
| `rmse_deg` | root of the mean squared error around the circle (NetLLM's `compute_rmse` forgets to wrap) |
| `great_circle_deg` | mean over T samples of the angle between the true and the predicted line of sight |
| `published_mae_deg` | the MAE of NetLLM's code, which takes off one turn at most |

The published rule differs only where a prediction is more than 540 degrees from the truth: methods that extrapolate the jump of an angle
from 180 to -180 get there. On the published test windows linear regression scores 19.47 by the published rule and 17.86 around the
circle (`tests/golden/test_vp_reference.py`).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.viewports import Floats, gaze

Angles = NDArray[Any]
TURN_DEG = 360.0


def wrapped_deg(angles_deg: Angles) -> Floats:
    """The same angles within -180 (included) to 180 (excluded) degrees."""
    return np.asarray((np.asarray(angles_deg, dtype=float) + TURN_DEG / 2) % TURN_DEG - TURN_DEG / 2)


def error_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """The way around the circle from one angle to the other, 0 to 180 degrees, elementwise."""
    return np.abs(wrapped_deg(np.asarray(predicted_deg, dtype=float) - true_deg))


def published_error_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """As NetLLM's `viewport_prediction/utils/metrics.py`: the least of the difference, and the difference one turn up or down."""
    off_deg = np.asarray(predicted_deg, dtype=float) - true_deg
    return np.minimum(np.abs(off_deg), np.minimum(np.abs(off_deg - TURN_DEG), np.abs(off_deg + TURN_DEG)))


def mae_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """(N,) of (N, T, 3)."""
    return error_deg(predicted_deg, true_deg).mean(axis=(1, 2))


def axis_mae_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """(N, 3), roll, pitch and yaw, of (N, T, 3)."""
    return error_deg(predicted_deg, true_deg).mean(axis=1)


def published_mae_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """(N,) of (N, T, 3)."""
    return published_error_deg(predicted_deg, true_deg).mean(axis=(1, 2))


def rmse_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """(N,) of (N, T, 3)."""
    return np.sqrt((error_deg(predicted_deg, true_deg) ** 2).mean(axis=(1, 2)))


def great_circle_deg(predicted_deg: Angles, true_deg: Angles) -> Floats:
    """(N,) of (N, T, 3). By chords: arccos would lose small angles to rounding."""
    chord = np.linalg.norm(gaze(predicted_deg) - gaze(true_deg), axis=-1)  # (N, T)
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0.0, 1.0))).mean(axis=1)
