"""PANDA: probe the fair share by raising the estimate little by little, back off when the measured throughput falls short."""

from controllers.api import AbrObservation, AbrPolicy, AbrSession, Chunk
from testbed.errors import UserError

LONGEST_INTERVAL_S = 3.0
"""Longest interval that one step of the estimators takes into account (Cisco's `Panda.cpp` in libdash; the paper's chunks last 2 s)."""


class Panda(AbrPolicy):
    """PANDA (Li et al., IEEE JSAC 2014): estimate, smooth and quantise; its fourth step, scheduling, is the player's here.

    | step | rule (x: measured throughput of the last chunk, T: time between its request and the next) |
    | --- | --- |
    | estimate | X += T kappa (w - max(0, X - x + w)): up by at most w kappa a second, down in proportion to the shortfall |
    | smooth | Y -= T alpha (Y - X) |
    | quantise | up to the highest bitrate within (1 - epsilon) Y if that is up; down to the highest within Y if that is down |

    Defaults are the paper's: kappa 0.14 /s, w 0.3 Mbit/s, alpha 0.2 /s, epsilon 0.15. The dead zone's edges are those of Cisco's own
    implementation in libdash (epsilon Y above, none below). Adapted to decisions per chunk: T is the time that really passed (download
    and the pause of a full buffer), at most 3 s as in libdash, not the target that the paper derives from beta and B_min, so the buffer
    grows to the player's cap. X and Y start at the first chunk's throughput.
    """

    label = "PANDA"
    colour = "#8c564b"
    citation = "Li et al., Probe and Adapt: Rate Adaptation for HTTP Video Streaming At Scale, IEEE JSAC 2014"

    def __init__(self, kappa: float = 0.14, w_bps: float = 300_000.0, alpha: float = 0.2, epsilon: float = 0.15) -> None:
        for name, value in (("kappa", kappa), ("w_bps", w_bps), ("alpha", alpha), ("epsilon", epsilon)):
            if value < 0:
                raise UserError(f"policy panda: {name} is {value}, wanted at least 0")
        self.kappa, self.w_bps, self.alpha, self.epsilon = kappa, w_bps, alpha, epsilon

    def reset(self, session: AbrSession, seed: int) -> None:
        """Forget the estimates."""
        super().reset(session, seed)
        self._seen = 0
        self._probed_bps = self._smoothed_bps = 0.0

    def decide(self, observation: AbrObservation) -> int:
        """The last level while it lies in the dead zone, else the nearer edge of the zone."""
        for chunk in observation.history[self._seen :]:  # several, when decisions were taken elsewhere (fallbacks)
            self._learn(chunk)
        self._seen = len(observation.history)
        up = observation.video.highest_level_below(self._smoothed_bps * (1 - self.epsilon))
        down = observation.video.highest_level_below(self._smoothed_bps)
        return min(max(observation.last_level, up), down)

    def _learn(self, chunk: Chunk) -> None:
        if chunk.index == 0:
            self._probed_bps = self._smoothed_bps = chunk.throughput_bps
            return
        interval_s = min(chunk.download_s + chunk.waited_s, LONGEST_INTERVAL_S)
        excess_bps = max(0.0, self._probed_bps - chunk.throughput_bps + self.w_bps)
        self._probed_bps += min(interval_s * self.kappa, 1.0) * (self.w_bps - excess_bps)
        self._smoothed_bps -= min(interval_s * self.alpha, 1.0) * (self._smoothed_bps - self._probed_bps)
