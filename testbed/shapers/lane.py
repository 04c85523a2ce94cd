"""One lane of the relay: two directions between two TAP devices, and the trace of the one towards the client."""

import mmap
import os
import socket
from collections.abc import Callable

from testbed import clock
from testbed.shapers import kernelcalls, messages
from testbed.shapers.bottleneck import Bottleneck, Capacity, OpportunityCapacity, RateCapacity, constant
from testbed.shapers.ledger import COLUMNS, MAX_WINDOWS, WINDOW_NS, Lateness, Windows
from testbed.units import MTU_BYTES

HEADER_BYTES = 14
"""Of Ethernet."""
MAX_FRAME_BYTES = HEADER_BYTES + MTU_BYTES
READ_BYTES = 2048
BATCH = 8
"""Frames read from one device before the timers are looked at again."""
ARP = b"\x08\x06"
IDLE_RATE_BPS = 100e6
"""Of a link to which no trace was ever loaded."""
START = b"start"


class Half:
    """One direction of a lane: reads frames from `source`, hands them to `sink`."""

    def __init__(self, source: int, sink: int, bottleneck: Bottleneck) -> None:
        self.source, self.sink, self.bottleneck = source, sink, bottleneck
        self.scheduled_ns: int | None = None  # the entry in the relay's heap that counts
        self.windows: Windows | None = None
        self.zero()

    def zero(self) -> None:
        """Begin to count anew."""
        self.packets_in, self.packets_out = len(self.bottleneck), 0
        self.drops = {"queue": 0, "malformed": 0, "transmit": 0}
        self.lateness = Lateness()

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
        self.packets_in += 1
        if not HEADER_BYTES < len(frame) <= MAX_FRAME_BYTES:
            self.drops["malformed"] += 1
            return
        size_bytes = len(frame) - HEADER_BYTES
        if self.windows:
            self.windows.advance(now_ns)
        if not self.bottleneck.offer(now_ns, size_bytes, frame):
            self.drops["queue"] += 1
            if self.windows:
                self.windows.drop(size_bytes)

    def deliver(self, now_ns: int) -> None:
        """Hand over what is due."""
        if self.windows:
            self.windows.advance(now_ns)
        while entry := self.bottleneck.take(now_ns):
            late_ns = clock.now_ns() - entry.departure_ns - self.bottleneck.delay_ns
            if not self._transmit(entry.payload):
                self.drops["transmit"] += 1
                continue
            self.packets_out += 1
            self.lateness.add(late_ns)
            if self.windows:
                self.windows.served(entry, late_ns)

    def _transmit(self, frame: bytes) -> bool:
        try:
            os.write(self.sink, frame)
        except OSError:
            return False
        return True

    def counters(self) -> messages.Direction:
        """For the report."""
        return messages.Direction(
            packets_in=self.packets_in,
            packets_out=self.packets_out,
            inside=len(self.bottleneck),
            drops=self.drops,
            fine_us=self.lateness.fine.tobytes(),
            coarse_us=self.lateness.coarse.tobytes(),
            max_ns=self.lateness.max_ns,
        )


class RelayLane:
    """Two directions and the trace of the one towards the client."""

    def __init__(self, spec: messages.Attach) -> None:
        server = kernelcalls.open_tap(spec.server_pid, spec.server_interface)
        client = kernelcalls.open_tap(spec.client_pid, spec.client_interface)
        idle = constant(IDLE_RATE_BPS, clock.now_ns())
        self.down = Half(server, client, Bottleneck(idle, spec.delay_ns, spec.queue_bytes))
        self.up = Half(client, server, Bottleneck(None, spec.delay_ns, spec.queue_bytes))
        self.starts = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.starts.bind(spec.start_path)
        os.chmod(spec.start_path, 0o666)
        self._armed: Callable[[int], Capacity] | None = None
        self._mean_rate_bps = IDLE_RATE_BPS
        self._capacity: Capacity | None = None
        self.windows: Windows | None = None

    def load(self, request: messages.Load, descriptor: int) -> None:
        """See `Link.load`."""
        numbers = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)).cast("q")
        times, rates = numbers[: request.points], numbers[request.points : request.points + request.rates]
        offset_ns = request.offset_ns
        if request.rates:
            self._armed = lambda now_ns: RateCapacity(times, rates, now_ns, offset_ns)
        else:
            self._armed = lambda now_ns: OpportunityCapacity(times, now_ns, offset_ns)
        self._mean_rate_bps, self._capacity, self.windows = request.mean_rate_bps, None, None
        self._rest()
        self.down.zero()
        self.up.zero()

    def _rest(self) -> None:
        """Outside a trial: an empty queue, the trace's mean rate."""
        now_ns = clock.now_ns()
        self.down.windows = None
        self.down.bottleneck.restart(now_ns, constant(self._mean_rate_bps, now_ns))

    def start(self) -> None:
        """Datagrams came; the first `start` starts the trace."""
        for _ in range(BATCH):
            try:
                datagram = self.starts.recv(len(START) + 1)
            except OSError:
                return
            if datagram == START and self._armed:
                now_ns = clock.now_ns()
                self._capacity, self._armed = self._armed(now_ns), None
                self.down.bottleneck.switch(now_ns, self._capacity)
                self.windows = self.down.windows = Windows(self.down.bottleneck, now_ns)

    def stop(self) -> messages.Stopped:
        """See `Link.stop`."""
        now_ns = clock.now_ns()
        if self.windows:
            self.windows.advance(now_ns)
        answer = messages.Stopped(
            started_ns=self.windows.start_ns if self.windows else None,
            windows=len(self.windows.rows) // COLUMNS if self.windows else 0,
            windows_lost=max((now_ns - self.windows.start_ns) // WINDOW_NS - MAX_WINDOWS, 0) if self.windows else 0,
            wraps=self._capacity.wraps(now_ns) if self._capacity else 0,
            down=self.down.counters(),
            up=self.up.counters(),
        )
        self._armed, self._capacity = None, None
        self._rest()
        return answer

    def page(self, first: int) -> bytes:
        """Windows of the last trial from number `first` on."""
        rows = self.windows.rows if self.windows else b""
        return bytes(memoryview(rows)[first * COLUMNS : (first + messages.PAGE_WINDOWS) * COLUMNS])
