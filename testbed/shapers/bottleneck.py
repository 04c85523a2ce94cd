"""The bottleneck as a pure model: who leaves when, given a trace. Takes `now_ns`, reads no clock, moves no packet.

A packet waits in the queue until its predecessor has left, or not at all when there is none. Then it is served: it leaves at the first
nanosecond at which the capacity has risen by its size since the service began. With that its fate is settled: how long the path takes from
there, and whether it loses the packet. First in, first out, in the queue as on the path. The relay in C is this model to the nanosecond.
"""

from collections import deque
from typing import Any, NamedTuple

from testbed.shapers.capacity import Capacity
from testbed.shapers.codel import CoDel, Waiting
from testbed.shapers.conditions import Conditions, Fate

MAX_INSIDE_BYTES = 2**24
"""Bound on queue and delay line together, so that a flood can't eat the memory; what is beyond it is dropped as by droptail."""


class Entry(NamedTuple):
    """A packet inside. Its bytes leave the bottleneck evenly between `begin_ns` and `departure_ns`; at `due_ns` it is delivered."""

    begin_ns: int
    departure_ns: int
    due_ns: int
    size_bytes: int
    payload: Any
    lost: bool = False
    """It used the capacity, and ends at `departure_ns`."""


class Bottleneck:
    """Queue, service at a capacity's pace (at once when there is none), delay and loss."""

    def __init__(
        self,
        capacity: Capacity | None,
        delay_ns: int,
        queue_limit_bytes: int,
        queue_limit_packets: int = 0,
        codel: CoDel | None = None,
        max_inside_bytes: int = MAX_INSIDE_BYTES,
    ) -> None:
        self.inside_bytes = 0
        """Of packets in queue, service and delay line."""
        self._capacity = capacity
        self._conditions: Conditions | None = None
        self._delay_ns, self._codel = delay_ns, codel
        self._limit_bytes, self._limit_packets, self._max_inside_bytes = queue_limit_bytes, queue_limit_packets, max_inside_bytes
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._serving: Entry | None = None
        self._flying: deque[Entry] = deque()
        self._last_due_ns = 0
        self._finish = 0  # work at which the last packet served leaves
        self._wasted = 0  # work that passed while nothing waited, up to the last arrival
        self.zero()

    def zero(self) -> None:
        """Begin to count losses anew."""
        self.drops = {"queue": 0, "codel": 0, "loss": 0}
        self.dropped_bytes = 0
        """By the queue's bounds and by CoDel."""
        self.lost_bytes = 0
        """On the path, after the bottleneck."""

    def __len__(self) -> int:
        """Packets inside."""
        return len(self._waiting) + (self._serving is not None) + len(self._flying)

    @property
    def queue_bytes(self) -> int:
        """Of packets that have not left the bottleneck, the one in service included whole."""
        return self._waiting_bytes + (self._serving.size_bytes if self._serving else 0)

    def offer(self, now_ns: int, size_bytes: int, payload: Any = None) -> bool:
        """A packet arrives; False: it is dropped."""
        self.advance(now_ns)
        queued = len(self._waiting) + (self._serving is not None)
        if (
            self.queue_bytes + size_bytes > self._limit_bytes
            or (self._limit_packets and queued >= self._limit_packets)
            or self.inside_bytes + size_bytes > self._max_inside_bytes
        ):
            self._count_drop("queue", size_bytes)
            return False
        self._waiting.append(Waiting(now_ns, size_bytes, payload))
        self._waiting_bytes += size_bytes
        self.inside_bytes += size_bytes
        if self._serving is None:
            self._waste(now_ns)
            self._begin(now_ns)
        return True

    @property
    def due_ns(self) -> int | None:
        """When something is to be done next; None: nothing is inside."""
        if self._flying:
            return self._flying[0].due_ns
        return self._serving.due_ns if self._serving else None

    def take(self, now_ns: int) -> Entry | None:
        """The next packet that is to be delivered by `now_ns`."""
        self.advance(now_ns)
        if not self._flying or self._flying[0].due_ns > now_ns:
            return None
        entry = self._flying.popleft()
        self.inside_bytes -= entry.size_bytes
        return entry

    def advance(self, now_ns: int) -> None:
        """Let leave what leaves the bottleneck by `now_ns`, and serve what comes after it."""
        while (served := self._serving) and served.departure_ns <= now_ns:
            self._leave(served)
            self._begin(served.departure_ns)

    def _leave(self, served: Entry) -> None:
        self._serving = None
        if not served.lost:
            self._flying.append(served)
            return
        self.inside_bytes -= served.size_bytes
        self.lost_bytes += served.size_bytes
        self.drops["loss"] += 1

    def _begin(self, now_ns: int) -> None:
        """The bottleneck is free at `now_ns`: serve who comes next, if anybody."""
        packet = self._codel.dequeue(now_ns, self) if self._codel else self.pop()
        if packet:
            self._serving = self._serve(now_ns, packet.size_bytes, packet.size_bytes, packet.payload)

    # What CoDel asks of its queue

    @property
    def waiting_bytes(self) -> int:
        """Of packets in the queue, the one in service not among them."""
        return self._waiting_bytes

    def pop(self) -> Waiting | None:
        """Take the first packet out of the queue."""
        if not self._waiting:
            return None
        self._waiting_bytes -= self._waiting[0].size_bytes
        return self._waiting.popleft()

    def drop(self, packet: Waiting) -> None:
        """A packet that was popped is not to be served."""
        self.inside_bytes -= packet.size_bytes
        self._count_drop("codel", packet.size_bytes)

    def _serve(self, begin_ns: int, need_bytes: int, size_bytes: int, payload: Any) -> Entry:
        """Serve a packet of `size_bytes`, `need_bytes` of which still have to leave."""
        departure_ns = begin_ns
        if self._capacity is not None:
            self._finish += need_bytes * self._capacity.per_byte
            departure_ns = self._capacity.when(self._finish)
        fate = self._conditions.fate(departure_ns) if self._conditions else Fate(-1, False)
        if fate.lost:
            return Entry(begin_ns, departure_ns, departure_ns, size_bytes, payload, lost=True)
        delay_ns = self._delay_ns if fate.delay_ns < 0 else fate.delay_ns
        self._last_due_ns = max(self._last_due_ns, departure_ns + delay_ns)
        return Entry(begin_ns, departure_ns, self._last_due_ns, size_bytes, payload)

    def _waste(self, now_ns: int) -> None:
        """What could have been done while nothing waited is gone."""
        if self._capacity is not None:
            idle = self._capacity.at(now_ns) - self._finish
            self._wasted += max(idle, 0)
            self._finish += max(idle, 0)

    def _count_drop(self, cause: str, size_bytes: int) -> None:
        self.drops[cause] += 1
        self.dropped_bytes += size_bytes

    def spent_at(self, now_ns: int) -> tuple[float, float]:
        """Bytes allowed, and of these wasted because nothing waited, since the capacity was set, at `now_ns`."""
        self.advance(now_ns)
        if self._capacity is None:
            return 0.0, 0.0
        allowed = self._capacity.at(now_ns)
        wasted = self._wasted + max(allowed - self._finish, 0)
        return allowed / self._capacity.per_byte, wasted / self._capacity.per_byte

    def switch(self, now_ns: int, capacity: Capacity | None, conditions: Conditions | None = None) -> None:
        """From `now_ns` on serve at the pace of `capacity`, whose start is `now_ns`; a packet in service goes on where it is."""
        self.advance(now_ns)
        before, served, finish = self._capacity, self._serving, self._finish
        self._capacity, self._conditions, self._finish, self._wasted = capacity, conditions, 0, 0
        if served and before:
            need_bytes = -((finish - before.at(now_ns)) // -before.per_byte)  # in whole bytes
            self._last_due_ns = self._flying[-1].due_ns if self._flying else 0
            self._serving = self._serve(now_ns, need_bytes, served.size_bytes, served.payload)

    def clear(self) -> None:
        """Forget all packets inside."""
        self._waiting.clear()
        self._flying.clear()
        self._serving, self._waiting_bytes, self.inside_bytes, self._last_due_ns = None, 0, 0, 0

    def restart(self, now_ns: int, capacity: Capacity | None) -> None:
        """The same without conditions, after forgetting what has not left the bottleneck."""
        self.advance(now_ns)
        self.inside_bytes -= self.queue_bytes
        self._waiting.clear()
        self._waiting_bytes, self._serving = 0, None
        if self._codel:
            self._codel.reset()
        self._last_due_ns = self._flying[-1].due_ns if self._flying else 0
        self.switch(now_ns, capacity)
