"""Are two traces of rates windows of one measurement, although resampled? Equal runs of samples (`traces/leakage.py`) can't tell.

The Norwegian logs come in preparations that cut and resample one ride differently. Two windows of a ride that overlap in time still go up
and down together and carry as much: in bins of 1 s, over all shifts with at least `LEAST_OVERLAP_S` in common, their rates correlate by
more than `LEAST_CORRELATION`, at equal means to `MEANS_APART`. Of norway/test 28 traces do with one of norway/train; with norway/train
played backwards, where nothing can be the same, none does. FCC's samples of 5 s say less: there one deep dip matches another one.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.units import bits_from_bytes, mbps_from_bps
from traces.leakage import measured_at
from traces.trace import RateTrace, Trace

LEAST_OVERLAP_S = 120
LEAST_CORRELATION = 0.87
MEANS_APART = 0.1
LEAST_SPREAD_MBPS = 0.05
"""Standard deviation of an overlap that says something."""
Floats = NDArray[np.float64]


class Match(NamedTuple):
    """Two windows that overlap in time, as far as numbers can tell."""

    correlation: float
    overlap_s: int
    means: float
    """The first one's mean rate over the other's, where they overlap."""


def find_match(one: Floats, other: Floats) -> Match | None:
    """The shift at which two series of rates, one value a second, correlate most, if they match there."""
    if min(len(one), len(other)) < LEAST_OVERLAP_S:
        return None
    shifts = np.arange(LEAST_OVERLAP_S - len(other), len(one) - LEAST_OVERLAP_S + 1)  # the second begins so much later
    low, high = np.maximum(0, shifts), np.minimum(len(one), shifts + len(other))
    count = high - low
    sums, squares = (_between(_running(values), low, high) for values in (one, one**2))
    other_sums, other_squares = (_between(_running(values), low - shifts, high - shifts) for values in (other, other**2))
    products = np.correlate(one, other, "full")[shifts + len(other) - 1]
    mean, other_mean = sums / count, other_sums / count
    spread, other_spread = (np.sqrt(np.maximum(total / count - at**2, 0)) for total, at in ((squares, mean), (other_squares, other_mean)))
    told = (spread >= LEAST_SPREAD_MBPS) & (other_spread >= LEAST_SPREAD_MBPS)
    if not told.any():
        return None
    scale = np.where(told, spread * other_spread, 1.0)
    correlation = np.where(told, (products / count - mean * other_mean) / scale, -1.0)
    best = int(np.argmax(correlation))
    means = float(mean[best] / other_mean[best])
    found = Match(float(correlation[best]), int(count[best]), means)
    return found if found.correlation > LEAST_CORRELATION and abs(means - 1) < MEANS_APART else None


def _running(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _between(running: Floats, low: NDArray[np.int64], high: NDArray[np.int64]) -> Floats:
    found: Floats = running[high] - running[low]
    return found


def each_second_mbps(trace: RateTrace) -> Floats:
    """Mean rates of whole seconds, (seconds,)."""
    passed = trace.bytes_by(np.arange(int(trace.duration_s) + 1).astype(float))
    return np.asarray(mbps_from_bps(bits_from_bytes(np.diff(passed))))


def find_rides(train: Sequence[Trace], test: Sequence[Trace]) -> dict[tuple[str, str], Match]:
    """Pairs (name in `train`, name in `test`) that match; traces of delivery opportunities are left out."""
    known = [(trace.name, each_second_mbps(trace)) for trace in train if isinstance(trace, RateTrace)]
    asked = [(trace.name, each_second_mbps(trace)) for trace in test if isinstance(trace, RateTrace)]
    matches = {(name, other): find_match(values, seen) for name, values in known for other, seen in asked}
    return {pair: match for pair, match in matches.items() if match}


def find_known(train: Sequence[Trace], test: Sequence[Trace]) -> frozenset[str]:
    """Names in `test` of rides that `train` has windows of: of one log by name, or by matches, also by way of other windows."""
    log_of = {trace.name: measured_at(trace.name) or ("trace", trace.name) for trace in chain(train, test)}
    pairs = [(log_of[one], log_of[other]) for one, other in find_rides([*train, *test], test) if one != other]
    known, before = {log_of[trace.name] for trace in train}, 0
    while len(known) > before:
        before = len(known)
        known.update(chain.from_iterable(pair for pair in pairs if not known.isdisjoint(pair)))
    return frozenset(trace.name for trace in test if log_of[trace.name] in known)
