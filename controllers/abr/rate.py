"""Rate-based adaptation: the highest bitrate below the predicted throughput."""

from controllers.api import AbrObservation, AbrPolicy
from testbed.errors import UserError


class RateBased(AbrPolicy):
    """Highest level whose nominal bitrate is at most the harmonic mean of the last `window` throughputs.

    The predictor is FESTIVE's (Jiang et al., CoNEXT 2012); window 5 and no safety margin as "RB" in Yin et al. (SIGCOMM 2015) and Pensieve
    (SIGCOMM 2017, section 5.1).
    """

    label = "Rate-based"
    colour = "#bcbd22"
    citation = "Jiang et al., FESTIVE, CoNEXT 2012 (harmonic mean); as RB in Yin et al., SIGCOMM 2015"

    def __init__(self, window: int = 5) -> None:
        if window < 1:
            raise UserError(f"policy rate: window is {window} chunks, wanted at least 1")
        self.window = window

    def decide(self, observation: AbrObservation) -> int:
        """The highest level that the prediction carries."""
        recent = observation.history[-self.window :]
        predicted_bps = len(recent) / sum(1 / chunk.throughput_bps for chunk in recent)
        return observation.video.highest_level_below(predicted_bps)
