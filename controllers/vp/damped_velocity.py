"""The head goes on turning, slower with each sample, and soon stands."""

import numpy as np

from controllers.api import VpObservation, VpPolicy
from testbed.errors import UserError
from testbed.vp_metrics import wrapped_deg


class DampedVelocity(VpPolicy):
    """The last turn, the short way around, times `decay` in the first sample, its square in the second, and so on (a damped trend:
    Gardner and McKenzie, Management Science 1985).

    The default has the least error of 0.3, 0.4, ... 0.7 on the training split of Jin2022 (`tests/golden/test_vp_reference.py`).
    """

    label = "Damped velocity"
    colour = "#2ca02c"
    citation = "Gardner and McKenzie, Forecasting Trends in Time Series, Management Science 31(10), 1985"

    def __init__(self, decay: float = 0.5) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"policy damped_velocity: decay is {decay:g}, wanted 0 (static) to 1 (never slower)")
        self.decay = decay

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        known_deg = observation.history_deg
        turn_deg = wrapped_deg(known_deg[-1] - known_deg[max(len(known_deg) - 2, 0)])  # (3,)
        carried = np.cumsum(self.decay ** np.arange(1, observation.session.horizon + 1))  # (horizon,)
        return known_deg[-1] + carried[:, None] * turn_deg
