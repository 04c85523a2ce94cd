"""What the benchmark needs of an emulated path, whichever emulator makes it; and this project's own links seen that way."""

import contextlib
import copy
import os
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from testbed.clock import now_s
from testbed.link import BackEnd, Link, LinkReport, PathSpec
from testbed.netns.hosts import Spawner
from testbed.netns.owned import Run
from testbed.network import Network
from testbed.units import MTU_BYTES
from traces.trace import Trace

CONGESTION_CONTROL = "cubic"
ETHERNET_BYTES = 14
"""Of a frame's header, which a link doesn't count."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Wanted:
    """The path of a phase."""

    rtt_s: float
    queue_packets: int


@dataclass(frozen=True)
class End:
    """A host of the path."""

    pid: int
    """A process in its network namespace."""
    ip: str
    interface: str


@dataclass(frozen=True)
class Counted:
    """What the emulator says of its losses."""

    drops: int = 0
    """Lost for a reason that it counts."""
    inside: int = 0
    """Still on the way."""
    known: bool = True
    """False: it keeps no such count."""
    verdict: str = ""
    """Of our own fidelity monitor."""
    report: Mapping[str, object] = field(default_factory=dict)


class Lane(ABC):
    """A path between two hosts, up and ready. Use: `load`, `start`, traffic, `stop`; again and again."""

    server: End
    client: End
    began_s: float = 0.0
    """CLOCK_MONOTONIC, a moment before the trace began."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner

    @abstractmethod
    def load(self, trace: Trace) -> None:
        """Have the path ready to follow a trace."""

    @abstractmethod
    def start(self) -> None:
        """Start the trace, unless the emulator knows no other start than its own."""

    @abstractmethod
    def stop(self) -> Counted:
        """End it."""

    @property
    @abstractmethod
    def pids(self) -> Sequence[int]:
        """The emulator's processes; none when the kernel is the emulator."""

    @property
    def cpu_s(self) -> float | None:
        """User and system time of the emulator so far; None when the kernel is the emulator."""
        pids = self.pids
        return sum(_cpu_s(pid) for pid in pids) if pids else None

    def popen(self, end: End, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        """Start a process of ours at one end; it dies with us."""
        return self._spawner.spawn(argv, namespace_pid=end.pid, **popen)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def counters(end: End) -> tuple[int, int]:
    """(packets, IP bytes) that the end's interface has received; Ethernet headers are taken off."""
    for line in Path(f"/proc/{end.pid}/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == end.interface:
            size_bytes, packets = (int(number) for number in numbers.split()[:2])
            return packets, size_bytes - ETHERNET_BYTES * packets
    return 0, 0


@dataclass(frozen=True)
class Contender(ABC):
    """An emulator to measure."""

    key: str
    """In options and results."""
    label: str
    """In tables."""
    colour: str = "#666666"
    phases: tuple[str, ...] = ("rate", "delay", "tcp", "flood")
    own_start: ClassVar[bool] = False
    """Whether its trace begins when its processes do, and not on demand."""

    @abstractmethod
    def lacks(self) -> str:
        """Why it can't run on this host; empty when it can."""

    @abstractmethod
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> contextlib.AbstractContextManager[Lane]:
        """Make the path."""

    def follows(self, trace: Trace) -> bool:
        """Whether it can follow a trace."""
        return True

    def given(self, trace: Trace) -> Trace:
        """The trace in the form in which it gets it; all are judged by the trace itself."""
        return trace


def part_of(run: Run, name: str) -> Run:
    """The same run with a folder of its own below the run's, so that several networks can stand beside each other."""
    part = copy.copy(run)
    part.folder = run.folder / name
    part.folder.mkdir(exist_ok=True)
    return part


@dataclass(frozen=True)
class OwnLink(Contender):
    """A back end of this project."""

    back_end: BackEnd = "userspace"

    def lacks(self) -> str:
        """See `Contender`."""
        if self.back_end != "userspace":
            return ""
        from testbed.setup import native

        return "" if native.built() else native.fault() or "not built: run scripts/setup"

    def follows(self, trace: Trace) -> bool:
        """HTB is for constant rates."""
        return self.back_end != "kernel" or len(getattr(trace, "rates_bps", ())) == 1

    @contextlib.contextmanager
    def open(self, phase: str, wanted: Wanted, run: Run, spawner: Spawner) -> Iterator[Lane]:
        """See `Contender`."""
        with Network(1, self._path(phase, wanted), CONGESTION_CONTROL, part_of(run, self.key)) as network:
            lane, relay_pid = network.lanes[0], network.facts.get("relay_pid")
            server = End(lane.server.pid, lane.server_ip, lane.link.server_interface)
            client = End(lane.client.pid, lane.client_ip, lane.link.client_interface)
            yield OwnLane(spawner, lane.link, server, client, [relay_pid] if isinstance(relay_pid, int) else [])

    def _path(self, phase: str, wanted: Wanted) -> PathSpec:
        return PathSpec(wanted.rtt_s, wanted.queue_packets * MTU_BYTES, self.back_end)


class OwnLane(Lane):
    """One of this project's links."""

    def __init__(self, spawner: Spawner, link: Link, server: End, client: End, pids: Sequence[int]) -> None:
        super().__init__(spawner)
        self.server, self.client = server, client
        self._link, self._pids = link, pids

    @property
    def pids(self) -> Sequence[int]:
        """See `Lane`."""
        return self._pids

    def load(self, trace: Trace) -> None:
        """See `Lane`."""
        self._link.load(trace, 0.0, "bench")

    def start(self) -> None:
        """See `Lane`."""
        self.began_s = now_s()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
            origin.sendto(b"start", str(self._link.start_path))

    def stop(self) -> Counted:
        """See `Lane`."""
        report: LinkReport = self._link.stop()
        said = {
            "verdict": report.verdict,
            "reasons": list(report.reasons),
            "lateness_p99_s": report.lateness_p99_s,
            "rate_error_pct_100ms": report.rate_error_pct_100ms,
            "uncounted_losses": report.uncounted_losses,
            "drops": dict(report.drops),
        }
        return Counted(sum(report.drops.values()), report.packets_inside, True, report.verdict, said)
