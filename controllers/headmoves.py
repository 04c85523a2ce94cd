"""Head movement in the form that fitted predictors take: so many samples of history, relative to the newest one."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpSession
from testbed.errors import UserError

FITTED_HZ = 5.0
"""Of the recordings that predictors are fitted on."""
FRONT_DEG = 90.0
"""The yaw at which viewers of Jin2022 look ahead (`traces/viewports.py`)."""
TURN_DEG = 360.0


def short_way_deg(angles_deg: np.ndarray) -> np.ndarray:
    """The same turns the short way around, -180 to 180 degrees."""
    return (angles_deg + TURN_DEG / 2) % TURN_DEG - TURN_DEG / 2


def recent_deg(observations: Sequence[VpObservation], samples: int) -> np.ndarray:
    """The last `samples` of each history, (N, samples, 3); where there are fewer, the head stood still before the oldest."""
    kept = [each.history_deg[-samples:] for each in observations]
    return np.stack([np.concatenate([np.repeat(each[:1], samples - len(each), axis=0), each]) for each in kept])


def check_fitted(policy: str, session: VpSession, horizon: int) -> None:
    """Raise `UserError` for a session that a predictor of `horizon` samples at `FITTED_HZ` can't serve."""
    if session.rate_hz != FITTED_HZ:
        raise UserError(f"policy {policy}: the session has {session.rate_hz:g} samples a second, wanted the {FITTED_HZ:g} it was fitted to")
    if session.horizon > horizon:
        raise UserError(
            f"policy {policy}: the session's horizon is {session.horizon} samples, wanted at most the {horizon} it was fitted to"
        )
