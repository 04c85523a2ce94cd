"""The relay in Python: one real-time process that carries the packets of all lanes. `python -m testbed.shapers.relay PARENT_PID FD`.

It is the readable reference for the one in C (`native/`), which does the same faster, and stands in where that can't be built.
Each lane has two TAP devices, one the server's interface, one the client's. The relay reads frames from one, asks the bottleneck
model when they leave, and writes them to the other at that time. `FD` is a SOCK_SEQPACKET socket to the testbed (`messages`).
"""

import gc
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

from testbed import clock
from testbed.errors import TestbedError
from testbed.shapers import kernelcalls, messages
from testbed.shapers.lane import Half, RelayLane
from testbed.shapers.ledger import BEAT_NS
from testbed.units import ns_from_s, s_from_ns
from testbed.user import die_with_parent

PRIORITY = 50
TICK_NS = ns_from_s(1.0)
"""Idle links close their windows at least this often, so that no later packet has to wait for it."""


class Relay:
    """All lanes, one loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lanes: dict[int, RelayLane] = {}
        self._halves: list[Half] = []
        self._heap: list[tuple[int, int]] = []  # (when, index of the half); stale entries are recognised by `scheduled_ns`
        self._handlers: dict[int, Callable[[], object]] = {control.fileno(): self._serve}
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._running = True

    def run(self) -> None:
        """Until the testbed closes the socket."""
        waited = [self._epoll.fileno()]
        wake_ns = tick_ns = clock.now_ns()
        while self._running:
            now_ns = clock.now_ns()
            for lane in self._lanes.values():
                lane.stalled(now_ns - wake_ns)
            if now_ns >= tick_ns:
                self._tick(now_ns)
                tick_ns = now_ns + TICK_NS
            self._deliver()
            wake_ns = max(min(self._heap[0][0] if self._heap else tick_ns, tick_ns, self._beat_ns()), clock.now_ns())
            # epoll waits in whole ms, select in us
            if select.select(waited, (), (), max(s_from_ns(wake_ns - clock.now_ns()), 0.0))[0]:
                for descriptor, _ in self._epoll.poll(0):
                    self._handlers[descriptor]()
                    self._deliver()

    def _beat_ns(self) -> int:
        """When to look around at the latest: soon while a trace runs, so that a stall shows."""
        return clock.now_ns() + (BEAT_NS if any(lane.runs for lane in self._lanes.values()) else TICK_NS)

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
        for half in self._halves:
            half.advance(now_ns)

    def _serve(self) -> None:
        """One request of the testbed."""
        data, descriptors, _, _ = socket.recv_fds(self._control, messages.MAX_MESSAGE_BYTES, 1)
        try:
            if not data:
                self._running = False
                return
            try:
                self._obey(data, descriptors)
                answer = messages.ANSWER.pack(messages.DONE)
            except (OSError, ValueError, LookupError, struct.error) as error:
                answer = messages.ANSWER.pack(messages.FAILED) + f"{type(error).__name__}: {error}".encode()
            self._control.send(answer)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _obey(self, datagram: bytes, descriptors: list[int]) -> None:
        kind, lane = messages.HEADER.unpack_from(datagram)
        if kind == messages.ATTACH_KIND:
            self._attach(messages.Attach.decode(datagram))
        elif kind == messages.LOAD_KIND:
            self._lanes[lane].load(datagram, descriptors[0])
        elif kind == messages.STOP_KIND:
            self._lanes[lane].stop(descriptors[0])
        else:
            raise ValueError(f"unknown request {kind}")

    def _attach(self, request: messages.Attach) -> None:
        lane = RelayLane(request)
        self._lanes[request.lane] = lane
        for half in lane.halves:
            self._halves.append(half)
            self._watch(half.source, partial(self._receive, len(self._halves) - 1))
        self._watch(lane.starts.fileno(), partial(self._start, lane))

    def _receive(self, index: int) -> None:
        half = self._halves[index]
        if half.receive():
            self._schedule(index)
        else:
            self._epoll.unregister(half.source)

    def _start(self, lane: RelayLane) -> None:
        lane.start()
        for half in lane.halves:
            self._schedule(self._halves.index(half))

    def _watch(self, descriptor: int, handler: Callable[[], object]) -> None:
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)


def main(arguments: list[str]) -> None:
    """Set the process up, say so, relay."""
    if len(arguments) != 2:
        raise TestbedError(f"the relay got {len(arguments)} arguments, wanted the parent's pid and a socket")
    die_with_parent(int(arguments[0]))
    control = socket.socket(fileno=int(arguments[1]))
    problems = kernelcalls.become_realtime(PRIORITY)
    gc.collect()
    gc.freeze()
    gc.disable()
    relay = Relay(control)
    control.send(messages.ANSWER.pack(messages.READY) + "\n".join(problems).encode())
    relay.run()


if __name__ == "__main__":
    main(sys.argv[1:])
