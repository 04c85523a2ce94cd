"""What is measured, one function a phase; each yields rows as it goes. All hosts' processes are ours, at nice 0, and end with the phase."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.bench import judge
from testbed.bench.capture import Ring, probe_delays
from testbed.bench.lanes import CONGESTION_CONTROL, Contender, Lane, Wanted, counters
from testbed.bench.traffic import TICK_S
from testbed.clock import now_s
from testbed.errors import TestbedError
from testbed.netns.hosts import Spawner
from testbed.netns.owned import Run
from testbed.network import ALLOWED, AVAILABLE
from testbed.units import MTU_BYTES, bps_from_mbps, bytes_per_s_from_bps
from traces.trace import RateTrace, Trace

PORT = 5401
OFFERED = 1.2
"""Of the trace's capacity."""
AHEAD_S = 0.1
"""The offer runs ahead of the trace, and begins with half a queue: the queue outlasts a sender that has to wait for a processor."""
SKIP_S = 2.0
"""Of TCP's runs, for its slow start; and of UDP's, in which `tc` may still be busy with its first change."""
FAST = RateTrace("fast", (0.0, 10.0), (bps_from_mbps(100_000.0),))
"""For throughput: a link that its trace doesn't hold back."""
WARM_S = 0.7
MOST_FLOOD_PPS = 800_000
MOST_RATE_PPS = 5_000
"""Of a trace in the rate phase: 60 Mbit/s in the mean."""
_END_S = 30.0

RATE = Wanted(rtt_s=0.0, queue_packets=300)
DELAY = Wanted(rtt_s=0.04, queue_packets=300)
THROUGHPUT = Wanted(rtt_s=0.002, queue_packets=2000)

STEAL_COLUMN = 7
"""Of the times in `/proc/stat`'s first line; those after it are counted in others already, proc(5)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Where phases take place."""

    run: Run
    spawner: Spawner

    @contextmanager
    def lanes(self, phase: str, wanted: Wanted, contenders: Sequence[Contender]) -> Iterator[list[tuple[Contender, Lane]]]:
        """The contenders' paths."""
        with ExitStack() as stack:
            yield [(each, stack.enter_context(each.open(phase, wanted, self.run, self.spawner))) for each in contenders]

    @contextmanager
    def congestion_control(self) -> Iterator[None]:
        """Within, hosts may take the congestion control that all contenders use: a new namespace chooses only from the host's list."""
        allowed = ALLOWED.read_text().split()
        if CONGESTION_CONTROL in allowed or CONGESTION_CONTROL not in AVAILABLE.read_text().split():
            yield
        else:
            with self.run.changed(ALLOWED, " ".join([*allowed, CONGESTION_CONTROL])):
                yield

    @contextmanager
    def load(self, busy: int) -> Iterator[None]:
        """Within, so many processes do nothing as fast as they can, at nice 0."""
        loops = [self.spawner.spawn(["sh", "-c", "while :; do :; done"]) for _ in range(busy)]
        try:
            yield
        finally:
            for loop in loops:
                loop.kill()
            for loop in loops:
                loop.wait()


@dataclass(frozen=True)
class Step:
    """One thing to measure, and what its rows bear beside what they say."""

    title: str
    seconds: float
    """How long it takes, about."""
    labels: Row
    busy: int
    """Processes that keep the cores busy meanwhile."""
    measure: Callable[[Stage], Iterator[Row]]

    def rows(self, stage: Stage) -> Iterator[Row]:
        """Take it. All rows bear the share of the host's time that its hypervisor gave to others meanwhile."""
        with stage.load(self.busy):
            before = _processor_ticks()
            rows = list(self.measure(stage))
            spent = [b - a for a, b in zip(before, _processor_ticks(), strict=True)]
        for row in rows:
            yield {**self.labels, **row, "stolen_share": spent[STEAL_COLUMN] / max(sum(spent), 1)}


def _processor_ticks() -> list[int]:
    """Time of all cores together since the start of the host, by what it was spent on."""
    first_line = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(column) for column in first_line.split()[1 : STEAL_COLUMN + 2]]


