"""What a fidelity check leaves to be judged: captures of packet headers at both ends of links, and what the links said of themselves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from testbed.errors import UserError
from testbed.link import LinkReport, PathSpec
from testbed.records import LatenessRow, LinkRow
from testbed.units import ETHERNET_BYTES, ns_from_s
from traces.trace import OpportunityTrace, RateTrace, Trace

FILE = "captures.json"
ETHERTYPE, SOURCE = slice(12, 14), slice(26, 30)
"""Bytes of a frame: the protocol, and an IPv4 packet's sender."""
ARP = b"\x08\x06"
IPV4 = b"\x08\x00"


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """A trace, of either kind."""

    rate: RateTrace | None = None
    opportunity: OpportunityTrace | None = None

    @classmethod
    def of(cls, trace: Trace) -> "Course":
        """As it goes into the file."""
        return cls(rate=trace) if isinstance(trace, RateTrace) else cls(opportunity=trace)

    @property
    def trace(self) -> Trace:
        """As it came."""
        found = self.rate or self.opportunity
        if found is None:
            raise UserError("a course without a trace, wanted a rate or an opportunity trace")
        return found


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the link itself reported (`LinkReport`)."""

    verdict: str
    reasons: tuple[str, ...]
    started_at: float | None
    """CLOCK_MONOTONIC."""
    packets_in: int
    packets_out: int
    packets_inside: int
    drops: dict[str, int]
    uncounted_losses: int
    lateness_p50_s: float
    lateness_p99_s: float
    lateness_max_s: float
    late_share: float
    rate_error_pct_100ms: float
    realtime: bool
    notes: tuple[str, ...]
    lateness: tuple[LatenessRow, ...]
    windows: tuple[LinkRow, ...]

    @classmethod
    def of(cls, report: LinkReport) -> "Said":
        """Of a link's report."""
        return cls(**{name: getattr(report, name) for name in cls.__struct_fields__ if name != "drops"}, drops=dict(report.drops))


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """One end's packets. The three counts are tcpdump's own; a capture that missed packets proves nothing."""

    file: str
    interface: str
    captured: int
    received: int
    dropped: int


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One lane under one kind of traffic, from `Link.load` to `Link.stop`."""

    name: str
    lane: int
    traffic: Literal["tcp", "udp"]
    path: PathSpec
    down: Course
    up: Course | None
    """None: that direction is delay alone."""
    offset_s: float
    server_ip: str
    client_ip: str
    server: Capture
    client: Capture
    stopped_s: float
    """CLOCK_MONOTONIC, a moment before the link was told to stop."""
    wall_offset_before_ns: int
    wall_offset_after_ns: int
    """From CLOCK_MONOTONIC to CLOCK_REALTIME, in which captures are stamped."""
    said: Said

    @property
    def clock_drift_ns(self) -> int:
        """By which the wall clock was set meanwhile. (Both clocks are slewed alike.)"""
        return self.wall_offset_after_ns - self.wall_offset_before_ns

    @property
    def started_ns(self) -> int | None:
        """When the trace started."""
        return None if self.said.started_at is None else ns_from_s(self.said.started_at)


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """All of a check."""

    command: str
    commit: str
    started_utc: str
    options: dict[str, object]
    host: dict[str, object]
    notes: tuple[str, ...]
    evidence: tuple[Evidence, ...]


class Sighting(NamedTuple):
    """A frame passed an end of a link."""

    at_ns: int
    """CLOCK_MONOTONIC."""
    size_bytes: int
    """IP bytes."""
    mark: bytes
    """The frame's first bytes: addresses, ports, IP id, sequence number, TCP timestamp or a datagram's number tell packets apart."""


Reader = Callable[[Path], Iterator[tuple[int, int, bytes]]]
"""Yields (CLOCK_REALTIME ns, frame bytes on the wire, frame bytes captured) for each packet of a file."""


def write(folder: Path, found: Folder) -> None:
    """Into `folder`."""
    (folder / FILE).write_bytes(msgspec.json.encode(found) + b"\n")


def read(folder: Path) -> Folder:
    """From `folder`; `UserError` when it isn't one of a fidelity check."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Folder)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, wanted the folder of a fidelity check") from None
    except (msgspec.DecodeError, UserError) as error:
        raise UserError(f"{path}: {error}, wanted what a fidelity check wrote") from None


def read_packets(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The `Reader` of pcap files, by scapy: as raw records, because dissecting each packet would take a hundred times as long."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader

    if not path.exists():
        raise UserError(f"{path}: is not there, wanted the capture that {FILE} names")
    try:
        with RawPcapReader(str(path)) as reader:
            per_tick_ns = 1 if reader.nano else ns_from_s(1e-6)
            for data, record in reader:
                yield ns_from_s(1) * record.sec + per_tick_ns * record.usec, record.wirelen, data
    except (Scapy_Exception, OSError, EOFError) as error:
        raise UserError(f"{path}: {error}, wanted a pcap file") from None


def sightings(folder: Path, capture: Capture, evidence: Evidence, reader: Reader = read_packets) -> dict[str, list[Sighting]]:
    """What passed one end, by direction (`down`, `up`). ARP is left out: links neither shape nor count it."""
    senders = {_address(evidence.server_ip): "down", _address(evidence.client_ip): "up"}
    offset_ns = (evidence.wall_offset_before_ns + evidence.wall_offset_after_ns) // 2
    seen: dict[str, list[Sighting]] = {"down": [], "up": [], "other": []}
    for wall_ns, wire_bytes, data in reader(folder / capture.file):
        if data[ETHERTYPE] == ARP:
            continue
        direction = senders.get(data[SOURCE], "other") if data[ETHERTYPE] == IPV4 else "other"
        seen[direction].append(Sighting(wall_ns - offset_ns, wire_bytes - ETHERNET_BYTES, data))
    return seen


def _address(ip: str) -> bytes:
    return bytes(int(part) for part in ip.split("."))
