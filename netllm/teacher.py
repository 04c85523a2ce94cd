"""The teacher of the ABR adapter: model-predictive control over several throughput scenarios. It labels states and is no policy of ours.

RobustMPC (Yin et al., SIGCOMM 2015) plans against one pessimistic throughput. Here the plan is scored under several, spread as the
session's own prediction errors are, so that a stall that is merely possible costs in proportion. It tells the value of every level, not
only the best one: a student that learns from values knows which mistakes are cheap.
"""

from dataclasses import dataclass

import numpy as np

from controllers.api import AbrObservation, AbrPolicy
from testbed.metrics import REBUF_PENALTY, SWITCH_PENALTY
from testbed.units import bits_from_bytes, mbps_from_bps


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher predicts and plans."""

    horizon: int = 5
    """Chunks planned ahead (Yin et al., section 6.1)."""
    samples: int = 5
    """Chunks in the harmonic mean that predicts throughput (same section)."""
    quantiles: tuple[float, ...] = (-2.0, -1.0, -0.3, 0.3, 1.0)
    """Scenarios: throughput is the prediction times exp(quantile x spread)."""
    prior_spread: float = 0.4
    """Spread of the log prediction error before anything is known, weighted like `prior_weight` samples."""
    prior_weight: float = 4.0
    forget: float = 0.9
    """Weight of an error relative to the next one."""
    temperature: float = 0.3
    """QoE over the horizon that divides values before the softmax that makes labels of them."""


class Teacher(AbrPolicy):
    """Scenario MPC; `values` for every level, `decide` the best."""

    label = "teacher"
    citation = "after Yin et al., SIGCOMM 2015, with scenarios"

    def __init__(self, settings: TeacherSettings | None = None) -> None:
        self.settings = settings or TeacherSettings()

    def decide(self, observation: AbrObservation) -> int:
        """The level of greatest value."""
        return int(np.argmax(self.values(observation)))

    def labels(self, observation: AbrObservation) -> np.ndarray:
        """A probability for each level: softmax of value over temperature."""
        values = self.values(observation) / self.settings.temperature
        weights = np.exp(values - values.max())
        return weights / weights.sum()

    def values(self, observation: AbrObservation) -> np.ndarray:
        """QoE over the horizon when the next chunk has each level, (levels,): mean over scenarios of the best fixed plan."""
        end = min(observation.chunk_index + self.settings.horizon, observation.session.chunks)
        sizes_mbit = mbps_from_bps(bits_from_bytes(1)) * np.array(
            observation.video.sizes_bytes[observation.chunk_index : end], dtype=np.float32
        )
        scenarios_mbps = self._scenarios(observation)
        plans = plan_values(observation, sizes_mbit, scenarios_mbps.astype(np.float32)).mean(axis=0)  # (levels ** steps,)
        return plans.reshape(observation.video.levels, -1).max(axis=1)

    def _scenarios(self, observation: AbrObservation) -> np.ndarray:
        """Throughputs in Mbit/s, (scenarios,)."""
        rates = np.array([mbps_from_bps(chunk.throughput_bps) for chunk in observation.history])
        settings = self.settings
        predicted = np.array([_harmonic(rates[max(i - settings.samples, 0) : i]) for i in range(1, len(rates) + 1)])
        errors = np.log(rates[1:] / predicted[:-1])  # (chunks - 1,)
        weights = settings.forget ** np.arange(len(errors))[::-1]
        square = settings.prior_weight * settings.prior_spread**2 + float(weights @ errors**2)
        spread = np.sqrt(square / (settings.prior_weight + weights.sum()))
        return predicted[-1] * np.exp(np.array(settings.quantiles) * spread)


def _harmonic(rates: np.ndarray) -> float:
    return len(rates) / float(np.sum(1 / rates))


def plan_values(observation: AbrObservation, sizes_mbit: np.ndarray, rates_mbps: np.ndarray) -> np.ndarray:
    """QoE of every sequence of levels under every constant throughput, (scenarios, levels ** steps), first chunk most significant."""
    quality = np.array([mbps_from_bps(bitrate) for bitrate in observation.video.bitrates_bps], dtype=np.float32)  # (levels,)
    gains = quality - SWITCH_PENALTY * np.abs(quality[:, None] - quality)  # (previous, next)
    buffer_s = np.full((len(rates_mbps), 1, 1), observation.buffer_s, dtype=np.float32)
    value = np.zeros_like(buffer_s)
    gain = gains[observation.last_level][None, None]
    for sizes in sizes_mbit:
        download_s = (sizes / rates_mbps[:, None])[:, None]  # (scenarios, 1, levels)
        left_s = buffer_s - download_s
        value = value + gain + REBUF_PENALTY * np.minimum(left_s, 0)
        buffer_s = np.minimum(np.maximum(left_s, 0) + observation.video.chunk_s, observation.session.buffer_cap_s)
        value, buffer_s = (each.reshape(len(rates_mbps), -1, 1) for each in (value, buffer_s))
        gain = np.tile(gains, (value.shape[1] // len(quality), 1))[None]
    return value[..., 0]
