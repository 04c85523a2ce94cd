"""A linear predictor with the least mean absolute error on the training split, fitted in closed form."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpPolicy, VpSession
from controllers.headmoves import check_fitted, recent_deg
from controllers.weights import VP_SHIPPED, find_weights, read_weights
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg
from traces.viewports import FRONT_DEG

SAMPLES = 10
"""Of history, 2 s."""
FEATURES = 3 * (SAMPLES - 1) + 5
SCALE_DEG = 20.0
"""Makes features of order 1."""


def features(history_deg: np.ndarray) -> np.ndarray:
    """What the prediction is linear in, (N, FEATURES), of (N, SAMPLES, 3).

    Each earlier sample relative to the newest, roll and pitch of the newest, its yaw as sine and cosine from the front, and 1.
    """
    newest_deg = history_deg[:, -1]
    relative = wrapped_deg(history_deg[:, :-1] - newest_deg[:, None]) / SCALE_DEG  # (N, SAMPLES - 1, 3)
    from_front = np.radians(newest_deg[:, 2] - FRONT_DEG)
    heading = np.stack([np.sin(from_front), np.cos(from_front), np.ones(len(newest_deg))], axis=1)
    return np.concatenate([relative.reshape(len(newest_deg), -1), newest_deg[:, :2] / SCALE_DEG, heading], axis=1)


class LinearL1(VpPolicy):
    """Newest sample plus a linear function of the last 2 s, one for each future sample and axis, fitted by `scripts/train vp_linear_l1`.

    Absolute errors are what the metric counts: fitted to squared ones, which the few fast turns rule, it errs by 9.18 instead of 8.36
    degrees in validation (the command's first and last line). The yaw from the front matters, because people turn back to it.
    """

    label = "Linear L1"
    colour = "#17becf"
    citation = "least absolute deviations by reweighted least squares (Schlossmacher, JASA 68(344), 1973)"

    def __init__(self, weights: str = "") -> None:
        path = find_weights(weights, "linear_l1", VP_SHIPPED)
        self.coefficients = read_weights(path).get("coefficients", np.zeros((0, 0)))  # (FEATURES, horizon x 3)
        if self.coefficients.shape[0] != FEATURES or self.coefficients.shape[1] % 3:
            raise UserError(f"{path}: coefficients have shape {self.coefficients.shape}, wanted ({FEATURES}, 3 for each future sample)")

    def reset(self, session: VpSession, seed: int) -> None:
        """Start `session`; refuses a rate or a horizon that it was not fitted to."""
        super().reset(session, seed)
        check_fitted("linear_l1", session, self.coefficients.shape[1] // 3)

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[VpObservation]) -> np.ndarray:
        """(N, horizon, 3)"""
        history_deg = recent_deg(observations, SAMPLES)
        turn_deg = (features(history_deg) @ self.coefficients).reshape(len(history_deg), -1, 3)
        return history_deg[:, -1:] + turn_deg[:, : self.session.horizon]
