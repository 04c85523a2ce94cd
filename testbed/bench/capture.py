"""Packets of an interface with the kernel's timestamps: a ring of memory that the kernel fills and nobody reads before the run is over.

So a capture costs no process, no wake-up and no system call while a link is being measured: the kernel copies each packet's first bytes.
`AF_PACKET` with `PACKET_RX_RING`, TPACKET_V2 (linux/if_packet.h), cooked: all sizes are IP bytes, on TUN, TAP and veth alike.
"""

import mmap
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from testbed.bench.judge import Arrivals, Floats
from testbed.errors import TestbedError
from testbed.shapers.kernelcalls import inside
from testbed.units import MTU_BYTES, s_from_ms, s_from_ns

SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V2 = 1
SO_TIMESTAMPNS = 35
ETH_P_IP, ETH_P_ALL = 0x0800, 0x0003
_FRAME_BYTES = 256
_BLOCK_BYTES = 32_768
_HEAD_BYTES = 48
"""Of each packet that are kept: an IP header, a transport header and the first numbers after it."""
_HEADER = np.dtype(
    {
        "names": ["status", "length", "net", "seconds", "nanoseconds", "kind"],
        "formats": ["<u4", "<u4", "<u2", "<u4", "<u4", "u1"],
        "offsets": [0, 4, 14, 16, 20, 42],  # struct tpacket2_hdr, and sll_pkttype of the sockaddr_ll behind it
        "itemsize": _FRAME_BYTES,
    }
)
_TCP, _UDP = 6, 17
_TIMESTAMP_OPTION = (1, 1, 8, 10)
"""How Linux begins the options of a data segment: two fillers, then kind and length of the timestamps (RFC 7323)."""


@dataclass(frozen=True)
class Packets:
    """What a capture holds, in order; one entry a packet."""

    times_s: Floats
    """CLOCK_REALTIME."""
    sizes_bytes: Floats
    """IP bytes."""
    outgoing: NDArray[np.bool_]
    heads: NDArray[np.uint8]
    """(packets, 48): the first bytes from the IP header on."""

    def only(self, chosen: NDArray[np.bool_]) -> "Packets":
        """Those that are chosen."""
        return Packets(self.times_s[chosen], self.sizes_bytes[chosen], self.outgoing[chosen], self.heads[chosen])

    def _of(self, protocol: int) -> "Packets":
        return self.only((self.heads[:, 0] == 0x45) & (self.heads[:, 9] == protocol))

    @property
    def datagrams(self) -> "tuple[Packets, NDArray[np.uint64], Floats]":
        """UDP packets of our senders: packets, their numbers, and when they were sent on the sender's clock."""
        found = self._of(_UDP)
        numbers = np.ascontiguousarray(found.heads[:, 28:44]).view("<u8").reshape(-1, 2)
        return found, numbers[:, 0], s_from_ns(numbers[:, 1].astype(float))

    def udp_arrivals(self) -> Arrivals:
        """Incoming datagrams."""
        found, _, sent_s = self.only(~self.outgoing).datagrams
        return Arrivals(found.times_s, found.sizes_bytes, sent_s)

    def tcp_arrivals(self) -> Arrivals:
        """Incoming TCP segments that carry data and a timestamp; their send times are whole milliseconds."""
        found = self.only(~self.outgoing)._of(_TCP)
        header = 20 + 4 * (found.heads[:, 32].astype(int) >> 4)
        stamped = (found.heads[:, 40:44] == _TIMESTAMP_OPTION).all(axis=1)
        chosen = (found.sizes_bytes > header) & stamped
        found, header = found.only(chosen), header[chosen]
        ticks = np.ascontiguousarray(found.heads[:, 44:48]).view(">u4").reshape(-1).astype(np.int64)
        since = ticks - ticks[0] if len(ticks) else ticks
        return Arrivals(found.times_s, on_the_wire(found.sizes_bytes, header), s_from_ms(((since + 2**31) % 2**32 - 2**31).astype(float)))


def on_the_wire(sizes_bytes: Floats, header_bytes: NDArray[np.int64]) -> Floats:
    """IP bytes of what the kernel handed over in one piece (GSO), as the packets of full size that it stands for."""
    payload_bytes = sizes_bytes - header_bytes
    return payload_bytes + header_bytes * np.ceil(payload_bytes / (MTU_BYTES - header_bytes))


class Ring:
    """A capture that begins when it is made and ends with `packets`. As a context manager it frees its memory.

    Of what arrives it sees what is handed to the host, so behind a queue at the interface's own ingress; what leaves only `both_ways`, and
    then of what arrives all that reaches the interface.
    """

    def __init__(self, pid: int, interface: str, most_packets: int, both_ways: bool = False) -> None:
        blocks = -(-most_packets * _FRAME_BYTES // _BLOCK_BYTES)
        self._frames = blocks * _BLOCK_BYTES // _FRAME_BYTES
        self._interface = interface
        try:
            with inside(pid):
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except OSError as error:
            raise TestbedError(f"interface {interface}: no socket can be made beside it ({error})") from error
        try:
            self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            request = struct.pack("IIII", _BLOCK_BYTES, blocks, _FRAME_BYTES, self._frames)
            self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self._memory = mmap.mmap(self._socket.fileno(), blocks * _BLOCK_BYTES)
            self._socket.bind((interface, ETH_P_ALL if both_ways else ETH_P_IP))
        except OSError as error:
            self._socket.close()
            raise TestbedError(f"interface {interface}: packets can't be captured ({error})") from error

    def packets(self) -> Packets:
        """All packets up to now. TestbedError when the ring was too small for them."""
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            raise TestbedError(f"interface {self._interface}: a capture of {self._frames} packets lost {dropped}")
        raw = np.frombuffer(self._memory, dtype=np.uint8).reshape(self._frames, _FRAME_BYTES).copy()
        headers = raw.view(_HEADER).reshape(self._frames)
        count = int(np.argmin(headers["status"] & 1)) if not (headers["status"] & 1).all() else self._frames
        headers, raw = headers[:count], raw[:count]
        net = int(headers["net"][0]) if count else 0
        times_s = headers["seconds"] + s_from_ns(headers["nanoseconds"].astype(float))
        return Packets(times_s, headers["length"].astype(float), headers["kind"] == socket.PACKET_OUTGOING, raw[:, net : net + _HEAD_BYTES])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._memory.close()
        self._socket.close()


def probe_delays(sent: Packets, received: Packets) -> tuple[dict[int, float], int]:
    """Seconds under way of each datagram that left one end and reached the other, by its number; and how many did not."""
    left, numbers, _ = sent.only(sent.outgoing).datagrams
    came, arrived, _ = received.only(~received.outgoing).datagrams
    left_s = dict(zip(numbers.tolist(), left.times_s.tolist(), strict=True))
    came_s = zip(arrived.tolist(), came.times_s.tolist(), strict=True)
    delays_s = {number: at_s - left_s[number] for number, at_s in came_s if number in left_s}
    return delays_s, len(left_s) - len(delays_s)
