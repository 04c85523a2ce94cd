"""`Link`: one lane's emulated path, trace-driven towards the client and on demand back; what a trial loads, starts and gets reported.

The path from the server to the client: queue (droptail or CoDel) -> service at the trace's pace -> loss, if the trace says so -> delay of
`rtt_s` / 2, or what the trace says. From the client to the server: the same under an uplink trace, else delay and the queue's bounds.
All bytes are IP bytes (an Ethernet frame less its 14-byte header).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from testbed.errors import UserError
from testbed.records import LatenessRow, LinkRow
from testbed.units import MTU_BYTES, ms_from_s
from traces.trace import RateTrace, Trace

BackEnd = Literal["userspace", "python", "kernel"]
Discipline = Literal["droptail", "codel"]

MAX_LATENESS_P99_S = 1e-3
LATE_S = 5e-3
MAX_LATE_SHARE = 1e-3
MIN_LATE_PACKETS = 10
"""So many packets may be late in either direction of any trial: one 10-ms pause of a virtual machine must not fail a short one."""
MAX_STALLED_SHARE = 1e-3
MIN_STALLED_S = 0.05
"""So long the emulator may stand still in any trial, and so much time's bytes may its rate be off, for the same reason: where something
waits for less than 5 s in all, they are more than `MAX_RATE_ERROR_PCT` of the bytes due."""
MAX_RATE_ERROR_PCT = 1.0
MOST_NUMBERS = 1_000_000
"""Of a trace: its times, rates and conditions. The relay reads so many in about 4 ms, in which all its lanes stand still."""
START = b"start"
"""The datagram that starts a loaded trace (`Link.start_path`)."""
NEVER_STARTED = "the trace never started: no media request reached the origin"


def beyond_p99(packets: int) -> int:
    """So many of a direction's packets may be later than what is called p99: 1 %, but `MIN_LATE_PACKETS` of few.

    Of fewer than 100 packets the 99th percentile would be the latest one.
    """
    return max(packets // 100, MIN_LATE_PACKETS)


def check_size(trace: Trace) -> None:
    """Raise `UserError` when links would stand still too long while one of them reads the trace."""
    points = 2 * len(trace.edges_s) - 1 if isinstance(trace, RateTrace) else len(trace.times_s)
    numbers = points + (4 * len(trace.conditions.edges_s) if trace.conditions else 0)
    if numbers > MOST_NUMBERS:
        fewer = "give rates instead of delivery opportunities, in coarser bins"
        raise UserError(f"trace {trace.name}: has {numbers} times, rates and conditions, wanted at most {MOST_NUMBERS} for a link: {fewer}")


@dataclass(frozen=True)
class PathSpec:
    """The path of a lane apart from its trace."""

    rtt_s: float = 0.08
    """Two-way propagation delay; half of it in each direction."""
    queue_bytes: int = 100_000
    """Bound of the bottleneck's queue, the packet in service included. With 80 ms the default is 1 BDP at 10 Mbit/s."""
    back_end: BackEnd = "userspace"
    """`userspace`, the relay process; `python`, its readable reference; or `kernel`, HTB and netem."""
    queue_packets: int | None = None
    """A second bound, in packets; None: none."""
    discipline: Discipline = "droptail"
    """`droptail` drops what finds the queue full; `codel` (RFC 8289, target 5 ms, interval 100 ms) drops at its head too."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rtt_s) and self.rtt_s >= 0):
            raise UserError(f"the path's rtt_s is {self.rtt_s}, wanted a finite number of at least 0")
        if self.queue_bytes < 2 * MTU_BYTES:
            raise UserError(f"the path's queue is {self.queue_bytes} bytes, wanted at least {2 * MTU_BYTES} (two packets)")
        if self.queue_packets is not None and self.queue_packets < 2:
            raise UserError(f"the path's queue is {self.queue_packets} packets, wanted at least 2")
        for what, seen, known in (("back end", self.back_end, BackEnd), ("queue", self.discipline, Discipline)):
            if seen not in get_args(known):
                raise UserError(f"the path's {what} is {seen!r}, wanted one of {', '.join(get_args(known))}")


@dataclass(frozen=True)
class Punctuality:
    """How late the packets of one direction were; at the back end `kernel`, changes of its queues."""

    packets: int = 0
    """That came out."""
    p50_s: float = 0.0
    p99_s: float = 0.0
    """All but `beyond_p99` of them were not later."""
    max_s: float = 0.0
    late: int = 0
    """Later than `LATE_S`."""

    @property
    def late_share(self) -> float:
        """Of the packets that came out."""
        return self.late / max(self.packets, 1)


@dataclass(frozen=True)
class RateError:
    """Of one direction, in all 100-ms windows in which something was waiting throughout; see `LinkReport`."""

    error_bytes: float = 0.0
    due_bytes: float = 0.0
    backlogged_s: float = 0.0
    """For so long something was waiting."""

    @property
    def pct(self) -> float:
        """Of the bytes due; 0 when the link was never backlogged through a whole window."""
        return 100 * self.error_bytes / self.due_bytes if self.due_bytes else 0.0

    @property
    def error_s(self) -> float:
        """In so long the erring bytes were due. A pause counts twice, where bytes are missing and where they are made up for."""
        return self.error_bytes / self.due_bytes * self.backlogged_s if self.due_bytes else 0.0


@dataclass(frozen=True)
class LinkReport:
    """What a link did between `load` and `stop`, and whether that is the link that was asked for.

    **Lateness** of a packet is the time between the instant the model wants it delivered and the instant the emulator hands it to the
    receiving host.

    **Rate error.** The model serves bytes, not packets: a packet's bytes leave evenly between the instant the link turns to it (its
    arrival, or the end of its predecessor) and the instant its last byte leaves. A packet that is late by d is served over the same
    interval shifted by d. `rate_error_pct_100ms` is the sum over all 100-ms windows in which something was waiting throughout of
    |bytes served - bytes due|, in percent of the bytes due in them. So packets that straddle a window's edge are no error, a constant
    small lateness is none either, and service that is late, bunched or lost is.

    **Stalls.** What arrives while the emulator stands still (stopped, starved of a core, its machine paused) is seen when it goes on, so
    that its lateness counts from then. Therefore the emulator looks at the clock every 10 ms at least, and the time that passes beyond
    what it wanted to sleep is judged as if all of it were late packets.

    **Uncounted losses**: packets in, less those out, still inside, and dropped for a counted cause, plus all that the interfaces
    themselves report as dropped. Any of these means that the link lost packets behind the model's back.
    """

    trial_id: str
    started_at: float | None
    """CLOCK_MONOTONIC seconds of the `start` datagram; None: it never came."""
    windows: tuple[LinkRow, ...]
    """Of each trace-driven direction, from `started_at` on."""
    lateness: tuple[LatenessRow, ...]
    """Histogram (powers of two) for `down` and `up`."""
    punctuality: Mapping[str, Punctuality]
    """Of `down` and `up`, each judged by itself: acknowledgements on time must not outvote data that is late."""
    packets_in: int
    packets_out: int
    packets_inside: int
    """In the queue or under way when the report was made."""
    drops: Mapping[str, int]
    """Packets dropped by cause: `queue` (its bounds), `codel`, `loss` (as the trace says), `malformed` (empty or too long), `transmit` (the
    receiving interface refused)."""
    uncounted_losses: int
    rate_errors: Mapping[str, RateError]
    """Of each direction, by its name."""
    trace_wraps: int
    """How often the trace began anew."""
    realtime: bool
    """Whether the emulator ran under SCHED_FIFO with its memory locked."""
    duration_s: float = 0.0
    """From the start to the stop."""
    stalled_s: float = 0.0
    """In all that time, how long the emulator stood still, by its own clock: turns of its loop that began more than 1 ms late."""
    max_stall_s: float = 0.0
    notes: tuple[str, ...] = ()
    """What the reader should know and the verdict doesn't judge."""
    verdict: str = field(init=False)
    """`pass` or `fail`."""
    reasons: tuple[str, ...] = field(init=False)
    """Why it fails; empty when it passes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", tuple(_failures(self)))
        object.__setattr__(self, "verdict", "fail" if self.reasons else "pass")

    @property
    def lateness_p50_s(self) -> float:
        """Of the worse direction, as the next three."""
        return max(each.p50_s for each in self.punctuality.values())

    @property
    def lateness_p99_s(self) -> float:
        """See `Punctuality`."""
        return max(each.p99_s for each in self.punctuality.values())

    @property
    def lateness_max_s(self) -> float:
        """No packet was later."""
        return max(each.max_s for each in self.punctuality.values())

    @property
    def rate_error_pct_100ms(self) -> float:
        """Of the worse direction."""
        return max(each.pct for each in self.rate_errors.values())

    @property
    def late_share(self) -> float:
        """Share of a direction's packets that were later than `LATE_S`."""
        return max(each.late_share for each in self.punctuality.values())

    @property
    def late_packets(self) -> int:
        """Later than `LATE_S`, both directions together."""
        return sum(each.late for each in self.punctuality.values())


