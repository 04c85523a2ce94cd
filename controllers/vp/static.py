"""The head stays where it is: the least that any predictor of viewports has to beat."""

import numpy as np

from controllers.api import VpObservation, VpPolicy


class Static(VpPolicy):
    """The newest sample, for the whole horizon.

    NetLLM's paper has no such line in its figures; on their windows it beats every method shown in them (9.40 degrees, docs/vp.md).
    """

    label = "Static"
    colour = "#7f7f7f"
    citation = "the last position held, e.g. Rondon et al., TRACK, IEEE TPAMI 2022, baseline trivial-static"

    def decide(self, observation: VpObservation) -> np.ndarray:
        """(horizon, 3)"""
        return np.repeat(observation.history_deg[-1:], observation.session.horizon, axis=0)
