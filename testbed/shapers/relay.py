"""The user-space relay: one real-time process that carries the packets of all lanes. `python -m testbed.shapers.relay PARENT_PID FD`.

Each lane has two TAP devices, one the server's interface, one the client's. The relay reads frames from one, asks the bottleneck
model when they leave, and writes them to the other at that time. `FD` is a SOCK_SEQPACKET socket to the testbed (`messages`).
"""

import gc
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

import msgspec

from testbed import clock
from testbed.errors import TestbedError
from testbed.shapers import kernelcalls, messages
from testbed.shapers.bottleneck import Bottleneck, Capacity, OpportunityCapacity, RateCapacity, constant
from testbed.shapers.ledger import COLUMNS, MAX_WINDOWS, WINDOW_NS, Lateness, Windows
from testbed.units import MTU_BYTES, ns_from_s, s_from_ns

PRIORITY = 50
HEADER_BYTES = 14
"""Of Ethernet."""
MAX_FRAME_BYTES = HEADER_BYTES + MTU_BYTES
READ_BYTES = 2048
BATCH = 8
"""Frames read from one device before the timers are looked at again."""
ARP = b"\x08\x06"
IDLE_RATE_BPS = 100e6
"""Of a link to which no trace was ever loaded."""
TICK_NS = ns_from_s(1.0)
"""Idle links close their windows at least this often, so that no later packet has to wait for it."""
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


class Relay:
    """All lanes, one loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._decoder = msgspec.json.Decoder(messages.Request)
        self._lanes: dict[int, RelayLane] = {}
        self._halves: list[Half] = []
        self._heap: list[tuple[int, int]] = []  # (when, index of the half); stale entries are recognised by `scheduled_ns`
        self._handlers: dict[int, Callable[[], None]] = {control.fileno(): self._serve}
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._running = True

    def run(self) -> None:
        """Until the testbed closes the socket."""
        waited = [self._epoll.fileno()]
        tick_ns = clock.now_ns()
        while self._running:
            now_ns = clock.now_ns()
            if now_ns >= tick_ns:
                self._tick(now_ns)
                tick_ns = now_ns + TICK_NS
            self._deliver()
            wake_ns = min(self._heap[0][0], tick_ns) if self._heap else tick_ns
            # epoll waits in whole ms, select in us
            if select.select(waited, (), (), max(s_from_ns(wake_ns - clock.now_ns()), 0.0))[0]:
                for descriptor, _ in self._epoll.poll(0):
                    self._handlers[descriptor]()
                    self._deliver()

    def _deliver(self) -> None:
        """Hand over what is due by now on any lane."""
        heap, now_ns = self._heap, clock.now_ns()
        while heap and heap[0][0] <= now_ns:
            due_ns, index = heappop(heap)
            half = self._halves[index]
            if due_ns == half.scheduled_ns:
                half.scheduled_ns = None
                half.deliver(now_ns)
                self._schedule(index)

    def _schedule(self, index: int) -> None:
        """See to it that the half's next packet is in the heap."""
        half = self._halves[index]
        due_ns = half.bottleneck.due_ns
        if due_ns is not None and (half.scheduled_ns is None or due_ns < half.scheduled_ns):
            half.scheduled_ns = due_ns
            heappush(self._heap, (due_ns, index))

    def _tick(self, now_ns: int) -> None:
        for lane in self._lanes.values():
            if lane.down.windows:
                lane.down.windows.advance(now_ns)

    def _serve(self) -> None:
        """One request of the testbed."""
        data, descriptors, _, _ = socket.recv_fds(self._control, messages.MAX_MESSAGE_BYTES, 1)
        try:
            if not data:
                self._running = False
                return
            answer: messages.Answer
            try:
                answer = self._obey(self._decoder.decode(data), descriptors)
            except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
                answer = messages.Failed(reason=f"{type(error).__name__}: {error}")
            self._control.send(msgspec.json.encode(answer))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _obey(self, request: messages.Request, descriptors: list[int]) -> messages.Answer:
        match request:
            case messages.Attach():
                self._attach(request)
            case messages.Load():
                self._lanes[request.lane].load(request, descriptors[0])
            case messages.Stop():
                return self._lanes[request.lane].stop()
            case messages.FetchWindows():
                return messages.WindowPage(rows=self._lanes[request.lane].page(request.first))
        return messages.Done()

    def _attach(self, request: messages.Attach) -> None:
        lane = RelayLane(request)
        self._lanes[request.lane] = lane
        for half in (lane.down, lane.up):
            self._halves.append(half)
            self._watch(half.source, partial(self._receive, len(self._halves) - 1))
        self._watch(lane.starts.fileno(), partial(self._start, lane, len(self._halves) - 2))

    def _receive(self, index: int) -> None:
        half = self._halves[index]
        if half.receive():
            self._schedule(index)
        else:
            self._epoll.unregister(half.source)

    def _start(self, lane: RelayLane, index: int) -> None:
        lane.start()
        self._schedule(index)

    def _watch(self, descriptor: int, handler: Callable[[], object]) -> None:
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)


def main(arguments: list[str]) -> None:
    """Set the process up, say so, relay."""
    if len(arguments) != 2:
        raise TestbedError(f"the relay got {len(arguments)} arguments, wanted the parent's pid and a socket")
    kernelcalls.die_with_parent(int(arguments[0]))
    control = socket.socket(fileno=int(arguments[1]))
    problems = kernelcalls.become_realtime(PRIORITY)
    gc.collect()
    gc.freeze()
    gc.disable()
    relay = Relay(control)
    control.send(msgspec.json.encode(messages.Ready(problems=problems)))
    relay.run()


if __name__ == "__main__":
    main(sys.argv[1:])
