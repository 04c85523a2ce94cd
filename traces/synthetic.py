"""Wide synthetic traces for training: five families of processes in steps of 5 s (or another), none fitted to a test set.

| family | what it is like |
| --- | --- |
| `plan_with_dips` | a flat subscription with a little noise and sudden dips |
| `log_ar1` | log rate is an AR(1) process, slow to fast, calm to wild |
| `two_level` | a Markov chain between a high and a low rate |
| `block_bootstrap` | blocks of 1 to 16 steps of real traces, in random order |
| `regime_change` | one trace turns into another, both warped in amplitude |

The last two want real traces, from train splits only; without any they build on the first three. Each is then scaled to a mean that is
log-uniform over 0.4 to 8 Mbit/s. They are meant to be wider than FCC or Norway, not like them: `traces/model.py` is the likeness.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from testbed.units import bits_from_bytes, bps_from_mbps, bytes_per_s_from_bps
from traces.trace import RateTrace

DURATION_S = 320.0
STEP_S = 5.0
"""FCC's Measuring Broadband America samples throughput every 5 s."""
MEAN_MBPS = (0.4, 8.0)
FLOOR_MBPS = 0.02
"""Lowest rate drawn: an outage slows a session to a crawl, but does not stop it for good."""

Shape = NDArray[np.float64]
"""Rates of one family before scaling, shape (steps,), above 0."""


def synthetic_trace(
    rng: np.random.Generator,
    real: Sequence[RateTrace] = (),
    family: str | None = None,
    duration_s: float = DURATION_S,
    step_s: float = STEP_S,
) -> RateTrace:
    """One trace of a random family (or `family`), named after it; the same generator state gives the same trace."""
    chosen = family or str(rng.choice(tuple(FAMILIES)))
    steps = max(round(duration_s / step_s), 1)
    mean_bps = bps_from_mbps(np.exp(rng.uniform(*np.log(MEAN_MBPS))))
    shape = FAMILIES[chosen](rng, steps, real)
    rates_bps = np.maximum(shape * (mean_bps / shape.mean()), bps_from_mbps(FLOOR_MBPS))
    return RateTrace(f"synthetic:{chosen}", tuple((np.arange(steps + 1) * step_s).tolist()), tuple(rates_bps.tolist()), "synthetic")


def step_rates(trace: RateTrace, step_s: float = STEP_S) -> Shape:
    """Mean bit/s over each whole step of `trace`, shape (steps,); one step when the trace is shorter than that."""
    edges_s = np.asarray(trace.edges_s)
    passed_bytes = np.append(0.0, np.cumsum(np.diff(edges_s) * bytes_per_s_from_bps(np.asarray(trace.rates_bps))))
    steps = int(trace.duration_s / step_s + 1e-9)
    at_s = np.arange(steps + 1) * step_s if steps else edges_s[[0, -1]]
    rates_bps: Shape = bits_from_bytes(np.diff(np.interp(at_s, edges_s, passed_bytes))) / np.diff(at_s)
    return rates_bps


def plan_with_dips(rng: np.random.Generator, steps: int, real: Sequence[RateTrace] = ()) -> Shape:
    """A flat plan rate with 1 to 8 % noise; dips to 5 to 80 % of it that last 1 to 8 steps."""
    shape = _noise(rng, steps)
    for start in np.flatnonzero(rng.random(steps) < rng.uniform(0.0, 0.12)):
        shape[start : start + rng.integers(1, 9)] *= rng.uniform(0.05, 0.8)
    return shape


def log_ar1(rng: np.random.Generator, steps: int, real: Sequence[RateTrace] = ()) -> Shape:
    """exp of an AR(1) process: correlation 0.3 to 0.98 from step to step, standard deviation 0.1 to 0.8."""
    keep, deviation = rng.uniform(0.3, 0.98), rng.uniform(0.1, 0.8)
    state = rng.standard_normal()
    log_rate = np.empty(steps)
    for i, shock in enumerate(rng.standard_normal(steps) * (1 - keep**2) ** 0.5):
        state = keep * state + shock
        log_rate[i] = deviation * state
    return np.exp(log_rate)


def two_level(rng: np.random.Generator, steps: int, real: Sequence[RateTrace] = ()) -> Shape:
    """A high rate and one of 10 to 70 % of it; each lasts 2 to 20 steps on average."""
    leave = 1 / rng.uniform(2.0, 20.0, size=2)
    low = np.empty(steps, dtype=int)
    state = int(rng.integers(2))
    for i, chance in enumerate(rng.random(steps)):
        state = 1 - state if chance < leave[state] else state
        low[i] = state
    shape: Shape = np.where(low == 1, rng.uniform(0.1, 0.7), 1.0) * _noise(rng, steps)
    return shape


def block_bootstrap(rng: np.random.Generator, steps: int, real: Sequence[RateTrace] = ()) -> Shape:
    """Blocks of real traces, each relative to its trace's mean; of one length (1 to 16 steps) within a trace."""
    block = int(rng.integers(1, 17))
    sources = [_relative(rng, steps, real) for _ in range(3)]
    parts: list[Shape] = []
    while sum(map(len, parts)) < steps:
        source = sources[rng.integers(len(sources))]
        start = rng.integers(max(len(source) - block, 0) + 1)
        parts.append(source[start : start + block])
    return np.concatenate(parts)[:steps]


def regime_change(rng: np.random.Generator, steps: int, real: Sequence[RateTrace] = ()) -> Shape:
    """One trace until 20 to 80 % of the time, then another at 0.3 to 3 times its level; amplitudes raised to the power 0.5 to 1.5."""
    change = int(steps * rng.uniform(0.2, 0.8))
    halves = [_long_enough(rng, steps, real) ** rng.uniform(0.5, 1.5) for _ in range(2)]
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.0)))
    return np.concatenate([halves[0][:change], halves[1][change:] * ratio])


def _long_enough(rng: np.random.Generator, steps: int, real: Sequence[RateTrace]) -> Shape:
    """Windows of real traces one after another, for none may recur: what is to come would stand in the past."""
    parts = [_relative(rng, steps, real)]
    while sum(map(len, parts)) < steps:
        parts.append(_relative(rng, steps, real))
    return np.concatenate(parts)[:steps]


def _noise(rng: np.random.Generator, steps: int) -> Shape:
    return np.exp(rng.uniform(0.01, 0.08) * rng.standard_normal(steps))


def _relative(rng: np.random.Generator, steps: int, real: Sequence[RateTrace]) -> Shape:
    """A random window of a real trace relative to its mean (at least 1 %); without real traces one of the first three families."""
    if not real:
        shape = (plan_with_dips, log_ar1, two_level)[rng.integers(3)](rng, steps)
    else:
        rates = step_rates(real[int(rng.integers(len(real)))])
        start = rng.integers(max(len(rates) - steps, 0) + 1)
        shape = rates[start : start + steps]
    return np.maximum(shape / shape.mean(), 0.01) if shape.any() else np.ones(1)


FAMILIES: dict[str, Callable[[np.random.Generator, int, Sequence[RateTrace]], Shape]] = {
    each.__name__: each for each in (plan_with_dips, log_ar1, two_level, block_bootstrap, regime_change)
}
