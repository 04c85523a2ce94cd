"""Conformance of links: what each back end has to do, seen by sockets in the hosts. Datagrams carry 1472 bytes, so 1500 as IP."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import network
from quiet import in_real_time

from testbed.errors import UserError
from testbed.link import Link, LinkReport, PathSpec
from testbed.network import Lane
from testbed.setup import native
from testbed.shapers.kernel import netem_available
from traces.trace import Conditions, OpportunityTrace, RateTrace, Trace

pytestmark = [pytest.mark.emulation, in_real_time]

PAYLOAD = 1472
PACKET = 1500
SO_TIMESTAMPNS = 35
RTT_S = 0.04
QUEUE = 60_000

needs_netem = pytest.mark.skipif(not netem_available(), reason="this kernel has no sch_netem, which the kernel back end needs for delay")
needs_c = pytest.mark.skipif(
    not native.built(), reason="the relay in C is not built here: scripts/setup does it where there is a C compiler"
)
BACK_ENDS = [
    pytest.param(PathSpec(RTT_S, QUEUE, "userspace"), id="userspace", marks=needs_c),
    pytest.param(PathSpec(RTT_S, QUEUE, "python"), id="python"),
    pytest.param(PathSpec(RTT_S, QUEUE, "kernel"), id="kernel", marks=needs_netem),
    pytest.param(PathSpec(0, QUEUE, "kernel"), id="kernel-without-delay"),
]


@dataclass
class Bench:
    """One lane with a socket at each end."""

    lane: Lane
    path: PathSpec
    server: socket.socket
    client: socket.socket

    @property
    def link(self) -> Link:
        return self.lane.link

    @property
    def by_relay(self) -> bool:
        return self.path.back_end != "kernel"

    def start(self, datagram: bytes = b"start") -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
            origin.sendto(datagram, str(self.link.start_path))

    def send(self, count: int, first: int = 0, *, up: bool = False) -> None:
        """A burst towards the client, or from it."""
        sender, receiver = (self.client, self.server) if up else (self.server, self.client)
        for number in range(first, first + count):
            sender.sendto(struct.pack("Q", number) + bytes(PAYLOAD - 8), receiver.getsockname())

    def receive(self, quiet_s: float = 0.3, *, up: bool = False) -> list[tuple[float, int]]:
        """(seconds on the wall clock, number) of each datagram until none comes for `quiet_s`."""
        receiver = self.server if up else self.client
        receiver.settimeout(quiet_s)
        got = []
        while True:
            try:
                data, ancillary, _, _ = receiver.recvmsg(2048, 64)
            except TimeoutError:
                return got
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            got.append((seconds + nanoseconds / 1e9, struct.unpack_from("Q", data)[0]))

    def flood(self, seconds: float, packets_per_s: float) -> list[tuple[float, int]]:
        """Offer more than the link carries, evenly, for a while; what arrives."""
        numbers = itertools.count()

        def offer() -> None:
            begin = time.monotonic()
            for number in numbers:
                due = begin + number / packets_per_s
                if due > begin + seconds:
                    return
                time.sleep(max(due - time.monotonic(), 0))
                self.send(1, number)

        thread = threading.Thread(target=offer)
        thread.start()
        got = self.receive(quiet_s=1.0)
        thread.join()
        return got


@pytest.fixture(params=BACK_ENDS, scope="module")
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lane, PathSpec]]:
    with network(tmp_path_factory.mktemp("state"), 1, request.param) as net:
        yield net.lanes[0], request.param


MakeSocket = Callable[[int, str, int], socket.socket]


@pytest.fixture
def bench(lane: tuple[Lane, PathSpec], udp_socket: MakeSocket) -> Bench:
    return bench_of(*lane, udp_socket)


def bench_of(lane: Lane, path: PathSpec, udp_socket: MakeSocket) -> Bench:
    ends = udp_socket(lane.server.pid, lane.server_ip, 0), udp_socket(lane.client.pid, lane.client_ip, 0)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return Bench(lane, path, *ends)


def constant(mbps: float) -> Trace:
    return RateTrace("constant", (0, 10), (mbps * 1e6,))


def rate_bps(got: list[tuple[float, int]], begin: float = 0.0, end: float = 1e9) -> float:
    """Of what arrived between `begin` and `end` seconds after the first datagram."""
    times = [at - got[0][0] for at, _ in got]
    inside = [at for at in times if begin <= at <= end]
    return (len(inside) - 1) * PACKET * 8 / (inside[-1] - inside[0])


HTB_BURST = 4
"""Packets that HTB lets pass at once when it was idle."""


def checked(report: LinkReport) -> LinkReport:
    """Whatever else: nothing is lost uncounted, and packets add up."""
    assert report.uncounted_losses == 0
    assert report.packets_in == report.packets_out + report.packets_inside + sum(report.drops.values())
    return report


def test_delay_is_half_the_rtt_each_way(bench: Bench) -> None:
    bench.link.load(constant(50), 0, "t")
    bench.start()
    down, up = [], []
    for _ in range(20):
        sent = time.monotonic()
        bench.server.sendto(b"x", bench.client.getsockname())
        bench.client.recv(10)
        turned = time.monotonic()
        bench.client.sendto(b"y", bench.server.getsockname())
        bench.server.recv(10)
        up.append(time.monotonic() - turned)
        down.append(turned - sent)
    checked(bench.link.stop())
    for ways in (down, up):
        assert bench.path.rtt_s / 2 <= min(ways)
        assert sorted(ways)[len(ways) // 2] < bench.path.rtt_s / 2 + 0.004


@pytest.mark.parametrize("mbps", [2.0, 12.0])
def test_constant_rate(bench: Bench, mbps: float) -> None:
    bench.link.load(constant(mbps), 0, "t")
    bench.start()
    count = QUEUE // PACKET
    bench.send(count)
    got = bench.receive()
    report = checked(bench.link.stop())
    assert [number for _, number in got] == list(range(count))
    assert rate_bps(got[HTB_BURST:]) == pytest.approx(mbps * 1e6, rel=0.03)
    assert report.started_at is not None and report.trial_id == "t"
    if bench.by_relay:  # the other samples its counters a moment after the start
        assert rate_bps(got) == pytest.approx(mbps * 1e6, rel=0.01)
        assert sum(row.delivered_bytes for row in report.windows) == pytest.approx(count * PACKET, rel=0.01)


def test_rate_step_and_offset(bench: Bench) -> None:
    trace = RateTrace("step", (0, 5, 5.6, 20), (1e6, 4e6, 12e6))
    bench.link.load(trace, 5, "t")
    bench.start()
    got = bench.flood(1.4, packets_per_s=1200)
    report = checked(bench.link.stop())
    assert rate_bps(got, 0.1, 0.5) == pytest.approx(4e6, rel=0.05)
    assert rate_bps(got, 0.8, 1.3) == pytest.approx(12e6, rel=0.05)
    if bench.by_relay:
        allowed = [row.allowed_bytes for row in report.windows[:12]]
        assert allowed == pytest.approx([50_000] * 6 + [150_000] * 6)
    assert report.drops["queue"] > 0 and report.trace_wraps == 0


def test_outage(bench: Bench) -> None:
    if bench.path.back_end == "kernel":
        pytest.skip("HTB can't stop: this back end holds 0 bit/s at a floor, and says so")
    bench.link.load(RateTrace("outage", (0, 0.3, 0.8, 9), (6e6, 0, 6e6)), 0, "t")
    bench.start()
    got = bench.flood(1.2, packets_per_s=600)
    checked(bench.link.stop())
    gaps = [(b - a, a - got[0][0]) for (a, _), (b, _) in itertools.pairwise(got)]
    gap, at = max(gaps)
    assert gap == pytest.approx(0.5, abs=0.01)
    assert at == pytest.approx(0.3, abs=0.01)


def test_low_rates_are_said_to_be_held_at_the_floor(bench: Bench) -> None:
    if bench.path.back_end != "kernel":
        pytest.skip("only the kernel back end has a floor")
    bench.link.load(RateTrace("outage", (0, 0.3, 0.8, 9), (6e6, 0, 6e6)), 0, "t")
    report = bench.link.stop()
    assert any("below" in note for note in report.notes)


def test_droptail_counts_each_loss(bench: Bench) -> None:
    bench.link.load(constant(1), 0, "t")
    bench.start()
    bench.send(100)
    got = bench.receive(quiet_s=0.5)
    report = checked(bench.link.stop())
    assert [number for _, number in got] == list(range(len(got)))  # it is the tail that is dropped
    assert QUEUE // PACKET <= len(got) <= QUEUE // PACKET + HTB_BURST
    assert report.drops["queue"] == 100 - len(got)
    if bench.by_relay:
        assert len(got) == QUEUE // PACKET
        assert sum(row.dropped_bytes for row in report.windows) == report.drops["queue"] * PACKET


def test_wrap(bench: Bench) -> None:
    bench.link.load(RateTrace("short", (0, 0.1, 0.3), (12e6, 3e6)), 0, "t")
    bench.start()
    got = bench.flood(1.2, packets_per_s=1200)
    report = checked(bench.link.stop())
    assert report.trace_wraps >= 4
    if bench.by_relay:
        assert rate_bps(got, 0, 1.1) == pytest.approx(6e6, rel=0.05)
        bins = [sum(k <= (at - got[0][0]) / 0.1 < k + 1 for at, _ in got) for k in range(9)]
        assert all(bins[k] > 2 * bins[k + 1] for k in (0, 3, 6))


def test_delivery_opportunities(bench: Bench) -> None:
    """Two at once every 10 ms, 2.4 Mbit/s: packets leave in pairs."""
    times = tuple(0.01 * (i // 2 + 1) for i in range(200))
    bench.link.load(OpportunityTrace("pairs", times), 0, "t")
    bench.start()
    bench.send(40)
    got = bench.receive()
    checked(bench.link.stop())
    assert rate_bps(got) == pytest.approx(2.4e6, rel=0.08)
    if bench.by_relay:
        gaps = [b - a for (a, _), (b, _) in itertools.pairwise(got)]
        assert sum(gap < 0.002 for gap in gaps[::2]) >= 18 and sum(0.007 < gap < 0.013 for gap in gaps[1::2]) >= 17


def test_only_a_start_after_load_starts_the_trace(bench: Bench) -> None:
    """Before it the mean rate flows; what is not `start` is ignored; so is a second one."""
    bench.start()  # nothing is loaded
    time.sleep(0.05)
    bench.link.load(RateTrace("late", (0, 0.5, 1), (0.5e6, 7.5e6)), 0, "t")  # mean 4 Mbit/s
    bench.start(b"begin")
    bench.start(b"started")
    bench.start(b"")
    bench.send(30)
    assert rate_bps(bench.receive(0.2)[HTB_BURST:]) == pytest.approx(4e6, rel=0.05)
    before = time.monotonic()
    bench.start()
    bench.send(16)
    slow = bench.receive(0.2)
    after = time.monotonic()
    bench.start()
    time.sleep(0.05)
    report = checked(bench.link.stop())
    assert rate_bps(slow[HTB_BURST:14]) == pytest.approx(0.5e6, rel=0.06)
    assert report.started_at is not None and before <= report.started_at <= after - 0.1


def test_a_trace_that_never_started_fails(bench: Bench) -> None:
    bench.link.load(constant(5), 0, "t")
    report = checked(bench.link.stop())
    assert report.started_at is None and report.windows == () and report.verdict == "fail" and "never started" in report.reasons[0]


def test_counters_begin_anew_with_each_load(bench: Bench) -> None:
    for count in (3, 5):
        bench.link.load(constant(12), 0, f"t{count}")
        bench.start()
        bench.send(count)
        bench.receive(0.2)
        report = checked(bench.link.stop())
        assert (report.packets_out, report.trial_id) == (count, f"t{count}")


def test_the_way_back_has_a_trace_of_its_own(bench: Bench) -> None:
    uplink = RateTrace("up", (0, 2, 10), (9e6, 2e6))
    bench.link.load(constant(20), 2, "t", uplink=uplink)
    bench.start()
    count = QUEUE // PACKET
    bench.send(count)
    bench.send(count, up=True)
    down, up = bench.receive(), bench.receive(up=True)
    report = checked(bench.link.stop())
    assert [number for _, number in up] == list(range(count))
    assert rate_bps(up[HTB_BURST:]) == pytest.approx(2e6, rel=0.03)
    assert rate_bps(down[HTB_BURST:]) == pytest.approx(20e6, rel=0.1)
    if bench.by_relay:
        windows = [row for row in report.windows if row.direction == "up"]
        assert sum(row.delivered_bytes for row in windows) == pytest.approx(count * PACKET, rel=0.01)


def test_delay_follows_the_trace(bench: Bench) -> None:
    """20 ms for half a second, then 70 ms; a packet never overtakes another."""
    if not bench.path.rtt_s:
        pytest.skip("this back end was made without netem")
    conditions = Conditions((0, 0.5, 10), delay_s=(0.02, 0.07))
    bench.link.load(RateTrace("delay", (0, 10), (50e6,), conditions=conditions), 0, "t")
    bench.start()
    delays = []
    begin = time.monotonic()
    for at in (0.2, 0.3, 0.7, 0.8):
        time.sleep(max(begin + at - time.monotonic(), 0))
        sent = time.monotonic()
        bench.server.sendto(b"x" * 8, bench.client.getsockname())
        bench.client.recv(10)
        delays.append(time.monotonic() - sent)
    checked(bench.link.stop())
    for seen, wanted in zip(delays, (0.02, 0.02, 0.07, 0.07), strict=True):
        assert wanted <= seen < wanted + 0.01


def test_what_a_trial_left_under_way_is_not_in_the_next(bench: Bench) -> None:
    """A packet on a path of 10 s would hold up all that come after it."""
    if not bench.by_relay:
        pytest.skip("netem's queue is emptied at load, which test_counters_begin_anew_with_each_load tells")
    conditions = Conditions((0, 10), delay_s=(10.0,))
    bench.link.load(RateTrace("far", (0, 10), (50e6,), conditions=conditions), 0, "t1")
    bench.start()
    bench.send(5)
    assert bench.receive(0.1) == []
    assert checked(bench.link.stop()).packets_inside == 5
    bench.link.load(constant(50), 0, "t2")
    bench.start()
    bench.send(3, first=10)
    assert [number for _, number in bench.receive(0.2)] == [10, 11, 12]
    report = checked(bench.link.stop())
    assert (report.packets_in, report.packets_inside) == (3, 0)


@pytest.mark.parametrize("burst", [None, 6.0])
def test_losses_are_those_of_the_trace_and_are_counted(bench: Bench, burst: float | None) -> None:
    if not bench.path.rtt_s:
        pytest.skip("this back end was made without netem")
    conditions = Conditions((0, 10), loss=(0.3,), burst_packets=burst and (burst,))
    bench.link.load(RateTrace("loss", (0, 10), (50e6,), conditions=conditions), 0, "t", seed=5)
    bench.start()
    count = 600
    for first in range(0, count, 20):
        bench.send(20, first)
        time.sleep(0.008)
    got = bench.receive()
    report = checked(bench.link.stop())
    assert report.drops["loss"] == count - len(got)
    assert len(got) / count == pytest.approx(0.7, abs=0.15)
    if bench.by_relay:
        assert sum(row.lost_bytes for row in report.windows) == report.drops["loss"] * PACKET


@pytest.mark.parametrize("back_end", BACK_ENDS[:3])
def test_the_queue_may_be_bounded_in_packets(tmp_path: Path, back_end: PathSpec, udp_socket: MakeSocket) -> None:
    path = replace(back_end, queue_packets=10)
    with network(tmp_path, 1, path) as net:
        bench = bench_of(net.lanes[0], path, udp_socket)
        bench.link.load(constant(1), 0, "t")
        bench.start()
        bench.send(30)
        got = bench.receive(quiet_s=0.5)
        report = checked(bench.link.stop())
    assert 10 <= len(got) <= 10 + HTB_BURST and report.drops["queue"] == 30 - len(got)
    assert len(got) == 10 or not bench.by_relay


@pytest.mark.parametrize("back_end", BACK_ENDS[:3])
def test_codel_drains_a_standing_queue(tmp_path: Path, back_end: PathSpec, udp_socket: MakeSocket) -> None:
    """A tenth too much for 3 s: droptail would fill up; CoDel drops before that, and what arrives has waited less."""
    path = replace(back_end, queue_bytes=600_000, discipline="codel")
    with network(tmp_path, 1, path) as net:
        bench = bench_of(net.lanes[0], path, udp_socket)
        bench.link.load(constant(6), 0, "t")
        bench.start()
        got = bench.flood(3.0, packets_per_s=550)
        report = checked(bench.link.stop())
    assert report.drops["codel"] > 3 and report.drops["queue"] == 0
    assert rate_bps(got) == pytest.approx(6e6, rel=0.05)


@pytest.mark.skipif(netem_available(), reason="this kernel has sch_netem")
def test_a_host_without_netem_is_told_what_to_do(tmp_path) -> None:
    with pytest.raises(UserError, match="sch_netem.*--link userspace"), network(tmp_path, 1, PathSpec(0.08, back_end="kernel")):
        pass
