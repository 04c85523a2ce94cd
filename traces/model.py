"""A stand-in for FCC broadband traces where the measured ones can't be had. It says of itself: modelled, not measured.

A trace is `mean x (1 + cv x z_t)` in steps of 5 s, the spacing of FCC's samples. The mean is log-normal, cut to 0.45 to 6 Mbit/s: below
1.5 times the lowest bitrate every policy starves alike. The coefficient of variation comes from one of three classes (calm, middling,
wild). Within a class, z_t is a Markov chain over ten states; inside a state, a Gaussian AR(1) rank picks from the state's quantiles.

`scripts/fit_fcc_model` fits it on fcc/train alone, each measurement unit weighing the same, and writes `fcc_model.json` with these numbers:

| | rate | mean | cv | lag_5s | lag_20s |
| --- | --- | --- | --- | --- | --- |
| median model | 1.270 | 1.281 | 0.186 | 0.132 | 0.004 |
| median train | 1.168 | 1.301 | 0.170 | 0.071 | -0.063 |
| median valid | 1.374 | 1.593 | 0.180 | 0.368 | 0.068 |
| median test | 0.937 | 1.059 | 0.218 | 0.205 | 0.040 |
| KS model-train | 0.101 | 0.143 | 0.122 | 0.216 | 0.215 |
| KS model-valid | 0.234 | 0.487 | 0.334 | 0.371 | 0.322 |
| KS model-test | 0.209 | 0.204 | 0.172 | 0.217 | 0.215 |
| KS train-valid | 0.285 | 0.452 | 0.389 | 0.427 | 0.422 |
| KS train-test | 0.245 | 0.234 | 0.215 | 0.345 | 0.344 |

(400 drawn traces; units weigh the same; rate and mean in Mbit/s, autocorrelation at 5 s and 20 s; KS: Kolmogorov-Smirnov distance. Real
segments within the same limits; test is reported, never fitted.) Train holds nine units and valid four, so real sets are far from each
other too: compare the rows. In the simulator, BBA scores 0.88 QoE on drawn traces and 0.78 on fcc/test, RobustMPC 1.23 and 1.05. Use it for
tests and demonstrations; a result on modelled traces is no result on FCC traces.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist

import msgspec
import numpy as np

from testbed.units import bps_from_mbps
from traces.trace import RateTrace

MODEL_FILE = Path(__file__).with_name("fcc_model.json")
STEP_S = 5.0
FLOOR = 0.002
"""Lowest rate relative to the trace's mean: near an outage, never quite one."""
_NORMAL = NormalDist()


class ShapeClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the rate moves around its mean in traces of similar variation; z = (rate / mean - 1) / cv."""

    weight: float
    cv_quantiles: tuple[float, ...]
    """Coefficient of variation at evenly spaced probabilities from 0 to 1."""
    initial: tuple[float, ...]
    """Probability of each state at the start."""
    transition: tuple[tuple[float, ...], ...]
    """Row: state now, column: state 5 s later."""
    z_quantiles: tuple[tuple[float, ...], ...]
    """Per state: z at evenly spaced probabilities from 0 to 1."""
    rank_correlation: float
    """Of the normal scores of successive ranks inside a state."""


class FccModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All parameters, and what the fit scored."""

    version: int
    fitted_on: str
    sha256: str
    units: int
    segments: int
    log_mean_mbps: float
    log_deviation: float
    mean_limits_mbps: tuple[float, float]
    classes: tuple[ShapeClass, ...]
    validation: dict[str, dict[str, float]]


def draw(n: int, seed: int, duration_s: float = 320.0, model: FccModel | None = None) -> tuple[RateTrace, ...]:
    """`n` modelled traces of `duration_s`; the first ones stay the same when `n` grows."""
    fitted = model or load_model()
    return tuple(_draw_one(fitted, _Uniform(seed, number), f"fcc-model-{seed}-{number:03d}", duration_s) for number in range(n))


@cache
def load_model(path: Path = MODEL_FILE) -> FccModel:
    """The parameters in `path`."""
    return msgspec.json.decode(path.read_bytes(), type=FccModel)


@dataclass
class _Uniform:
    """Uniform numbers from the raw words of PCG64, whose stream NumPy promises to keep (it doesn't for distributions)."""

    seed: int
    number: int

    def __post_init__(self) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence([self.seed, self.number]))

    def __call__(self) -> float:
        """The next number, in (0, 1)."""
        return ((int(self._words.random_raw()) >> 11) + 0.5) / 2**53

    def normal(self) -> float:
        """The next standard normal number."""
        return _NORMAL.inv_cdf(self())

    def choose(self, weights: tuple[float, ...]) -> int:
        """An index with probability in proportion to its weight."""
        left = self() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1


def _draw_one(model: FccModel, uniform: _Uniform, name: str, duration_s: float) -> RateTrace:
    mean_mbps = _draw_mean(model, uniform)
    shape = model.classes[uniform.choose(tuple(each.weight for each in model.classes))]
    cv = _quantile(shape.cv_quantiles, uniform())
    steps = max(int(np.ceil(duration_s / STEP_S - 1e-9)), 1)
    relative = np.maximum(1 + cv * np.array(_draw_shape(shape, uniform, steps)), FLOOR)  # (steps,)
    edges_s = (*(step * STEP_S for step in range(steps)), duration_s)
    rates_bps = bps_from_mbps(mean_mbps) * relative / np.average(relative, weights=np.diff(edges_s))
    return RateTrace(name, edges_s, tuple(rates_bps.tolist()), "model")


def _draw_mean(model: FccModel, uniform: _Uniform) -> float:
    """A log-normal mean in Mbit/s inside the limits, by inversion."""
    normal = NormalDist(model.log_mean_mbps, model.log_deviation)
    low, high = (normal.cdf(float(np.log(limit))) for limit in model.mean_limits_mbps)
    return float(np.exp(normal.inv_cdf(low + (high - low) * uniform())))


def _draw_shape(shape: ShapeClass, uniform: _Uniform, steps: int) -> list[float]:
    """z_t for each step."""
    state, score, drawn = uniform.choose(shape.initial), uniform.normal(), []
    for _ in range(steps):
        drawn.append(_quantile(shape.z_quantiles[state], _NORMAL.cdf(score)))
        state = uniform.choose(shape.transition[state])
        score = shape.rank_correlation * score + (1 - shape.rank_correlation**2) ** 0.5 * uniform.normal()
    return drawn


def _quantile(points: tuple[float, ...], probability: float) -> float:
    return float(np.interp(probability, np.linspace(0, 1, len(points)), points))


def to_json(model: FccModel) -> bytes:
    """What `fcc_model.json` holds."""
    return json.dumps(msgspec.to_builtins(model), indent=1).encode() + b"\n"
