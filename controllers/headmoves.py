"""What predictors fitted to recorded head movement ask of a session: its rate and horizon, and so many samples of history."""

from collections.abc import Sequence

import numpy as np

from controllers.api import VpObservation, VpSession
from testbed.errors import UserError
from traces.viewports import RATE_HZ


def recent_deg(observations: Sequence[VpObservation], samples: int) -> np.ndarray:
    """The last `samples` of each history, (N, samples, 3); where there are fewer, the head stood still before the oldest."""
    kept = [each.history_deg[-samples:] for each in observations]
    return np.stack([np.concatenate([np.repeat(each[:1], samples - len(each), axis=0), each]) for each in kept])


def check_fitted(policy: str, session: VpSession, horizon: int) -> None:
    """Raise `UserError` for a session that a predictor of `horizon` samples at `RATE_HZ` can't serve."""
    if session.rate_hz != RATE_HZ:
        raise UserError(f"policy {policy}: the session has {session.rate_hz:g} samples a second, wanted the {RATE_HZ} it was fitted to")
    if session.horizon > horizon:
        raise UserError(
            f"policy {policy}: the session's horizon is {session.horizon} samples, wanted at most the {horizon} it was fitted to"
        )
