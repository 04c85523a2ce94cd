"""What a receiver's capture says of a link: rate error, delay error, spread over repetitions. Pure arithmetic.

**Rate error.** Windows of 100 ms (or 1 s) stand on the trace's own time. Summed over the windows in which packets waited throughout:
|bytes that arrived - bytes that the trace allows|, in percent of the bytes allowed. The trace's beginning on the receiver's clock is the
one free parameter of a run: nobody can see it from outside, and a constant lateness is no error of rate. It is chosen once, where the
error of 100 ms is least.

**What was waiting** is seen from outside as well: a link was busy between two arrivals if the second packet had been sent before the first
arrived. Send times come from the sender's own clock (datagrams carry it, TCP's timestamps in ms), moved so that the quickest packet took
no time at all; so a window is rather left out than counted without reason.

**Bytes of an arrival.** A trace of delivery opportunities carries whole packets: all bytes count at the arrival. A trace of rates is served
byte by byte: a packet's bytes count evenly from the arrival before it on, so that a packet across the edge of a window is no error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.trace import OpportunityTrace, RateTrace, Trace

WINDOW_S = 0.1
LONG_WINDOW_S = 1.0
_SEARCH = ((5e-3, 0.0), (5e-4, 1e-2), (5e-5, 1e-3))
"""Steps of the search for the trace's beginning, and how far each goes to either side of the best so far (the first one over all)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arrivals:
    """Packets of one flow at the receiving host, in the order of arrival; one entry a packet."""

    times_s: Floats
    """The receiving kernel's clock."""
    sizes_bytes: Floats
    """IP bytes."""
    sent_s: Floats
    """When each was sent, on any clock that runs as fast."""


@dataclass(frozen=True)
class RateError:
    """How far a link was off its trace."""

    short_pct: float
    """Over windows of 100 ms."""
    long_pct: float | None
    """Over windows of 1 s; None when packets waited throughout none."""
    windows: int
    """Of 100 ms in which packets waited throughout."""
    windows_left_out: int
    begin_s: float
    """The trace's beginning on the receiver's clock, as fitted."""


def waited(arrivals: Arrivals) -> NDArray[np.bool_]:
    """For each packet but the first: whether it was in the link when the one before arrived. (packets - 1,)"""
    moved_s = arrivals.sent_s + np.min(arrivals.times_s - arrivals.sent_s)
    found: NDArray[np.bool_] = moved_s[1:] < arrivals.times_s[:-1]
    return found


class _Received:
    """Bytes arrived by a time, and whether the link was busy between two times."""

    def __init__(self, arrivals: Arrivals, whole: bool) -> None:
        self._times_s = arrivals.times_s
        self._bytes = np.cumsum(arrivals.sizes_bytes)
        self._idle = np.concatenate([[0], np.cumsum(~waited(arrivals))])  # idle gaps before packet i
        self._whole = whole

    def by(self, at_s: Floats) -> Floats:
        if self._whole:
            return np.concatenate([[0.0], self._bytes])[np.searchsorted(self._times_s, at_s, side="right")]
        return np.interp(at_s, self._times_s, self._bytes)

    def busy(self, edges_s: Floats) -> NDArray[np.bool_]:
        """For each window between successive edges, all of which lie within the arrivals."""
        first = np.searchsorted(self._times_s, edges_s[:-1], side="right") - 1
        last = np.searchsorted(self._times_s, edges_s[1:], side="left")
        same: NDArray[np.bool_] = self._idle[np.minimum(last, len(self._idle) - 1)] == self._idle[first]
        return same


