"""CoDel, RFC 8289: drops at the head of a queue whose packets have waited too long for too long. Pure, in integer ns."""

from math import isqrt
from typing import NamedTuple, Protocol

from testbed.units import MTU_BYTES, ns_from_s

TARGET_NS = ns_from_s(0.005)
INTERVAL_NS = ns_from_s(0.1)
"""Both as section 4.2 and 4.3 advise for the Internet."""
REENTRY_INTERVALS = 16
"""Section 5.5: dropping again within so many intervals goes on at about the pace at which it ended."""


class Waiting(NamedTuple):
    """A packet in the queue."""

    arrival_ns: int
    size_bytes: int
    payload: object


class Queue(Protocol):
    """What CoDel manages."""

    @property
    def waiting_bytes(self) -> int:
        """Of the packets in it."""

    def pop(self) -> Waiting | None:
        """Take the first packet out."""

    def drop(self, packet: Waiting) -> None:
        """A packet that was popped is gone."""


class CoDel:
    """The state of section 5.2, and `deque` of section 5.5. The law's square root is rounded down to whole ns."""

    def __init__(self, target_ns: int = TARGET_NS, interval_ns: int = INTERVAL_NS) -> None:
        self.target_ns, self.interval_ns = target_ns, interval_ns
        self.reset()

    def reset(self) -> None:
        """Forget all that was: no packet waits."""
        self._first_above_ns = 0
        self._drop_next_ns = 0
        self._count = self._last_count = 0
        self._dropping = False

    def dequeue(self, now_ns: int, queue: Queue) -> Waiting | None:
        """The next packet to serve; those before it that must go are dropped."""
        packet = queue.pop()
        above = self._above(now_ns, packet, queue)
        if self._dropping:
            self._dropping = above
            while packet and self._dropping and now_ns >= self._drop_next_ns:
                queue.drop(packet)
                self._count += 1
                packet = queue.pop()
                self._dropping = self._above(now_ns, packet, queue)
                if self._dropping:
                    self._drop_next_ns = self._law(self._drop_next_ns)
        elif packet and above:
            queue.drop(packet)
            packet = queue.pop()
            self._above(now_ns, packet, queue)
            self._start_dropping(now_ns)
        return packet

    def _start_dropping(self, now_ns: int) -> None:
        self._dropping = True
        delta = self._count - self._last_count
        recently = now_ns - self._drop_next_ns < REENTRY_INTERVALS * self.interval_ns
        self._count = delta if delta > 1 and recently else 1
        self._drop_next_ns = self._law(now_ns)
        self._last_count = self._count

    def _above(self, now_ns: int, packet: Waiting | None, queue: Queue) -> bool:
        """Whether packets have waited longer than the target for an interval at least (`ok_to_drop`)."""
        if packet is None or now_ns - packet.arrival_ns < self.target_ns or queue.waiting_bytes <= MTU_BYTES:
            self._first_above_ns = 0
        elif self._first_above_ns == 0:
            self._first_above_ns = now_ns + self.interval_ns
        else:
            return now_ns >= self._first_above_ns
        return False

    def _law(self, now_ns: int) -> int:
        return now_ns + isqrt(self.interval_ns * self.interval_ns // self._count)