def _failures(report: LinkReport) -> list[str]:
    """Each rule of the fidelity verdict that `report` breaks."""
    p99_s = report.lateness_p99_s
    error_pct = max(each.pct if each.error_s > MIN_STALLED_S else 0.0 for each in report.rate_errors.values())
    late_share = max(each.late_share if each.late > MIN_LATE_PACKETS else 0.0 for each in report.punctuality.values())
    checks = (
        (report.started_at is None, NEVER_STARTED),
        (
            p99_s > MAX_LATENESS_P99_S,
            f"lateness p99 is {ms_from_s(p99_s):.2f} ms, wanted at most {ms_from_s(MAX_LATENESS_P99_S):g}",
        ),
        (
            late_share > MAX_LATE_SHARE,
            f"{late_share:.3%} of packets were later than {ms_from_s(LATE_S):g} ms, wanted at most {MAX_LATE_SHARE:.1%}",
        ),
        (
            report.stalled_s > MAX_STALLED_SHARE * report.duration_s and report.stalled_s > MIN_STALLED_S,
            f"the emulator stood still for {ms_from_s(report.stalled_s):.0f} ms, "
            f"{report.stalled_s / max(report.duration_s, 1e-9):.3%} of the time, wanted at most {MAX_STALLED_SHARE:.1%}",
        ),
        (report.uncounted_losses != 0, f"{report.uncounted_losses} packets were lost uncounted, wanted 0"),
        (
            error_pct > MAX_RATE_ERROR_PCT,
            f"the rate over 100 ms is off by {error_pct:.2f} % while backlogged, wanted at most {MAX_RATE_ERROR_PCT:g}",
        ),
    )
    return [reason for broken, reason in checks if broken]