class Worker:
    """A process of `traffic` in a host. As a context manager it is killed if it still runs."""

    def __init__(self, lane: Lane, at_client: bool, kind: str, **wanted: Any) -> None:
        here, there = (lane.client, lane.server) if at_client else (lane.server, lane.client)
        wanted = {"from": here.ip, "to": there.ip, "port": PORT, **wanted}
        argv = [sys.executable, "-m", "testbed.bench.traffic", kind]
        self._kind = kind
        self._process = lane.popen(here, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._write(json.dumps(wanted))

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def ready(self) -> None:
        """Wait until it only needs `go`."""
        self.said()

    def go(self) -> None:
        """Let it begin."""
        self._write("go")

    def said(self) -> Row:
        """Its next line."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise TestbedError(f"the benchmark's {self._kind} process ended with exit code {self._process.wait()}; what it says is above")
        said: Row = json.loads(line)
        return said

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


def offered_counts(trace: Trace, seconds: float, queue_packets: int) -> list[int]:
    """Datagrams to have been sent by each tick so that the queue never empties: half a queue, and `OFFERED` times the trace's capacity."""
    ticks_s = np.arange(round(seconds / TICK_S)) * TICK_S + AHEAD_S
    return [int(count) for count in queue_packets // 2 + OFFERED * judge.allowed_by(trace, ticks_s) / MTU_BYTES]


def rate(stage: Stage, contenders: Sequence[Contender], trace: Trace, traffic: str, seconds: float, alone: bool) -> Iterator[Row]:
    """Rate error under UDP or TCP, all contenders at the same time (or one after the other when `alone`). They have no delay."""
    groups = [[each] for each in contenders] if alone else [list(contenders)]
    for group in groups:
        able = [each for each in group if each.follows(trace)]
        with stage.lanes("rate", RATE, able) as lanes:
            yield from _rate(lanes, trace, traffic, seconds)


def _rate(lanes: Sequence[tuple[Contender, Lane]], trace: Trace, traffic: str, seconds: float) -> Iterator[Row]:
    with ExitStack() as stack:
        for contender, lane in lanes:
            lane.load(contender.given(trace))
        rings = [stack.enter_context(Ring(lane.client.pid, lane.client.interface, round(seconds * MOST_RATE_PPS))) for _, lane in lanes]
        senders = [stack.enter_context(_sender(stack, lane, trace, traffic, seconds)) for _, lane in lanes]
        for sender in senders:
            sender.ready()
        before_s = [lane.cpu_s for _, lane in lanes]
        for _, lane in lanes:
            lane.start()
        for sender in senders:
            sender.go()
        begin_s = now_s()
        time.sleep(seconds)
        captures = [ring.packets() for ring in rings]
        after_s = [lane.cpu_s for _, lane in lanes]
        counted = [lane.stop() for _, lane in lanes]
    for (contender, lane), packets, before, after, count in zip(lanes, captures, before_s, after_s, counted, strict=True):
        arrivals = packets.udp_arrivals() if traffic == "udp" else packets.tcp_arrivals()
        search_s = (lane.began_s - begin_s - 1.0, 0.1)
        error = judge.rate_error(arrivals, trace, search_s, SKIP_S)
        if error is None:
            packets_seen = f"{len(arrivals.times_s)} packets in {seconds:g} s"
            raise TestbedError(f"{contender.label} carried too little {traffic} to be judged: {packets_seen}")
        yield {
            "contender": contender.key,
            "rate_error_100ms_pct": error.short_pct,
            "rate_error_1s_pct": error.long_pct,
            "windows": error.windows,
            "windows_left_out": error.windows_left_out,
            "packets": len(arrivals.times_s),
            "emulator_cpu_share": None if before is None or after is None else (after - before) / seconds,
            "own_report": dict(count.report),
        }


def _sender(stack: ExitStack, lane: Lane, trace: Trace, traffic: str, seconds: float) -> Worker:
    if traffic == "udp":
        stack.enter_context(_sink(lane))
        return Worker(lane, False, "scheduled", counts=offered_counts(trace, seconds, RATE.queue_packets))
    stack.enter_context(Worker(lane, True, "tcp_receive")).ready()
    return Worker(lane, False, "tcp_send", seconds=seconds)


@contextmanager
def _sink(lane: Lane) -> Iterator[None]:
    """A bound socket that nobody reads, so that datagrams are not answered by ICMP."""
    with Worker(lane, True, "sink") as sink:
        sink.ready()
        yield


def delay(stage: Stage, contender: Contender, count: int, interval_s: float) -> Row:
    """Delay error of probes in both directions; the path has 20 ms each way and nothing else on it."""
    with stage.lanes("delay", DELAY, [contender]) as ((_, lane),), ExitStack() as stack:
        lane.load(FAST)
        rings = [stack.enter_context(Ring(end.pid, end.interface, 4 * count + 2000, both_ways=True)) for end in (lane.server, lane.client)]
        settings = {"count": count, "interval_s": interval_s}
        down = stack.enter_context(Worker(lane, False, "probes", **settings))
        up = stack.enter_context(Worker(lane, True, "probes", **settings))
        for sender in (down, up):
            sender.ready()
        lane.start()
        for sender in (down, up):
            sender.go()
        for sender in (down, up):
            sender.said()
        time.sleep(DELAY.rtt_s + 0.3)
        at_server, at_client = (ring.packets() for ring in rings)
        counted = lane.stop()
    down_s, down_lost = probe_delays(at_server, at_client)
    up_s, up_lost = probe_delays(at_client, at_server)
    wanted_s = DELAY.rtt_s / 2
    late_s = np.array([*down_s.values(), *up_s.values()]) - wanted_s
    both_s = np.array([down_s[number] + up_s[number] for number in down_s.keys() & up_s.keys()]) - DELAY.rtt_s
    one_way, two_way = judge.delay_error(late_s, down_lost + up_lost), judge.delay_error(both_s, 0)
    if one_way is None or two_way is None:
        raise TestbedError(f"{contender.label} carried none of {2 * count} probes")
    return {
        "contender": contender.key,
        **{f"delay_error_{name}_s": getattr(one_way, f"{name}_s") for name in ("p50", "p99", "max")},
        **{f"delay_error_both_ways_{name}_s": getattr(two_way, f"{name}_s") for name in ("p50", "p99", "max")},
        "probes": one_way.probes,
        "probes_lost": one_way.lost,
        "late_quantiles_s": np.quantile(np.abs(late_s), np.linspace(0, 1, 201)).tolist(),
        "own_report": dict(counted.report),
    }


def tcp(stage: Stage, contender: Contender, seconds: float) -> Row:
    """One cubic connection as fast as it goes over 1 ms each way, and what the emulator's processes used for it."""
    with stage.lanes("tcp", THROUGHPUT, [contender]) as ((_, lane),), ExitStack() as stack:
        lane.load(FAST)
        stack.enter_context(Worker(lane, True, "tcp_receive")).ready()
        sender = stack.enter_context(Worker(lane, False, "tcp_send", seconds=WARM_S + seconds + 1.0))
        sender.ready()
        lane.start()
        sender.go()
        time.sleep(WARM_S)
        first_s, (_, first_bytes), first_cpu_s = now_s(), counters(lane.client), lane.cpu_s
        time.sleep(seconds)
        last_s, (_, last_bytes), last_cpu_s = now_s(), counters(lane.client), lane.cpu_s
        lane.stop()
    carried = last_bytes - first_bytes
    cpu_s = None if first_cpu_s is None or last_cpu_s is None else last_cpu_s - first_cpu_s
    return {
        "contender": contender.key,
        "tcp_bps": carried / bytes_per_s_from_bps(1.0) / (last_s - first_s),
        "cpu_s_per_gb": cpu_s / (carried / 1e9) if cpu_s is not None and carried else None,
    }


def flood(stage: Stage, contender: Contender, seconds: float, captured: bool = False) -> Row:
    """Full datagrams as fast as one process sends them: how much comes through, and whether the emulator knows of all that doesn't."""
    with stage.lanes("flood", THROUGHPUT, [contender]) as ((_, lane),), ExitStack() as stack:
        lane.load(FAST)
        if captured:
            stack.enter_context(Ring(lane.client.pid, lane.client.interface, round(seconds * MOST_FLOOD_PPS)))
        stack.enter_context(_sink(lane))
        sender = stack.enter_context(Worker(lane, False, "flood", seconds=seconds))
        sender.ready()
        lane.start()
        before_packets, before_bytes = counters(lane.client)
        before_cpu_s, begin_s = lane.cpu_s, now_s()
        sender.go()
        said = sender.said()
        end_s, (_, at_end_bytes), cpu_s = now_s(), counters(lane.client), lane.cpu_s
        after_packets = _settled(lane)
        counted = lane.stop()
    forwarded_bytes = at_end_bytes - before_bytes
    lost = said["sent"] - (after_packets - before_packets)
    return {
        "contender": contender.key,
        "flood_bps": forwarded_bytes / bytes_per_s_from_bps(1.0) / (end_s - begin_s),
        "offered_bps": said["sent"] * MTU_BYTES / bytes_per_s_from_bps(1.0) / said["seconds"],
        "flood_cpu_s_per_gb": None if before_cpu_s is None or cpu_s is None else (cpu_s - before_cpu_s) / max(forwarded_bytes / 1e9, 1e-9),
        "lost": lost,
        "lost_uncounted": lost - counted.drops - counted.inside if counted.known else None,
        "own_report": dict(counted.report),
    }


def capture_cost_s(stage: Stage, contender: Contender, seconds: float, times: int) -> float:
    """What a capture costs a packet: the sender's time for one with and without, on a path that emulates nothing; the median of `times`.

    There the sender carries its packets through to the receiving host by itself.
    """
    found = []
    for _ in range(times):
        without, with_one = (flood(stage, contender, seconds, captured) for captured in (False, True))
        found.append(MTU_BYTES * (1 / bytes_per_s_from_bps(with_one["offered_bps"]) - 1 / bytes_per_s_from_bps(without["offered_bps"])))
    return float(np.median(found))


def _settled(lane: Lane) -> int:
    """Packets received once nothing comes any more."""
    before, end_s = -1, now_s() + _END_S
    while (now := counters(lane.client)[0]) != before and now_s() < end_s:
        before = now
        time.sleep(0.3)
    return now
