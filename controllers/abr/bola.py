"""BOLA: the level that gains most utility per bit, weighed by how full the buffer is (Lyapunov optimisation)."""

from math import log
from typing import Literal

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from testbed.errors import UserError

MINIMUM_S = 10.0
"""Buffer kept in reserve: below it the lowest level always scores above zero (dash.js `BolaRule.js`, MINIMUM_BUFFER_S)."""

PER_LEVEL_S = 2.0
"""Room in the buffer for each level of the ladder (dash.js `BolaRule.js`, MINIMUM_BUFFER_PER_BITRATE_LEVEL_S)."""

GAMMA_P = 5.0
"""The paper's choice of gamma x p (Spiteri et al., section V)."""


class Bola(AbrPolicy):
    """BOLA-O without its pauses (Spiteri et al., INFOCOM 2016): argmax over levels m of (V (v_m + gamma p) - buffer) / bitrate_m.

    v_m = ln(bitrate_m / bitrate_0); V is in seconds of media; nominal bitrates stand for sizes, as in dash.js and SABRE.

    | `variant` | |
    | --- | --- |
    | `basic` | that rule alone |
    | `o` (default) | no step up beyond what the last throughput carries, and no step down because of it |
    | `u` | as `o`, but one level more than the throughput carries |

    | `parameters` | |
    | --- | --- |
    | `dashjs` (default) | level 0 scores zero at 10 s of buffer and the top level at `target_s`: 10 s + 2 s a level |
    | `paper` | gamma p = 5, V = (`target_s` - chunk) / (v_max + 5), `target_s`: the session's buffer cap |

    The paper's Algorithm 1 also lowers the target near a video's start and end and pauses requests above it; a policy here answers levels
    only, so the buffer may grow to the cap, where the rule stays at the top level that `o` allows. The virtual buffer of dash.js (BOLA-E,
    Spiteri et al., MMSys 2018) is not here: throughput enters through `o` alone. Both defaults were chosen on fcc/train and norway/train.
    """

    label = "BOLA"
    colour = "#9467bd"
    citation = "Spiteri et al., BOLA: Near-Optimal Bitrate Adaptation for Online Videos, INFOCOM 2016 (BOLA-O; parameters of dash.js)"

    def __init__(
        self,
        variant: Literal["basic", "o", "u"] = "o",
        parameters: Literal["dashjs", "paper"] = "dashjs",
        target_s: float | None = None,
    ) -> None:
        if target_s is not None and not target_s > MINIMUM_S:
            raise UserError(f"policy bola: target_s is {target_s}, wanted more than {MINIMUM_S}")
        self.variant, self.parameters, self.target_s = variant, parameters, target_s

    def reset(self, session: AbrSession, seed: int) -> None:
        """Derive V and gamma p from the session's ladder."""
        super().reset(session, seed)
        video = session.video
        self._utilities = [log(bps / video.bitrates_bps[0]) for bps in video.bitrates_bps]
        top = self._utilities[-1] or 1.0  # a ladder of one level
        if self.parameters == "dashjs":
            target_s = self.target_s or MINIMUM_S + PER_LEVEL_S * video.levels
            self._v_s = (target_s - MINIMUM_S) / top
            self._gamma_p = MINIMUM_S / self._v_s
        else:
            self._gamma_p = GAMMA_P
            self._v_s = max((self.target_s or session.buffer_cap_s) - video.chunk_s, 0.0) / (top + GAMMA_P)

    def decide(self, observation: AbrObservation) -> int:
        """The level of highest score; `o` and `u` check a step up against the last throughput."""
        level = self._best(observation)
        last = observation.last_level
        if self.variant == "basic" or level <= last:
            return level
        carried = observation.video.highest_level_below(observation.history[-1].throughput_bps)
        if level <= carried:
            return level
        if last > carried:
            return last
        return carried + 1 if self.variant == "u" else carried

    def _best(self, observation: AbrObservation) -> int:
        bitrates_bps = observation.video.bitrates_bps
        scores = [
            (self._v_s * (utility + self._gamma_p) - observation.buffer_s) / bps
            for utility, bps in zip(self._utilities, bitrates_bps, strict=True)
        ]
        return max(range(len(scores)), key=lambda level: (scores[level], level))
