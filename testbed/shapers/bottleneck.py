"""The bottleneck as a pure model: who leaves when, given a trace. Takes `now_ns`, reads no clock, moves no packet.

A trace is a curve of cumulative capacity ("work"). A packet that arrives at t starts where the curve is at t or where its predecessor
ends, whichever is later, and leaves at the first nanosecond at which the curve has risen by the packet's size. All of it is integer
arithmetic, so nothing drifts: rates count in 1e-3 bit/s, times in ns.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from testbed.units import BITS_PER_BYTE, OPPORTUNITY_BYTES, ns_from_s

RATE_SCALE = 10**3
"""Rates are whole multiples of 1 bit/s / RATE_SCALE."""
MAX_INSIDE_BYTES = 2**24
"""Bound on queue and delay line together, so that a flood can't eat the memory; what is beyond it is dropped as by droptail."""


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


class Entry(NamedTuple):
    """A packet inside. Its bytes leave the bottleneck evenly between `begin_ns` and `departure_ns`; `delay_ns` later it is delivered."""

    begin_ns: int
    departure_ns: int
    size_bytes: int
    payload: Any


class Bottleneck:
    """Droptail queue, service at a capacity's pace (at once when there is none), constant delay. First in, first out."""

    def __init__(self, capacity: Capacity | None, delay_ns: int, queue_limit_bytes: int, max_inside_bytes: int = MAX_INSIDE_BYTES) -> None:
        self.delay_ns = delay_ns
        self.queue_bytes = 0
        """Of packets that have not left the bottleneck, the one in service included whole."""
        self.inside_bytes = 0
        """The same and those in the delay line."""
        self._capacity = capacity
        self._queue_limit_bytes = queue_limit_bytes
        self._max_inside_bytes = max_inside_bytes
        self._waiting: deque[Entry] = deque()
        self._flying: deque[Entry] = deque()
        self._finish = 0  # work at which the last packet leaves
        self._last_ns = 0  # when it leaves
        self._wasted = 0  # work that passed while nothing waited, up to the last arrival

    def __len__(self) -> int:
        """Packets inside."""
        return len(self._waiting) + len(self._flying)

    def offer(self, now_ns: int, size_bytes: int, payload: Any = None) -> bool:
        """A packet arrives; False: it is dropped."""
        self._advance(now_ns)
        if self.queue_bytes + size_bytes > self._queue_limit_bytes or self.inside_bytes + size_bytes > self._max_inside_bytes:
            return False
        departure_ns, begin_ns = now_ns, now_ns
        if self._capacity is not None:
            idle = self._capacity.at(now_ns) - self._finish
            if idle > 0:
                self._wasted += idle
                self._finish += idle
            self._finish += size_bytes * self._capacity.per_byte
            departure_ns = self._capacity.when(self._finish)
            begin_ns = max(now_ns, self._last_ns)
        self._last_ns = departure_ns
        self._waiting.append(Entry(begin_ns, departure_ns, size_bytes, payload))
        self.queue_bytes += size_bytes
        self.inside_bytes += size_bytes
        return True

    @property
    def due_ns(self) -> int | None:
        """When the next packet is delivered; None: nothing is inside."""
        line = self._flying or self._waiting
        return line[0].departure_ns + self.delay_ns if line else None

    def take(self, now_ns: int) -> Entry | None:
        """The next packet that is to be delivered by `now_ns`."""
        self._advance(now_ns)
        if not self._flying or self._flying[0].departure_ns + self.delay_ns > now_ns:
            return None
        entry = self._flying.popleft()
        self.inside_bytes -= entry.size_bytes
        return entry

    def _advance(self, now_ns: int) -> None:
        """What has left the bottleneck by `now_ns` is in the delay line."""
        waiting = self._waiting
        while waiting and waiting[0].departure_ns <= now_ns:
            entry = waiting.popleft()
            self.queue_bytes -= entry.size_bytes
            self._flying.append(entry)

    def queued_at(self, now_ns: int) -> int:
        """Queue in bytes at `now_ns`."""
        self._advance(now_ns)
        return self.queue_bytes

    def spent_at(self, now_ns: int) -> tuple[float, float]:
        """Bytes allowed, and of these wasted because nothing waited, since the capacity was set, at `now_ns`."""
        if self._capacity is None:
            return 0.0, 0.0
        allowed = self._capacity.at(now_ns)
        wasted = self._wasted + max(allowed - self._finish, 0)
        return allowed / self._capacity.per_byte, wasted / self._capacity.per_byte

    def switch(self, now_ns: int, capacity: Capacity) -> None:
        """From `now_ns` on serve at the pace of `capacity`, whose start is `now_ns`; a packet in service goes on where it is."""
        self._advance(now_ns)
        needs = [entry.size_bytes for entry in self._waiting]
        if needs and self._capacity is not None:
            behind = self._finish - self._capacity.at(now_ns)
            needs[0] -= sum(needs) + behind // -self._capacity.per_byte  # served already, in whole bytes
        self._capacity, self._finish, self._wasted, self._last_ns = capacity, 0, 0, now_ns
        for i, need_bytes in enumerate(needs):
            self._finish += need_bytes * capacity.per_byte
            begin_ns, self._last_ns = self._last_ns, capacity.when(self._finish)
            self._waiting[i] = self._waiting[i]._replace(begin_ns=begin_ns, departure_ns=self._last_ns)

    def restart(self, now_ns: int, capacity: Capacity) -> int:
        """The same after forgetting what waits (not what is in the delay line); returns how many packets that were."""
        self._advance(now_ns)
        flushed = len(self._waiting)
        self._waiting.clear()
        self.inside_bytes -= self.queue_bytes
        self.queue_bytes = 0
        self.switch(now_ns, capacity)
        return flushed
