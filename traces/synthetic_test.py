"""Wide synthetic traces for tests: Pensieve's Markov-modulated generator with wider ranges. Those of `synthetic.py` are for training.

Mao et al. (SIGCOMM 2017, the synthetic corpus of section 5) describe a Markov chain whose states are average throughputs, which moves
every second, more likely to a near state than to a far one (geometrically), and a Gaussian around the state's average whose variance is
drawn per trace. NetLLM (SIGCOMM 2024) tests on such traces with a larger range and faster changes. Ours are drawn anew from these words:

| drawn per trace | Mao et al. | here |
| --- | --- | --- |
| averages of the states | 0.2 to 4.3 Mbit/s | lowest 0.1 to 0.6, highest 1.5 to 12 Mbit/s, 4 to 20 states evenly spaced in logs |
| time in a state | not told | 2 to 60 s on average |
| move by k states | geometric | weight 0.3 to 0.8 to the power k, either way |
| variance of a second | 0.05 to 0.5 (Mbit/s)^2 | 0.02 to 1 (Mbit/s)^2 |

Rates are whole kbit/s, at least 50. `random.Random.random` is the one generator whose stream is promised never to change.
"""

import math
import random
from statistics import NormalDist

from testbed.units import bps_from_kbps, bps_from_mbps, kbps_from_bps
from traces.trace import RateTrace

SEED = 20261124
COUNT = 300
"""The first 100 were the whole set until 2026-11-27: too few to tell policies apart whose differences spread as widely as these traces."""
SECONDS = 320
LOWEST_MBPS = (0.1, 0.6)
HIGHEST_MBPS = (1.5, 12.0)
STATES = (4, 20)
STAY_S = (2.0, 60.0)
NEARNESS = (0.3, 0.8)
VARIANCE_MBPS2 = (0.02, 1.0)
FLOOR_KBPS = 50


def wide_traces(count: int = COUNT, seed: int = SEED) -> tuple[RateTrace, ...]:
    """The test set: `count` traces of 320 s in steps of 1 s, the same on every machine."""
    rng = random.Random(seed)
    return tuple(_trace(rng, f"wide_{number:03d}") for number in range(count))


def _trace(rng: random.Random, name: str) -> RateTrace:
    averages_bps = _averages_bps(rng)
    leave = 1 / _log_uniform(rng, STAY_S)
    nearness = _uniform(rng, NEARNESS)
    deviation_mbps = _uniform(rng, VARIANCE_MBPS2) ** 0.5
    state = int(rng.random() * len(averages_bps))
    rates_bps = []
    for _ in range(SECONDS):
        wanted_bps = averages_bps[state] + bps_from_mbps(deviation_mbps * _normal(rng))
        rates_bps.append(float(bps_from_kbps(max(round(kbps_from_bps(wanted_bps)), FLOOR_KBPS))))
        if rng.random() < leave:
            state = _moved(rng, state, len(averages_bps), nearness)
    return RateTrace(name, tuple(float(second) for second in range(SECONDS + 1)), tuple(rates_bps), "synthetic, for tests")


def _averages_bps(rng: random.Random) -> list[float]:
    """Of the states, lowest first."""
    lowest, highest = _log_uniform(rng, LOWEST_MBPS), _log_uniform(rng, HIGHEST_MBPS)
    states = STATES[0] + int(rng.random() * (STATES[1] - STATES[0] + 1))
    return [bps_from_mbps(lowest * (highest / lowest) ** (i / (states - 1))) for i in range(states)]


def _moved(rng: random.Random, state: int, states: int, nearness: float) -> int:
    """Another state, one k states away with a weight of nearness to the power k."""
    others = [other for other in range(states) if other != state]
    weights = [nearness ** abs(other - state) for other in others]
    left = rng.random() * math.fsum(weights)
    for other, weight in zip(others, weights, strict=True):
        left -= weight
        if left < 0:
            return other
    return others[-1]


def _uniform(rng: random.Random, bounds: tuple[float, float]) -> float:
    return bounds[0] + rng.random() * (bounds[1] - bounds[0])


def _log_uniform(rng: random.Random, bounds: tuple[float, float]) -> float:
    return math.exp(_uniform(rng, (math.log(bounds[0]), math.log(bounds[1]))))


def _normal(rng: random.Random) -> float:
    """A standard normal draw. The open interval: `inv_cdf` refuses 0."""
    return NormalDist().inv_cdf(max(rng.random(), 2.0**-53))
