"""`Trace`: how much a link can carry over time, repeated without end. Two kinds, both byte-accurate; and `Conditions` beside either."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from testbed.errors import UserError
from testbed.units import OPPORTUNITY_BYTES, Amount, bits_from_bytes, bytes_per_s_from_bps

MIN_DURATION_S = 1e-3
"""Mahimahi's resolution: a file of the one line `1` is its usual constant 12 Mbit/s. What wraps faster costs time and says nothing."""
MAX_DURATION_S = 1e6
"""Eleven days: many such periods still fit a link's 64-bit nanoseconds, and floating point still tells nanoseconds apart."""
MAX_RATE_BPS = 1e12
"""Beyond any link; in the thousandths of a bit/s in which a link counts it fits 64 bits a thousand times over."""
MIN_MEAN_RATE_BPS = 1e3
"""At this a chunk of 4 s at 300 kbit/s takes 20 minutes: below it no session ends, emulated or simulated."""
_ROUNDING = 1e-9
"""Share by which a rate may pass its bound: means over bins of a trace on the bound are off by rounding."""
MAX_DELAY_S = 10.0
"""Twenty times a geostationary path: whoever wants more has taken milliseconds for seconds."""


@dataclass(frozen=True)
class Conditions:
    """What a path does to packets besides pacing them: segment i holds on (`edges_s[i]`, `edges_s[i+1]`]; it wraps with its trace.

    `edges_s` starts at 0, increases strictly and ends with the trace's period; each column has one entry less than it.
    """

    edges_s: tuple[float, ...]
    delay_s: tuple[float, ...] | None = None
    """One-way delay, in place of the path's `rtt_s` / 2 in the trace's direction; at most `MAX_DELAY_S`."""
    loss: tuple[float, ...] | None = None
    """Probability that a packet is lost after the bottleneck, 0 to 1."""
    burst_packets: tuple[float, ...] | None = None
    """Mean length of a run of losses, at least 1 (Gilbert, Bell System Technical Journal 1960: two states); it says nothing where `loss` is
    0 or 1. None: each packet is lost or not whatever became of the one before, in runs of 1 / (1 - loss) packets on average."""

    def __post_init__(self) -> None:
        _check_edges(self.edges_s, "conditions")
        if self.delay_s is None and self.loss is None:
            raise UserError("conditions: say neither a delay nor a loss, wanted at least one of them")
        self._check("delay", self.delay_s, lambda delay_s: 0 <= delay_s <= MAX_DELAY_S, f"0 to {MAX_DELAY_S:g} s")
        self._check("loss", self.loss, lambda loss: 0 <= loss <= 1, "a probability, 0 to 1")
        self._check("burst", self.burst_packets, lambda packets: 1 <= packets < np.inf, "a finite number of at least 1 packet")
        if self.burst_packets is not None:
            self._check_chain(self.burst_packets)

    def _check(self, what: str, column: tuple[float, ...] | None, usable: Callable[[float], bool], wanted: str) -> None:
        if column is None:
            return
        if len(column) != len(self.edges_s) - 1:
            raise UserError(f"conditions: {len(column)} values of {what}, wanted {len(self.edges_s) - 1}, one less than edges")
        for i, value in enumerate(column):
            if not usable(value):
                raise UserError(f"conditions: sample {i + 1} has a {what} of {value}, wanted {wanted}")

    def _check_chain(self, burst_packets: tuple[float, ...]) -> None:
        """A run of losses is followed by at least one packet that arrives, which bounds the share of runs; but all may be lost."""
        if self.loss is None:
            raise UserError("conditions: bursts without a loss, wanted both or none")
        for i, (loss, packets) in enumerate(zip(self.loss, burst_packets, strict=True)):
            if most_loss(packets) < loss < 1:
                wanted = f"at most {most_loss(packets):.4g}, because at least one packet arrives between two runs, or 1"
                raise UserError(f"conditions: sample {i + 1} has a loss of {loss} in bursts of {packets} packets, wanted {wanted}")

    @property
    def content(self) -> tuple[object, ...]:
        """What is hashed."""
        return self.edges_s, self.delay_s, self.loss, self.burst_packets


