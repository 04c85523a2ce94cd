"""A straight line through the history of each angle, drawn on into the future."""

import numpy as np

from controllers.api import VpObservation, VpPolicy
from testbed.vp_metrics import TURN_DEG


class LinearRegression(VpPolicy):
    """Least squares over all samples of the history, each angle by itself, as NetLLM's `viewport_prediction/models/regression.py`.

    Their code fits again after each predicted sample; a predicted sample lies on the line, so all fits are this one. Neither does it know
    that 180 and -180 degrees are one angle: a head that passes there seems to turn once around. `unwrap` undoes that jump first.
    """

    label = "Linear regression"
    colour = "#1f77b4"
    citation = "Wu et al., NetLLM, SIGCOMM 2024, section 5.1 (LR); Qian et al., Flare, MobiCom 2018"

    def __init__(self, unwrap: bool = False) -> None:
        self.unwrap = unwrap

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        known_deg = observation.history_deg
        if self.unwrap:
            known_deg = np.unwrap(known_deg, period=TURN_DEG, axis=0)
        count = len(known_deg)
        number = np.arange(count) - (count - 1) / 2  # around 0, (H,)
        slope_deg = number @ known_deg / max(number @ number, 1e-9)  # a sample, (3,)
        ahead = np.arange(1, observation.session.horizon + 1) + (count - 1) / 2  # (horizon,)
        return known_deg.mean(axis=0) + ahead[:, None] * slope_deg
