"""What the testbed and a relay process say to each other: fixed-layout, little-endian datagrams over a SOCK_SEQPACKET socket.

Each request is answered by one datagram. Both relays, `relay.py` and `native/`, speak it; `native/messages.h` is the same in C.

| request | kind | after the header | the descriptor that comes along |
| --- | --- | --- | --- |
| `Attach` | 1 | `ATTACH` | none |
| `Load` | 2 | `LOAD`, then a `DIRECTION` for down and one for up | to be read: the numbers (int64) of down, then of up |
| `Stop` | 3 | nothing | an empty file to be written: a `RESULT`, then the counters of down, then of up |

The numbers of a direction are `times[points]`, `rates[rates]` and, if `segments` > 0, `edges[segments + 1]`, `delays[segments]`,
`enter[segments]`, `stay[segments]`. The counters of one are `COUNTERS`, the lateness as uint32 (`fine`, `coarse`) and the windows as rows
of `ledger.COLUMNS` float64. An answer is a uint32 (`READY`, `DONE` or `FAILED`) and UTF-8 text: a line for each part of the real-time
set-up that was refused, nothing, or the reason.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from testbed.shapers.ledger import COARSE, COLUMNS, FINE_US

ATTACH_KIND, LOAD_KIND, STOP_KIND = 1, 2, 3
READY, DONE, FAILED = 1, 2, 3

HEADER = struct.Struct("<II")
"""Kind, lane."""
ATTACH = struct.Struct("<iiqqqqqII16s16s108s")
LOAD = struct.Struct("<q")
DIRECTION = struct.Struct("<qqqqQ")
RESULT = struct.Struct("<qqqq")
"""CLOCK_MONOTONIC ns of the start (-1: the trace never started) and of the stop; ns that the relay stood still, in all and at most."""
CAUSES = ("queue", "codel", "loss", "malformed", "transmit")
"""Of a drop: the queue's bound, CoDel, the trace's random loss, an empty or overlong frame, a receiving interface that refused."""
COUNTERS = struct.Struct(f"<{7 + len(CAUSES)}q")
"""Packets in, out and inside; drops by cause; wraps of the trace; windows; windows not recorded; largest lateness in ns."""
ANSWER = struct.Struct("<I")
MAX_MESSAGE_BYTES = 4096
PATHS_DELAY = -1
"""As a segment's delay: that of the path."""


@dataclass(frozen=True, kw_only=True)
class Attach:
    """Make a lane's two TAP devices in the network namespaces of two processes, and its start socket."""

    lane: int
    server_pid: int
    client_pid: int
    delay_ns: int
    """One way."""
    queue_bytes: int
    queue_packets: int
    """0: no such bound."""
    codel_target_ns: int
    """0: droptail alone."""
    codel_interval_ns: int
    offload: bool
    """Take frames of up to 64 kB (GSO) with their checksums undone, as kernels hand them over inside one machine. Not for traces."""
    server_interface: str
    client_interface: str
    start_path: str

    def encode(self) -> bytes:
        """The datagram."""
        names = (self.server_interface.encode(), self.client_interface.encode(), self.start_path.encode())
        codel = (self.codel_target_ns, self.codel_interval_ns)
        numbers = (self.server_pid, self.client_pid, self.delay_ns, self.queue_bytes, self.queue_packets, *codel, self.offload, 0)
        return HEADER.pack(ATTACH_KIND, self.lane) + ATTACH.pack(*numbers, *names)

    @classmethod
    def decode(cls, datagram: bytes) -> "Attach":
        """Of a datagram; struct.error when its size is wrong."""
        _, lane = HEADER.unpack_from(datagram)
        *numbers, offload, _, server, client, path = ATTACH.unpack(datagram[HEADER.size :])
        server_pid, client_pid, delay_ns, queue_bytes, queue_packets, codel_target_ns, codel_interval_ns = numbers
        return cls(
            lane=lane,
            server_pid=server_pid,
            client_pid=client_pid,
            delay_ns=delay_ns,
            queue_bytes=queue_bytes,
            queue_packets=queue_packets,
            codel_target_ns=codel_target_ns,
            codel_interval_ns=codel_interval_ns,
            offload=bool(offload),
            server_interface=_text(server),
            client_interface=_text(client),
            start_path=_text(path),
        )


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode()


@dataclass(frozen=True, kw_only=True)
class Course:
    """How one direction goes: its capacity over time and its conditions. Without `times` it has neither, only the path's delay."""

    times: Sequence[int] = ()
    """ns: edges of `rates`, or without rates packet-delivery opportunities."""
    rates: Sequence[int] = ()
    """1e-3 bit/s."""
    mean_rate: int = 0
    """1e-3 bit/s, at which the direction goes before the start and after the stop."""
    edges: Sequence[int] = ()
    """ns, of the segments of conditions."""
    delays: Sequence[int] = ()
    """ns, one way; `PATHS_DELAY`: the path's."""
    enter: Sequence[int] = ()
    """53-bit threshold of loss after a packet that was not lost."""
    stay: Sequence[int] = ()
    """53-bit threshold of loss after a lost packet."""
    seed: int = 0
    """Of the losses, 64 bits."""

    @property
    def numbers(self) -> "array[int]":
        """As they go into the descriptor."""
        return array("q", [*self.times, *self.rates, *self.edges, *self.delays, *self.enter, *self.stay])

    def head(self) -> bytes:
        """The `DIRECTION` that says how many of which."""
        return DIRECTION.pack(len(self.times), len(self.rates), self.mean_rate, len(self.delays), self.seed)

    @classmethod
    def decode(cls, head: bytes, numbers: memoryview) -> tuple["Course", memoryview]:
        """From a `DIRECTION` and the descriptor's int64 numbers; also the numbers that follow. ValueError when there are too few."""
        points, rates, mean_rate, segments, seed = DIRECTION.unpack(head)
        parts = []
        for count in (points, rates, segments + 1 if segments else 0, segments, segments, segments):
            if not 0 <= count <= len(numbers):
                raise ValueError(f"a trace of {len(numbers)} numbers, wanted {count} more")
            parts.append(numbers[:count])
            numbers = numbers[count:]
        times, levels, edges, delays, enter, stay = parts
        course = cls(times=times, rates=levels, mean_rate=mean_rate, edges=edges, delays=delays, enter=enter, stay=stay, seed=seed)
        return course, numbers


