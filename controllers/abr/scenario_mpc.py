"""Scenario MPC: plan against several throughputs that may come, weigh what the plans are worth on average, play the best level."""

import numpy as np

from controllers.api import AbrObservation, AbrPolicy, AbrSession
from testbed.errors import UserError
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.units import bits_from_bytes, mbps_from_bps

SAMPLES = 5
"""Chunks in the harmonic mean that predicts throughput (Yin et al., SIGCOMM 2015, section 6.1)."""
QUANTILES = (-2.0, -1.0, -0.3, 0.3, 1.0)
"""Scenarios: throughput is the prediction times exp(quantile x spread)."""
PRIOR_WEIGHT = 4.0
"""Prediction errors that the prior spread counts for."""
FORGET = 0.9
"""Weight of an error relative to the next one."""
MAX_PLANS = 10_000
"""Most plans compared for a decision; a ladder of more than 6 levels is planned over fewer than 5 chunks."""


class ScenarioMPC(AbrPolicy):
    """MPC (Yin et al., SIGCOMM 2015) under uncertainty: the plan of best mean QoE_lin over five throughputs, not under one lower bound.

    RobustMPC plans against one pessimistic throughput. Here the scenarios are spread as the session's own prediction errors are, so that a
    stall that is merely possible costs in proportion (planning over a distribution, as Fugu does). `probabilities` tells the value of every
    level, not only the best one: a student that learns from it knows which mistakes are cheap.

    | option | meaning |
    | --- | --- |
    | `horizon` | chunks planned ahead |
    | `spread` | spread of the log prediction error before anything is known |
    | `temperature` | QoE over the horizon that divides values before the softmax that makes probabilities of them |
    """

    label = "ScenarioMPC"
    colour = "#1b5e20"
    citation = "after Yin et al., SIGCOMM 2015, and stochastic MPC in Yan et al., Learning in situ (Fugu), NSDI 2020"

    def __init__(self, horizon: int = 5, spread: float = 0.4, temperature: float = 0.3) -> None:
        if horizon < 1 or spread <= 0 or temperature <= 0:
            raise UserError(
                f"policy scenario_mpc: horizon {horizon}, spread {spread}, temperature {temperature}, wanted at least 1, above 0, above 0"
            )
        self.horizon, self.spread, self.temperature = horizon, spread, temperature

    def reset(self, session: AbrSession, seed: int) -> None:
        """Fit the horizon to the ladder."""
        super().reset(session, seed)
        fitting = [h for h in range(1, self.horizon + 1) if session.video.levels**h <= MAX_PLANS]
        self._horizon = max(fitting, default=1)

    def decide(self, observation: AbrObservation) -> int:
        """The level of greatest value."""
        return int(np.argmax(self.values(observation)))

    def probabilities(self, observation: AbrObservation) -> np.ndarray:
        """Softmax of value over temperature, (levels,)."""
        values = self.values(observation) / self.temperature
        weights = np.exp(values - values.max())
        return weights / weights.sum()

    def values(self, observation: AbrObservation) -> np.ndarray:
        """QoE over the horizon when the next chunk has each level, (levels,): mean over scenarios of the best fixed plan."""
        end = min(observation.chunk_index + self._horizon, observation.session.chunks)
        sizes_bytes = np.array(observation.video.sizes_bytes[observation.chunk_index : end], dtype=np.float32)  # (steps, levels)
        rates_mbps = self._scenarios_mbps(observation).astype(np.float32)
        plans = plan_values(observation, mbps_from_bps(bits_from_bytes(1)) * sizes_bytes, rates_mbps).mean(axis=0)  # (levels ** steps,)
        return plans.reshape(observation.video.levels, -1).max(axis=1).astype(float)

    def _scenarios_mbps(self, observation: AbrObservation) -> np.ndarray:
        """Throughputs, (scenarios,)."""
        rates_mbps = np.array([mbps_from_bps(chunk.throughput_bps) for chunk in observation.history])
        inverse = np.concatenate([[0.0], np.cumsum(1 / rates_mbps)])
        ends = np.arange(1, len(rates_mbps) + 1)
        starts = np.maximum(ends - SAMPLES, 0)
        predicted_mbps = (ends - starts) / (inverse[ends] - inverse[starts])  # [i]: from the chunks up to i, for chunk i + 1
        errors = np.log(rates_mbps[1:] / predicted_mbps[:-1])  # (chunks - 1,)
        weights = FORGET ** np.arange(len(errors))[::-1]
        square = PRIOR_WEIGHT * self.spread**2 + float(weights @ errors**2)
        return predicted_mbps[-1] * np.exp(np.array(QUANTILES) * np.sqrt(square / (PRIOR_WEIGHT + weights.sum())))


def plan_values(observation: AbrObservation, sizes_mbit: np.ndarray, rates_mbps: np.ndarray) -> np.ndarray:
    """QoE of every sequence of levels under every constant throughput, (scenarios, levels ** steps), first chunk most significant."""
    quality = np.array([mbps_from_bps(bitrate) for bitrate in observation.video.bitrates_bps], dtype=np.float32)  # (levels,)
    gains = quality - np.float32(SWITCH_PENALTY) * np.abs(quality[:, None] - quality)  # (previous, next)
    scenarios, levels = len(rates_mbps), len(quality)
    buffer_s = np.full((scenarios, 1, 1), observation.buffer_s, dtype=np.float32)
    value = np.zeros_like(buffer_s)
    gain = gains[observation.last_level][None, None]
    for number, sizes in enumerate(sizes_mbit):
        left_s = buffer_s - (sizes / rates_mbps[:, None])[:, None]  # (scenarios, beginnings, levels)
        value = value.reshape(scenarios, -1, len(gain[0]), 1) + gain  # (scenarios, beginnings / previous, previous, levels)
        value = value.reshape(left_s.shape) + np.float32(REBUF_PENALTY) * np.minimum(left_s, 0)
        if number < len(sizes_mbit) - 1:
            np.maximum(left_s, 0, out=left_s)
            left_s += np.float32(observation.video.chunk_s)
            np.minimum(left_s, np.float32(observation.session.buffer_cap_s), out=left_s)
            buffer_s = left_s.reshape(scenarios, -1, 1)
        gain = gains.reshape(1, levels, levels)
    return value.reshape(scenarios, -1)