def most_loss(burst_packets: float) -> float:
    """The largest probability of loss in runs of `burst_packets` on average: then one packet arrives between each run and the next."""
    return burst_packets / (1 + burst_packets)


def _check_edges(edges_s: tuple[float, ...], what: str) -> None:
    """Raise `UserError` unless `edges_s` starts at 0 and increases strictly, at least once."""
    if len(edges_s) < 2:
        raise UserError(f"{what}: has {len(edges_s)} edges, wanted at least 2")
    if edges_s[0] != 0:
        raise UserError(f"{what}: starts at {edges_s[0]} s, wanted 0 s")
    for i, (a, b) in enumerate(pairwise(edges_s)):
        if not (b > a and np.isfinite(b)):
            raise UserError(f"{what}: sample {i + 1} is at {b} s, wanted a finite time later than {a} s")


@dataclass(frozen=True)
class RateTrace:
    """Piecewise-constant capacity: segment i carries `rates_bps[i]` on (`edges_s[i]`, `edges_s[i+1]`]; then it wraps.

    `edges_s` has one entry more than `rates_bps`, starts at 0 and increases strictly. A segment may be 0 bit/s (an outage), not all.
    """

    name: str
    edges_s: tuple[float, ...]
    rates_bps: tuple[float, ...]
    source: str = field(default="", compare=False)
    latency_s: float | None = None
    """What a SABRE file gives as its one latency; kept, never applied: the round trip of a path is a setting of the run."""
    conditions: Conditions | None = None
    """Delay and loss over the same period; None: the path's own delay, and no loss."""

    def __post_init__(self) -> None:
        if len(self.edges_s) != len(self.rates_bps) + 1 or not self.rates_bps:
            wanted = f"wanted at least one rate and {len(self.rates_bps) + 1} edges"
            raise UserError(f"trace {self.name}: has {len(self.rates_bps)} rates and {len(self.edges_s)} edges, {wanted}")
        _check_edges(self.edges_s, f"trace {self.name}")
        for i, rate in enumerate(self.rates_bps):
            if not (rate >= 0 and np.isfinite(rate)):
                raise UserError(f"trace {self.name}: sample {i + 1} has a rate of {rate} bit/s, wanted a finite number of at least 0")
            if rate > MAX_RATE_BPS * (1 + _ROUNDING):
                raise UserError(f"trace {self.name}: sample {i + 1} has a rate of {rate} bit/s, wanted at most {MAX_RATE_BPS:g}")
        if not any(self.rates_bps):
            raise UserError(f"trace {self.name}: every rate is 0 bit/s, wanted at least one above 0")
        _refuse_extremes(self)

    @property
    def duration_s(self) -> float:
        """Seconds until the trace wraps."""
        return self.edges_s[-1]

    @property
    def capacity_bytes(self) -> float:
        """Bytes carried in one period."""
        return float(self._bytes_at_edges[-1])

    @cached_property
    def _bytes_at_edges(self) -> np.ndarray:
        widths_s = np.diff(self.edges_s)  # (n,)
        return np.concatenate([[0.0], np.cumsum(widths_s * bytes_per_s_from_bps(np.asarray(self.rates_bps)))])  # (n+1,)

    def bytes_by(self, time_s: Amount) -> Amount:
        """Bytes carried from the trace's beginning to `time_s`, wrapping as often as needed."""
        periods, rest_s = divmod(time_s, self.duration_s)
        carried_bytes: Amount = periods * self.capacity_bytes + np.interp(rest_s, self.edges_s, self._bytes_at_edges)
        return carried_bytes

    @property
    def mean_rate_bps(self) -> float:
        """Time-weighted mean capacity."""
        return bits_from_bytes(self.capacity_bytes) / self.duration_s

    @cached_property
    def sha256(self) -> str:
        """Hash of the content, whatever the file's format or name."""
        return _hash(("rate", self.edges_s, self.rates_bps), self.conditions)


