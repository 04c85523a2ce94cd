"""Capacity over time as a pure curve: how much a link could have carried by now, and when it will have carried so much.

All of it is integer arithmetic, so nothing drifts: rates count in 1e-3 bit/s, times in ns.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from testbed.units import BITS_PER_BYTE, OPPORTUNITY_BYTES, ns_from_s

RATE_SCALE = 10**3
"""Rates are whole multiples of 1 bit/s / RATE_SCALE."""


class Capacity(Protocol):
    """Cumulative capacity since `start_ns`, in units of 1/`per_byte` bytes. Successive calls of a method never go back in time."""

    per_byte: int

    def at(self, now_ns: int) -> int:
        """Work that could have been done by `now_ns`."""

    def when(self, work: int) -> int:
        """The first nanosecond by which `work` (> 0) can be done."""

    def wraps(self, now_ns: int) -> int:
        """How often the trace has begun anew by `now_ns`."""


class RateCapacity:
    """Piecewise-constant rates, served byte by byte: segment i is `rates[i]` (1e-3 bit/s) on (`edges_ns[i]`, `edges_ns[i+1]`]; it wraps."""

    per_byte = BITS_PER_BYTE * RATE_SCALE * ns_from_s(1)

    def __init__(self, edges_ns: Sequence[int], rates: Sequence[int], start_ns: int, offset_ns: int = 0) -> None:
        if not any(rate > 0 and b > a for rate, a, b in zip(rates, edges_ns, edges_ns[1:], strict=False)):
            raise ValueError("the trace carries nothing at a resolution of 0.001 bit/s and 1 ns")
        self._duration_ns = edges_ns[-1]
        self._base_ns = start_ns - offset_ns % self._duration_ns
        self._at = _Cursor(edges_ns, rates, start_ns, self._base_ns)
        self._when = _Cursor(edges_ns, rates, start_ns, self._base_ns)

    def at(self, now_ns: int) -> int:
        """See `Capacity`."""
        cursor = self._at
        while now_ns > cursor.end_ns:
            cursor.step()
        return cursor.work + cursor.rate * (now_ns - cursor.begin_ns)

    def when(self, work: int) -> int:
        """See `Capacity`."""
        cursor = self._when
        while work > cursor.end_work:
            cursor.step()
        return cursor.begin_ns - (cursor.work - work) // cursor.rate  # rounded up

    def wraps(self, now_ns: int) -> int:
        """See `Capacity`."""
        return max(now_ns - self._base_ns, 0) // self._duration_ns


class _Cursor:
    """A segment of the repeated trace in absolute time, and the work done before it."""

    __slots__ = ("_edges_ns", "_index", "_lap_ns", "_rates", "begin_ns", "end_ns", "end_work", "rate", "work")

    def __init__(self, edges_ns: Sequence[int], rates: Sequence[int], start_ns: int, lap_ns: int) -> None:
        self._edges_ns, self._rates, self._lap_ns = edges_ns, rates, lap_ns
        self._index = bisect_right(edges_ns, start_ns - lap_ns) - 1
        self.work = 0
        self._enter(start_ns)

    def _enter(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.end_ns = self._lap_ns + self._edges_ns[self._index + 1]
        self.rate = self._rates[self._index]
        self.end_work = self.work + self.rate * (self.end_ns - begin_ns)

    def step(self) -> None:
        """Go to the next segment."""
        self._index += 1
        if self._index == len(self._rates):
            self._index = 0
            self._lap_ns = self.end_ns
        self.work = self.end_work
        self._enter(self.end_ns)


class OpportunityCapacity:
    """Mahimahi's packet-delivery opportunities: each carries 1500 bytes of what waited before it; what it can't use is wasted; it wraps."""

    per_byte = 1

    def __init__(self, times_ns: Sequence[int], start_ns: int, offset_ns: int = 0) -> None:
        if not times_ns or times_ns[-1] <= 0:
            raise ValueError("the trace has no opportunity later than 0 ns")
        self._times_ns = times_ns
        self._duration_ns = times_ns[-1]
        self._base_ns = start_ns - offset_ns % self._duration_ns
        self._before = self._count(start_ns)

    def _count(self, now_ns: int) -> int:
        """Opportunities at or before `now_ns`, since the trace's very beginning."""
        laps, within_ns = divmod(now_ns - self._base_ns, self._duration_ns)
        return laps * len(self._times_ns) + bisect_right(self._times_ns, within_ns)

    def at(self, now_ns: int) -> int:
        """See `Capacity`."""
        return (self._count(now_ns) - self._before) * OPPORTUNITY_BYTES

    def when(self, work: int) -> int:
        """See `Capacity`."""
        laps, index = divmod(self._before + (work - 1) // OPPORTUNITY_BYTES, len(self._times_ns))
        return self._base_ns + laps * self._duration_ns + self._times_ns[index]

    def wraps(self, now_ns: int) -> int:
        """See `Capacity`."""
        return max(now_ns - self._base_ns, 0) // self._duration_ns


def constant(rate_bps: float, start_ns: int) -> RateCapacity:
    """A link that always carries `rate_bps` (at least 1 bit/s)."""
    return RateCapacity((0, ns_from_s(1)), (max(round(rate_bps * RATE_SCALE), RATE_SCALE),), start_ns)
