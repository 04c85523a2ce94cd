"""One trial on back end `kernel`: which change of a queue is due when, what the counters were, and the report made of them. Pure."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import pairwise

from testbed.link import LinkReport, PathSpec, RateError
from testbed.records import LinkRow
from testbed.shapers.accounts import Histogram
from testbed.shapers.capacity import RATE_SCALE, RateCapacity
from testbed.shapers.kernel_tc import DIRECTIONS, FLOOR_BPS, Counters, Direction, Losses, held_limit, htb, netem, packet_limit
from testbed.shapers.ledger import WINDOW_NS, Lateness
from testbed.units import MTU_BYTES, ns_from_s, s_from_ns
from traces.formats import to_rates
from traces.trace import OpportunityTrace, RateTrace, Trace

LOOKS = 5
"""How often in a window the queue is looked at."""
BACKLOG_PACKETS = 4
"""So much must wait at every look for a window to count as backlogged throughout."""


@dataclass(frozen=True)
class Change:
    """A command for `tc` and when it is due."""

    due_ns: int
    direction: Direction
    command: str


class Course:
    """A direction's trace as rates."""

    def __init__(self, direction: Direction, trace: Trace) -> None:
        self.direction, self.trace = direction, trace
        self.rates: RateTrace = to_rates(trace, s_from_ns(WINDOW_NS)) if isinstance(trace, OpportunityTrace) else trace

    def changes(self, start_ns: int, offset_ns: int, path: PathSpec) -> Iterator[Change]:
        """Without end, beginning at `start_ns`; a command is left out where it would change nothing."""
        return merge(self._rates(start_ns, offset_ns), self._conditions(start_ns, offset_ns, path), key=lambda change: change.due_ns)

    def _rates(self, start_ns: int, offset_ns: int) -> Iterator[Change]:
        commands = [f"class change {htb(self.direction, rate)}" for rate in self.rates.rates_bps]
        return self._timed(self.rates.edges_s, commands, start_ns, offset_ns)

    def _conditions(self, start_ns: int, offset_ns: int, path: PathSpec) -> Iterator[Change]:
        conditions = self.trace.conditions
        if conditions is None:
            return iter(())
        segments = len(conditions.edges_s) - 1
        delays_s = conditions.delay_s or (path.rtt_s / 2,) * segments
        losses = conditions.loss or (0.0,) * segments
        bursts = conditions.burst_packets or (None,) * segments
        commands = [
            f"qdisc change {netem(self.direction, delay_s, Losses(loss, burst))}"
            for delay_s, loss, burst in zip(delays_s, losses, bursts, strict=True)
        ]
        return self._timed(conditions.edges_s, commands, start_ns, offset_ns)

    def _timed(self, edges_s: Sequence[float], commands: Sequence[str], start_ns: int, offset_ns: int) -> Iterator[Change]:
        edges = [ns_from_s(edge) for edge in edges_s]
        within_ns = offset_ns % edges[-1]
        index, lap_ns, last = bisect_right(edges, within_ns) - 1, start_ns - within_ns, ""
        while True:
            if commands[index] != last:
                last = commands[index]
                yield Change(max(lap_ns + edges[index], start_ns), self.direction, last)
            elif len(set(commands)) == 1:
                return
            index += 1
            if index == len(commands):
                index, lap_ns = 0, lap_ns + edges[-1]

    def capacity(self, start_ns: int, offset_ns: int) -> RateCapacity:
        """What the trace allows."""
        edges = [ns_from_s(edge) for edge in self.rates.edges_s]
        return RateCapacity(edges, [round(rate * RATE_SCALE) for rate in self.rates.rates_bps], start_ns, offset_ns)


@dataclass(frozen=True)
class Sample:
    """The counters at one moment, since `load`."""

    at_ns: int
    counters: Mapping[Direction, Counters]
    shortest_bytes: Mapping[Direction, int]
    """The queue's smallest length at the looks since the sample before."""


@dataclass
class Replay:
    """A trial. Used by the link's thread alone until it is reported."""

    trial_id: str
    path: PathSpec
    courses: Sequence[Course]
    """Of the directions that a trace paces."""
    offset_s: float
    started_ns: int | None = None
    samples: list["Sample"] = field(default_factory=list)
    """At the windows' ends; the first right after the start."""
    shortest_bytes: Mapping[Direction, int] = field(default_factory=dict)
    """Of the queue since the last sample."""
    last: Mapping[Direction, Counters] = field(default_factory=dict)
    """At the end."""
    lateness: dict[Direction, Lateness] = field(default_factory=lambda: {direction: Lateness() for direction in DIRECTIONS})

    def look(self, now_ns: int, counters: Mapping[Direction, Counters], ends: bool) -> None:
        """What the counters are now; `ends`: that's a window's end."""
        seen = {direction: counters[direction].queue_bytes for direction in DIRECTIONS}
        self.shortest_bytes = {direction: min(self.shortest_bytes.get(direction, size), size) for direction, size in seen.items()}
        if ends:
            self.samples.append(Sample(now_ns, counters, self.shortest_bytes))
            self.shortest_bytes = seen

    def changes(self, start_ns: int) -> Iterator[Change]:
        """Those of all directions, in order."""
        offset_ns = ns_from_s(self.offset_s)
        return merge(*(course.changes(start_ns, offset_ns, self.path) for course in self.courses), key=lambda change: change.due_ns)

    @property
    def mean_rates_bps(self) -> dict[Direction, float | None]:
        """What the link carries before the start; None: no trace paces the direction."""
        means = {course.direction: course.trace.mean_rate_bps for course in self.courses}
        return {direction: means.get(direction) for direction in DIRECTIONS}

    @property
    def conditioned(self) -> bool:
        """Whether a trace says delays or losses."""
        return any(course.trace.conditions for course in self.courses)


