"""The head goes on turning as fast as it has on average."""

import numpy as np

from controllers.api import VpObservation, VpPolicy
from testbed.vp_metrics import TURN_DEG


class Velocity(VpPolicy):
    """Newest minus oldest sample, per sample, added for each step of the horizon, as NetLLM's `viewport_prediction/models/velocity.py`.

    Their code answers a batch with its FIRST window alone, so that the README's batch of 64 scores one window in 64; here each window has
    its answer, which fits their figures. 180 and -180 degrees are two angles to it; `unwrap` makes them one.
    """

    label = "Velocity"
    colour = "#ff7f0e"
    citation = "Wu et al., NetLLM, SIGCOMM 2024, section 5.1 (Velocity)"

    def __init__(self, unwrap: bool = False) -> None:
        self.unwrap = unwrap

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        known_deg = observation.history_deg
        if self.unwrap:
            known_deg = np.unwrap(known_deg, period=TURN_DEG, axis=0)
        step_deg = (known_deg[-1] - known_deg[0]) / max(len(known_deg) - 1, 1)  # (3,)
        steps = np.arange(1, observation.session.horizon + 1)  # (horizon,)
        return known_deg[-1] + steps[:, None] * step_deg