def rate_error(arrivals: Arrivals, trace: Trace, search_s: tuple[float, float], skip_s: float = 0.0) -> RateError | None:
    """The error of one run, whose trace began `search_s` (from, to) after the first arrival; the first `skip_s` don't count.

    None when there is no window to judge.
    """
    if len(arrivals.times_s) < 2:
        return None
    received = _Received(arrivals, whole=isinstance(trace, OpportunityTrace))
    first_s, last_s = float(arrivals.times_s[0]), float(arrivals.times_s[-1])

    def judged(begin_s: float, window_s: float) -> tuple[float, int, int]:
        from_s, to_s = first_s + skip_s - begin_s, last_s - begin_s
        edges_s = np.arange(np.ceil(from_s / window_s), np.floor(to_s / window_s) + 1) * window_s
        edges_s = edges_s[edges_s >= 0]
        if len(edges_s) < 2:
            return np.inf, 0, 0
        busy = received.busy(edges_s + begin_s)
        allowed = np.diff(allowed_by(trace, edges_s))
        missed = np.abs(np.diff(received.by(edges_s + begin_s)) - allowed)
        due = float(allowed[busy].sum())
        return (100 * float(missed[busy].sum()) / due if due else np.inf), int(busy.sum()), int((~busy).sum())

    begin_s = _least(lambda at_s: judged(at_s, WINDOW_S)[0], first_s + search_s[0], first_s + search_s[1])
    short, counted, left_out = judged(begin_s, WINDOW_S)
    long, _, _ = judged(begin_s, LONG_WINDOW_S)
    return RateError(short, long if np.isfinite(long) else None, counted, left_out, begin_s) if counted else None


def _least(error: Callable[[float], float], low_s: float, high_s: float) -> float:
    """Where the error is least, from coarse to fine."""
    best_s = low_s
    for step_s, reach_s in _SEARCH:
        from_s, to_s = (max(best_s - reach_s, low_s), min(best_s + reach_s, high_s)) if reach_s else (low_s, high_s)
        candidates = np.arange(from_s, to_s + step_s / 2, step_s)
        best_s = float(candidates[int(np.argmin([error(float(at_s)) for at_s in candidates]))])
    return best_s


def allowed_by(trace: Trace, at_s: NDArray[Any]) -> Floats:
    """Bytes that the trace allows up to each time (at least 0)."""
    return np.asarray(trace.bytes_by(np.maximum(at_s, 0.0)), dtype=float)


def cut(trace: Trace, begin_s: float, seconds: float) -> Trace:
    """The part of a trace from `begin_s` on, as a trace of its own; opportunities on `begin_s` itself stay out."""
    end_s = begin_s + seconds
    if isinstance(trace, OpportunityTrace):
        times_s = tuple(round(t - begin_s, 9) for t in trace.times_s if begin_s < t <= end_s)
        return OpportunityTrace(trace.name, times_s)
    inner = [e for e in trace.edges_s if begin_s < e < end_s]
    edges_s = (begin_s, *inner, end_s)
    rates = [trace.rates_bps[int(np.searchsorted(trace.edges_s, e, side="right")) - 1] for e in edges_s[:-1]]
    return RateTrace(trace.name, tuple(round(e - begin_s, 9) for e in edges_s), tuple(rates))


@dataclass(frozen=True)
class DelayError:
    """How late probes were beyond the delay asked for, in seconds; negative: early."""

    p50_s: float
    p99_s: float
    max_s: float
    probes: int
    lost: int


def delay_error(late_s: Floats, lost: int) -> DelayError | None:
    """Quantiles of a run's probes (by absolute value: early is wrong, too); None without any."""
    if not len(late_s):
        return None
    off_s = np.abs(late_s)
    p50_s, p99_s = (float(q) for q in np.quantile(off_s, (0.5, 0.99)))
    return DelayError(p50_s, p99_s, float(off_s.max()), len(off_s), lost)


@dataclass(frozen=True)
class Spread:
    """Median and range of what repetitions gave."""

    median: float
    low: float
    high: float
    runs: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of those that are there; None of none."""
    known = [value for value in values if value is not None]
    return Spread(float(np.median(known)), min(known), max(known), len(known)) if known else None