@dataclass(frozen=True, kw_only=True)
class Load:
    """Arm a lane."""

    lane: int
    offset_ns: int
    down: Course
    up: Course

    def encode(self) -> bytes:
        """The datagram."""
        return HEADER.pack(LOAD_KIND, self.lane) + LOAD.pack(self.offset_ns) + self.down.head() + self.up.head()

    def numbers(self) -> bytes:
        """What the descriptor holds."""
        return self.down.numbers.tobytes() + self.up.numbers.tobytes()

    @classmethod
    def decode(cls, datagram: bytes, numbers: memoryview) -> "Load":
        """Of a datagram and its descriptor; ValueError or struct.error when they don't fit each other."""
        _, lane = HEADER.unpack_from(datagram)
        (offset_ns,) = LOAD.unpack_from(datagram, HEADER.size)
        begin, middle = HEADER.size + LOAD.size, HEADER.size + LOAD.size + DIRECTION.size
        down, rest = Course.decode(datagram[begin:middle], numbers)
        up, _ = Course.decode(datagram[middle:], rest)
        return cls(lane=lane, offset_ns=offset_ns, down=down, up=up)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """End a lane's trial and hand over its counters."""

    lane: int

    def encode(self) -> bytes:
        """The datagram."""
        return HEADER.pack(STOP_KIND, self.lane)


Request = Attach | Load | Stop


def no_rows() -> "array[float]":
    """Windows of a direction that has no trace."""
    return array("d")


def _zeros(count: int) -> "array[int]":
    return array("I", bytes(4 * count))


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What one direction did since `Load`."""

    packets_in: int
    packets_out: int
    inside: int
    drops: dict[str, int]
    wraps: int = 0
    windows_lost: int = 0
    max_late_ns: int = 0
    fine_us: "array[int]" = field(default_factory=lambda: _zeros(FINE_US))
    coarse_us: "array[int]" = field(default_factory=lambda: _zeros(COARSE))
    """See `ledger.Lateness`."""
    rows: "array[float]" = field(default_factory=no_rows)
    """See `ledger.Windows`."""

    def encode(self) -> bytes:
        """As it goes into the descriptor."""
        drops = [self.drops[cause] for cause in CAUSES]
        counts = (self.packets_in, self.packets_out, self.inside, *drops, self.wraps, len(self.rows) // COLUMNS)
        head = COUNTERS.pack(*counts, self.windows_lost, self.max_late_ns)
        return head + self.fine_us.tobytes() + self.coarse_us.tobytes() + self.rows.tobytes()

    @classmethod
    def decode(cls, data: memoryview) -> tuple["Counters", memoryview]:
        """From the descriptor's bytes; also the bytes that follow."""
        packets_in, packets_out, inside, *counts = COUNTERS.unpack_from(data)
        drops = dict(zip(CAUSES, counts, strict=False))
        wraps, windows, windows_lost, max_late_ns = counts[len(CAUSES) :]
        data = data[COUNTERS.size :]
        fine_us, coarse_us, rows = array("I"), array("I"), array("d")
        parts: list[tuple[array[int] | array[float], int]] = [(fine_us, FINE_US), (coarse_us, COARSE), (rows, windows * COLUMNS)]
        for numbers, count in parts:
            size_bytes = count * numbers.itemsize
            numbers.frombytes(data[:size_bytes])
            data = data[size_bytes:]
        counters = cls(
            packets_in=packets_in,
            packets_out=packets_out,
            inside=inside,
            drops=drops,
            wraps=wraps,
            windows_lost=windows_lost,
            max_late_ns=max_late_ns,
            fine_us=fine_us,
            coarse_us=coarse_us,
            rows=rows,
        )
        return counters, data


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a lane did in a trial."""

    started_ns: int | None
    stopped_ns: int
    down: Counters
    up: Counters
    stalled_ns: int = 0
    max_stall_ns: int = 0
    """See `ledger.Stalls`."""

    def encode(self) -> bytes:
        """What the descriptor of a `Stop` gets."""
        started_ns = -1 if self.started_ns is None else self.started_ns
        head = RESULT.pack(started_ns, self.stopped_ns, self.stalled_ns, self.max_stall_ns)
        return head + self.down.encode() + self.up.encode()

    @classmethod
    def decode(cls, data: bytes) -> "Result":
        """Of what the descriptor got; struct.error or ValueError when it's cut short."""
        started_ns, stopped_ns, stalled_ns, max_stall_ns = RESULT.unpack_from(data)
        down, rest = Counters.decode(memoryview(data)[RESULT.size :])
        up, _ = Counters.decode(rest)
        times = {"started_ns": None if started_ns < 0 else started_ns, "stopped_ns": stopped_ns}
        return cls(**times, down=down, up=up, stalled_ns=stalled_ns, max_stall_ns=max_stall_ns)