def notes(replay: Replay) -> tuple[str, ...]:
    """What of the path and the traces this back end holds otherwise than asked for."""
    path, limit = replay.path, held_limit(replay.path)
    named = {course.direction: course for course in replay.courses}
    low = [direction for direction, course in named.items() if min(course.rates.rates_bps) < FLOOR_BPS]
    lossy = any(course.trace.conditions and course.trace.conditions.loss for course in replay.courses)
    said: tuple[tuple[bool, str], ...] = (
        (True, "packets are timed by the kernel: lateness is that of changes of its queues, nothing of packets"),
    )
    said += tuple((True, f"the trace {direction} goes below {FLOOR_BPS:g} bit/s, at which this back end holds it") for direction in low)
    said += (
        (
            any(isinstance(course.trace, OpportunityTrace) for course in replay.courses),
            f"delivery opportunities are averaged over {s_from_ns(WINDOW_NS):g} s",
        ),
        (
            path.discipline == "codel",
            f"the kernel's CoDel counts packets: {packet_limit(path)} of them stand for the queue's bound",
        ),
        (
            path.discipline == "droptail" and path.queue_packets is not None,
            f"the kernel's queues have one bound: it is `{limit}`, which full packets meet first",
        ),
        (lossy, "which packets are lost is the kernel's chance, not the seed's"),
    )
    return tuple(note for applies, note in said if applies)


def report(replay: Replay, now_ns: int, interface_drops: int) -> LinkReport:
    """What the samples say. Lateness is that of changes, the only thing that is timed here."""
    judged = {course.direction: judge(replay, course) for course in replay.courses}
    histograms = {direction: Histogram.of_counts(late) for direction, late in replay.lateness.items()}
    duration_ns = ns_from_s(replay.courses[0].rates.duration_s)
    run_ns = now_ns - replay.started_ns + ns_from_s(replay.offset_s) % duration_ns if replay.started_ns else 0
    ends = replay.last.values()
    out = {direction: end.delivered_packets for direction, end in replay.last.items()}
    queue, codel, loss = (sum(getattr(end, name) for end in ends) for name in ("queue_drops", "codel_drops", "losses"))
    missing = sum(end.missing_packets for end in ends)
    return LinkReport(
        trial_id=replay.trial_id,
        started_at=None if replay.started_ns is None else s_from_ns(replay.started_ns),
        windows=tuple(row for rows, _ in judged.values() for row in rows),
        lateness=tuple(histogram.row(replay.trial_id, direction) for direction, histogram in histograms.items()),
        punctuality={name: late.punctuality(out.get(name, 0)) for name, late in histograms.items()},
        packets_in=sum(end.served_packets + end.queue_packets for end in ends) + queue + codel,
        packets_out=sum(end.delivered_packets for end in ends),
        packets_inside=sum(end.queue_packets + end.flying_packets for end in ends),
        drops={"queue": queue, "codel": codel, "loss": loss, "malformed": 0, "transmit": 0},
        uncounted_losses=max(abs(missing), interface_drops),  # an interface's drop on the way is missing too
        rate_errors={direction: error for direction, (_, error) in judged.items()},
        trace_wraps=run_ns // duration_ns,
        realtime=False,
        notes=notes(replay),
    )


def judge(replay: Replay, course: Course) -> tuple[tuple[LinkRow, ...], RateError]:
    """The samples as windows, and the rate error.

    HTB sends whole packets, so up to one packet may be due and not sent at a sample. Bytes due but not sent count as they change by more
    than that: b follows them as a slack of one packet allows, and the error is the sum of |change of b| over backlogged windows.
    """
    rows, error_bytes, due_bytes, backlogged_ns, behind, slack = [], 0.0, 0.0, 0, 0.0, 0.0
    if replay.started_ns is None or not replay.samples:
        return (), RateError()
    backlog_bytes = min(BACKLOG_PACKETS, packet_limit(replay.path) // 2) * MTU_BYTES
    capacity = course.capacity(replay.started_ns, ns_from_s(replay.offset_s))
    allowed_before = capacity.at(replay.samples[0].at_ns) / capacity.per_byte
    for first, second in pairwise(replay.samples):
        before, after = first.counters[course.direction], second.counters[course.direction]
        allowed_after = capacity.at(second.at_ns) / capacity.per_byte
        allowed, sent = allowed_after - allowed_before, after.served_bytes - before.served_bytes
        allowed_before = allowed_after
        backlogged = second.shortest_bytes[course.direction] >= backlog_bytes
        behind = behind + allowed - sent if backlogged else 0.0
        new_slack = min(max(slack, behind - MTU_BYTES), behind + MTU_BYTES) if backlogged else 0.0
        if backlogged:
            error_bytes, due_bytes = error_bytes + abs(new_slack - slack), due_bytes + allowed
            backlogged_ns += second.at_ns - first.at_ns
        slack = new_slack
        wasted = 0.0 if backlogged else max(allowed - sent, 0.0)
        rows.append(
            LinkRow(
                trial_id=replay.trial_id,
                direction=course.direction,
                start_s=s_from_ns(first.at_ns - replay.started_ns),
                allowed_bytes=sent + wasted,
                delivered_bytes=sent,
                wasted_bytes=wasted,
                dropped_bytes=(after.queue_drops + after.codel_drops - before.queue_drops - before.codel_drops) * MTU_BYTES,
                lost_bytes=max(after.lost_bytes - before.lost_bytes, 0),
                queue_bytes=after.queue_bytes,
            )
        )
    return tuple(rows), RateError(error_bytes, due_bytes, s_from_ns(backlogged_ns))