@dataclass(frozen=True)
class OpportunityTrace:
    """Packet-delivery opportunities as in Mahimahi: at each of `times_s` up to 1500 bytes may leave; the last time is the period."""

    name: str
    times_s: tuple[float, ...]
    source: str = field(default="", compare=False)
    conditions: Conditions | None = None
    """Delay and loss over the same period; None: the path's own delay, and no loss."""

    def __post_init__(self) -> None:
        if not self.times_s:
            raise UserError(f"trace {self.name}: no delivery opportunity, wanted at least one")
        for i, (a, b) in enumerate(zip((0.0, *self.times_s), self.times_s, strict=False)):
            if not b >= a:
                raise UserError(f"trace {self.name}: opportunity {i + 1} is at {b} s, wanted not before {a} s")
        if not (self.times_s[-1] > 0 and np.isfinite(self.times_s[-1])):
            raise UserError(f"trace {self.name}: ends at {self.times_s[-1]} s, wanted a finite time above 0 s")
        _refuse_extremes(self)

    @property
    def duration_s(self) -> float:
        """Seconds until the trace wraps."""
        return self.times_s[-1]

    @property
    def capacity_bytes(self) -> float:
        """Bytes carried in one period."""
        return len(self.times_s) * OPPORTUNITY_BYTES

    @cached_property
    def _times_s(self) -> np.ndarray:
        return np.asarray(self.times_s)  # (opportunities,)

    def bytes_by(self, time_s: Amount) -> Amount:
        """Bytes carried from the trace's beginning to `time_s` included, wrapping as often as needed."""
        periods, rest_s = divmod(time_s, self.duration_s)
        return periods * self.capacity_bytes + np.searchsorted(self._times_s, rest_s, side="right") * OPPORTUNITY_BYTES

    @property
    def mean_rate_bps(self) -> float:
        """Mean capacity over one period."""
        return bits_from_bytes(self.capacity_bytes) / self.duration_s

    @cached_property
    def sha256(self) -> str:
        """Hash of the content, whatever the file's format or name."""
        return _hash(("opportunities", self.times_s), self.conditions)


Trace = RateTrace | OpportunityTrace


def _hash(content: tuple[object, ...], conditions: Conditions | None) -> str:
    """A trace without conditions keeps the hash it had before there were any."""
    return hashlib.sha256(repr((*content, *(conditions.content if conditions else ()))).encode()).hexdigest()


def _refuse_extremes(trace: Trace) -> None:
    """Raise `UserError` when no session could end on the trace, or only after ages."""
    named = f"trace {trace.name}" if trace.source in ("", trace.name) else f"trace {trace.name} ({trace.source})"
    if not MIN_DURATION_S <= trace.duration_s <= MAX_DURATION_S:
        raise UserError(f"{named}: lasts {trace.duration_s} s, wanted {MIN_DURATION_S:g} to {MAX_DURATION_S:,.0f} s")
    if trace.mean_rate_bps < MIN_MEAN_RATE_BPS * (1 - _ROUNDING):
        raise UserError(f"{named}: carries {trace.mean_rate_bps:.3g} bit/s on average, wanted at least {MIN_MEAN_RATE_BPS:g}")
    if trace.conditions is None:
        return
    if trace.conditions.edges_s[-1] != trace.duration_s:
        raise UserError(f"{named}: its conditions last {trace.conditions.edges_s[-1]} s, wanted the {trace.duration_s} s of the trace")
    delivered_bps = _delivered_bps(trace, trace.conditions)
    if delivered_bps < MIN_MEAN_RATE_BPS * (1 - _ROUNDING):
        lost = f"carries {trace.mean_rate_bps:.3g} bit/s on average but loses all but {delivered_bps:.3g} of them"
        raise UserError(f"{named}: {lost}, wanted at least {MIN_MEAN_RATE_BPS:g} delivered")


def _delivered_bps(trace: Trace, conditions: Conditions) -> float:
    """Mean capacity less what is lost on average."""
    if conditions.loss is None:
        return trace.mean_rate_bps
    carried_bytes = np.diff(trace.bytes_by(np.asarray(conditions.edges_s)))  # (segments,)
    return float(bits_from_bytes(carried_bytes @ (1 - np.asarray(conditions.loss)))) / trace.duration_s
