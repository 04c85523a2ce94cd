"""Model-predictive control: plan the next chunks against a pessimistic throughput prediction, play the plan's first level, plan again."""

from typing import Literal

import numpy as np

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from testbed.errors import UserError
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.units import bytes_per_s_from_bps, mbps_from_bps

WINDOW = 5
"""Chunks that the prediction and its error look back on (Yin et al., section 7; Pensieve's and NetLLM's code)."""

MAX_PLANS = 200_000
"""Most plans compared for a decision; a ladder of more than 11 levels is planned over fewer than 5 chunks."""


class RobustMPC(AbrPolicy):
    """RobustMPC (Yin et al., SIGCOMM 2015, section 4): the plan of best QoE_lin under a lower bound of the throughput.

    The bound is the harmonic mean of the last 5 throughputs over 1 + the largest relative error of the last 5 predictions. All plans of the
    next 5 chunks are compared (no table as in FastMPC); of equal ones the last in lexicographic order wins, as in Pensieve's code.
    Predicted downloads take size / bound: neither the round trip nor the buffer cap is modelled.

    | option | published code | here by default |
    | --- | --- | --- |
    | `jumps` | Genet and NetLLM: `adjacent`, one level up or down a chunk; Pensieve: `all` | `all` |
    | `chunk_index` | Pensieve, Genet, NetLLM: `late`, the plan's sizes are those of one chunk too late | `right` |
    | `robust` | `true`; `false` is MPC: the harmonic mean itself | `true` |

    A third quirk of the published code, a history of errors that runs on into the next trace, is not offered: state ends with its session.
    """

    label = "RobustMPC"
    colour = "#2ca02c"
    citation = "Yin et al., A Control-Theoretic Approach for Dynamic Adaptive Video Streaming over HTTP, SIGCOMM 2015"

    def __init__(
        self,
        jumps: Literal["all", "adjacent"] = "all",
        chunk_index: Literal["right", "late"] = "right",
        robust: bool = True,
        horizon: int = 5,
    ) -> None:
        if horizon < 1:
            raise UserError(f"policy robust_mpc: horizon is {horizon} chunks, wanted at least 1")
        self.jumps, self.late, self.robust, self.horizon = jumps, int(chunk_index == "late"), robust, horizon

    def reset(self, session: AbrSession, seed: int) -> None:
        """Lay out the plans for the session's ladder."""
        super().reset(session, seed)
        self._plans = {steps: _Plans(session.video.bitrates_bps, steps) for steps in range(1, self._longest(session) + 1)}

    def _longest(self, session: AbrSession) -> int:
        fitting = [h for h in range(1, self.horizon + 1) if session.video.levels**h <= MAX_PLANS]
        return max(fitting, default=1)

    def decide(self, observation: AbrObservation) -> int:
        """The first level of the best plan."""
        bound_bps = self._bound_bps(observation)
        plans = self._plans[min(max(self._plans), observation.chunks_left)]
        first = observation.chunk_index + self.late
        sizes_bytes = [observation.video.sizes_bytes[min(first + k, len(observation.video.sizes_bytes) - 1)] for k in range(plans.steps)]
        downloads_s = np.asarray(sizes_bytes) / bytes_per_s_from_bps(bound_bps)  # (steps, levels)
        stall_s = plans.stall_s(downloads_s, observation.buffer_s, observation.video.chunk_s)
        return plans.best(stall_s, observation.last_level, self.jumps == "adjacent")

    def _bound_bps(self, observation: AbrObservation) -> float:
        """The prediction for the next chunk, lowered by how wrong the last ones were.

        The past predictions are worked out again from the history, so that a decision taken elsewhere (a fallback) leaves no gap.
        """
        measured_bps = [chunk.throughput_bps for chunk in observation.history[-2 * WINDOW :]]
        predicted_bps = _harmonic_mean(measured_bps[-WINDOW:])
        if not self.robust:
            return predicted_bps
        known = range(max(1, len(measured_bps) - WINDOW), len(measured_bps))  # the last chunks that had a prediction
        errors = [abs(_harmonic_mean(measured_bps[max(0, k - WINDOW) : k]) - measured_bps[k]) / measured_bps[k] for k in known]
        return predicted_bps / (1 + max(errors, default=0.0))


def _harmonic_mean(rates_bps: list[float]) -> float:
    return len(rates_bps) / sum(1 / bps for bps in rates_bps)


class _Plans:
    """All sequences of `steps` levels in lexicographic order, with what they are worth before stalls."""

    def __init__(self, bitrates_bps: tuple[int, ...], steps: int) -> None:
        levels = len(bitrates_bps)
        self.steps, self.levels = steps, levels
        self.sequences = np.indices((levels,) * steps).reshape(steps, -1).T  # (plans, steps)
        self.bitrates_bps = np.asarray(bitrates_bps, dtype=float)  # (levels,)
        chosen_bps = self.bitrates_bps[self.sequences]  # (plans, steps)
        self.first_bps = chosen_bps[:, 0]  # (plans,)
        self.bitrate_mbps = mbps_from_bps(chosen_bps.sum(axis=1))  # (plans,)
        self.switches_bps = np.abs(np.diff(chosen_bps)).sum(axis=1)  # (plans,), without the change to the first
        self.steady = (np.abs(np.diff(self.sequences)) <= 1).all(axis=1)  # (plans,): at most one level a chunk

    def stall_s(self, downloads_s: np.ndarray, buffer_s: float, chunk_s: float) -> np.ndarray:
        """Stall of each plan. Plans that begin alike share their beginning: step k is worked out once for each of levels^k beginnings."""
        left_s, stalled_s = np.array([buffer_s]), np.zeros(1)
        for download_s in downloads_s:
            after_s = (left_s[:, None] - download_s[None, :]).ravel()  # (beginnings,)
            stalled_s = np.repeat(stalled_s, self.levels) + np.maximum(-after_s, 0.0)
            left_s = np.maximum(after_s, 0.0) + chunk_s
        return stalled_s

    def best(self, stall_s: np.ndarray, last_level: int, adjacent: bool) -> int:
        """First level of the plan of highest QoE_lin; of equal ones the last."""
        switch_mbps = mbps_from_bps(self.switches_bps + np.abs(self.first_bps - self.bitrates_bps[last_level]))
        # The published order of operations: equal plans must tie to the last bit.
        qoe = self.bitrate_mbps - REBUF_PENALTY * stall_s - SWITCH_PENALTY * switch_mbps
        if adjacent:
            qoe[~self.steady | (np.abs(self.sequences[:, 0] - last_level) > 1)] = -np.inf
        return int(self.sequences[len(qoe) - 1 - np.argmax(qoe[::-1]), 0])