class Link(ABC):
    """The emulated path of one lane. Use: `load`, let the origin start it, `stop`; then `load` again."""

    lane: int
    server_interface: str
    client_interface: str

    @property
    @abstractmethod
    def start_path(self) -> Path:
        """AF_UNIX datagram socket: `start` written to it after `load` starts the trace; anything else, or a second `start`, is ignored."""

    @abstractmethod
    def load(self, trace: Trace, offset_s: float, trial_id: str, *, uplink: Trace | None = None, seed: int = 1) -> None:
        """Arm the link: nothing inside, counters at 0, the trace's mean rate until `start`; from then on the trace from `offset_s` on.

        `uplink` paces the client-to-server direction, from `offset_s` on too; None: that direction is delay alone. `seed` (at least 0) is
        that of the traces' random losses.
        """

    @abstractmethod
    def stop(self) -> LinkReport:
        """End the trial: report, drop what still waits, and go on at the trace's mean rate."""


@dataclass(frozen=True)
class Endpoint:
    """Where one end of a link goes: the network namespace of process `pid`, as interface `interface`."""

    pid: int
    interface: str


class LinkSet(ABC):
    """All links of a network, on one back end."""

    unqueued: bool
    """Whether the interfaces are to go without a queue of their own, because the link keeps the only one."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, object]:
        """What the back end is and got from this host, for the run's header."""

    @abstractmethod
    def attach(self, lane: int, server: Endpoint, client: Endpoint, path: PathSpec) -> Link:
        """Make the two interfaces (down, without addresses) and the link between them."""

    @abstractmethod
    def close(self) -> None:
        """Undo everything; callable twice."""
