"""A lane of the Python relay: two TAP devices, a bottleneck in each direction, the counters. Moves frames; `relay` says when."""

import mmap
import os
import socket
from collections.abc import Callable

from testbed import clock
from testbed.link import START
from testbed.shapers import kernelcalls, messages
from testbed.shapers.bottleneck import Bottleneck
from testbed.shapers.capacity import RATE_SCALE, Capacity, OpportunityCapacity, RateCapacity, constant
from testbed.shapers.codel import CoDel
from testbed.shapers.conditions import Conditions
from testbed.shapers.ledger import Lateness, Stalls, Windows
from testbed.units import ETHERNET_BYTES, MTU_BYTES

MAX_FRAME_BYTES = ETHERNET_BYTES + MTU_BYTES
READ_BYTES = 2048
BATCH = 8
"""Frames read from one device before the timers are looked at again."""
ARP = b"\x08\x06"
IDLE_RATE_BPS = 100e6
"""Towards the client, of a link to which no trace was ever loaded."""

Course = tuple[Capacity | None, Conditions | None]


class Half:
    """One direction of a lane: reads frames from `source`, hands them to `sink`."""

    def __init__(self, source: int, sink: int, bottleneck: Bottleneck) -> None:
        self.source, self.sink, self.bottleneck = source, sink, bottleneck
        self.scheduled_ns: int | None = None  # the entry in the relay's heap that counts
        self._rest_rate: int | None = None  # 1e-3 bit/s outside a trial; None: as fast as can be
        self._armed: Callable[[int], Course] | None = None
        self._capacity: Capacity | None = None
        self.windows: Windows | None = None
        self._zero()

    def _zero(self) -> None:
        """Begin to count anew."""
        self._packets_in = self._packets_out = 0
        self._drops = {"malformed": 0, "transmit": 0}
        self.bottleneck.zero()
        self._lateness = Lateness()

    def load(self, now_ns: int, course: messages.Course, offset_ns: int) -> None:
        """Arm the direction: an empty queue, counters at 0, the trace's mean rate until `start`."""
        self._armed = _armed(course, offset_ns)
        if self._armed:
            self._armed(now_ns)  # ValueError now rather than at the start
        self._rest_rate = course.mean_rate if course.times else None
        self._capacity, self.windows = None, None
        self.bottleneck.clear()
        self.rest(now_ns)
        self._zero()

    def rest(self, now_ns: int) -> None:
        """Outside a trial: an empty queue, the trace's mean rate, no conditions."""
        resting = constant(self._rest_rate / RATE_SCALE, now_ns) if self._rest_rate else None
        self.bottleneck.restart(now_ns, resting)

    def start(self, now_ns: int) -> None:
        """The trace begins."""
        if self._armed:
            self._capacity, conditions = self._armed(now_ns)
            self.bottleneck.switch(now_ns, self._capacity, conditions)
            self.windows = Windows(self.bottleneck, now_ns)

    def receive(self) -> bool:
        """Read up to BATCH frames and queue them; False: the device is gone."""
        for _ in range(BATCH):
            try:
                frame = os.read(self.source, READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._accept(clock.now_ns(), frame)
        return True

    def _accept(self, now_ns: int, frame: bytes) -> None:
        if frame[12:14] == ARP:
            self._transmit(frame)  # not shaped, not counted; static neighbours make it rare
            return
        self._packets_in += 1
        if not ETHERNET_BYTES < len(frame) <= MAX_FRAME_BYTES:
            self._drops["malformed"] += 1
            return
        self.advance(now_ns)
        self.bottleneck.offer(now_ns, len(frame) - ETHERNET_BYTES, frame)

    def advance(self, now_ns: int) -> None:
        """Close the windows that are over."""
        if self.windows:
            self.windows.advance(now_ns)

    def deliver(self, now_ns: int) -> None:
        """Hand over what is due."""
        self.advance(now_ns)
        while entry := self.bottleneck.take(now_ns):
            late_ns = clock.now_ns() - entry.due_ns
            if not self._transmit(entry.payload):
                self._drops["transmit"] += 1
                continue
            self._packets_out += 1
            self._lateness.add(late_ns)
            if self.windows:
                self.windows.served(entry, late_ns)

    def _transmit(self, frame: bytes) -> bool:
        try:
            os.write(self.sink, frame)
        except OSError:
            return False
        return True

    def stop(self, now_ns: int) -> messages.Counters:
        """End the trial; what it counted."""
        self.advance(now_ns)
        counters = messages.Counters(
            packets_in=self._packets_in,
            packets_out=self._packets_out,
            inside=len(self.bottleneck),
            drops={**self.bottleneck.drops, **self._drops},
            wraps=self._capacity.wraps(now_ns) if self._capacity else 0,
            windows_lost=self.windows.lost_at(now_ns) if self.windows else 0,
            max_late_ns=self._lateness.max_ns,
            fine_us=self._lateness.fine,
            coarse_us=self._lateness.coarse,
            rows=self.windows.rows if self.windows else messages.no_rows(),
        )
        self._armed, self._capacity, self.windows = None, None, None
        self.rest(now_ns)
        return counters


def _armed(course: messages.Course, offset_ns: int) -> Callable[[int], Course] | None:
    """What `start` makes of a course; None: that direction has no trace."""
    if not course.times:
        return None

    def started(now_ns: int) -> Course:
        capacity: Capacity
        if course.rates:
            capacity = RateCapacity(course.times, course.rates, now_ns, offset_ns)
        else:
            capacity = OpportunityCapacity(course.times, now_ns, offset_ns)
        if not course.delays:
            return capacity, None
        columns = (course.edges, course.delays, course.enter, course.stay)
        return capacity, Conditions(*columns, course.seed, now_ns, offset_ns)

    return started


class RelayLane:
    """Two directions and the start socket."""

    def __init__(self, spec: messages.Attach) -> None:
        if spec.offload:
            raise ValueError("frames with offloads are for the relay in C alone")
        server = kernelcalls.open_tap(spec.server_pid, spec.server_interface)
        client = kernelcalls.open_tap(spec.client_pid, spec.client_interface)
        self.down = Half(server, client, _bottleneck(spec, constant(IDLE_RATE_BPS, clock.now_ns())))
        self.up = Half(client, server, _bottleneck(spec, None))
        self.halves = (self.down, self.up)
        self.starts = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.starts.bind(spec.start_path)
        os.chmod(spec.start_path, 0o666)
        self._armed = False
        self._started_ns: int | None = None
        self._stalls = Stalls()

    @property
    def runs(self) -> bool:
        """Whether its trace has started."""
        return self._started_ns is not None

    def stalled(self, late_ns: int) -> None:
        """The relay's turn began late."""
        if self.runs:
            self._stalls.add(late_ns)

    def load(self, datagram: bytes, descriptor: int) -> None:
        """See `Link.load`."""
        numbers = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)).cast("q")
        request = messages.Load.decode(datagram, numbers)
        now_ns = clock.now_ns()
        self.down.load(now_ns, request.down, request.offset_ns)
        self.up.load(now_ns, request.up, request.offset_ns)
        self._armed, self._started_ns, self._stalls = True, None, Stalls()

    def start(self) -> None:
        """Datagrams came; the first `start` starts the traces."""
        for _ in range(BATCH):
            try:
                datagram = self.starts.recv(len(START) + 1)
            except OSError:
                return
            if datagram == START and self._armed:
                self._armed, self._started_ns = False, clock.now_ns()
                for half in self.halves:
                    half.start(self._started_ns)

    def stop(self, descriptor: int) -> None:
        """See `Link.stop`; the result goes into the file behind the descriptor."""
        now_ns = clock.now_ns()
        result = messages.Result(
            started_ns=self._started_ns,
            stopped_ns=now_ns,
            down=self.down.stop(now_ns),
            up=self.up.stop(now_ns),
            stalled_ns=self._stalls.total_ns,
            max_stall_ns=self._stalls.max_ns,
        )
        self._armed, self._started_ns = False, None
        data = result.encode()
        while data:
            data = data[os.write(descriptor, data) :]


def _bottleneck(spec: messages.Attach, capacity: Capacity | None) -> Bottleneck:
    codel = CoDel(spec.codel_target_ns, spec.codel_interval_ns) if spec.codel_target_ns else None
    return Bottleneck(capacity, spec.delay_ns, spec.queue_bytes, spec.queue_packets, codel)
