"""Conformance of links: what each back end has to do, seen by sockets in the hosts. Datagrams carry 1472 bytes, so 1500 as IP."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from conftest import network

from testbed.errors import UserError
from testbed.link import Link, LinkReport, PathSpec
from testbed.network import Lane
from testbed.shapers.kernel import netem_available
from traces.trace import OpportunityTrace, RateTrace, Trace

pytestmark = pytest.mark.emulation

PAYLOAD = 1472
PACKET = 1500
SO_TIMESTAMPNS = 35
RTT_S = 0.04
QUEUE = 60_000

needs_netem = pytest.mark.skipif(not netem_available(), reason="this kernel has no sch_netem, which the kernel back end needs for delay")
BACK_ENDS = [
    pytest.param(PathSpec(RTT_S, QUEUE, "userspace"), id="userspace"),
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

    def start(self, datagram: bytes = b"start") -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
            origin.sendto(datagram, str(self.link.start_path))

    def send(self, count: int, first: int = 0) -> None:
        """A burst towards the client."""
        for number in range(first, first + count):
            self.server.sendto(struct.pack("Q", number) + bytes(PAYLOAD - 8), self.client.getsockname())

    def receive(self, quiet_s: float = 0.3) -> list[tuple[float, int]]:
        """(seconds on the wall clock, number) of each datagram until none comes for `quiet_s`."""
        self.client.settimeout(quiet_s)
        got = []
        while True:
            try:
                data, ancillary, _, _ = self.client.recvmsg(2048, 64)
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


@pytest.fixture
def bench(lane: tuple[Lane, PathSpec], udp_socket: Callable[[int, str, int], socket.socket]) -> Bench:
    one, path = lane
    client = udp_socket(one.client.pid, one.client_ip, 0)
    client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return Bench(one, path, udp_socket(one.server.pid, one.server_ip, 0), client)


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
    if bench.path.back_end == "userspace":  # the other samples its counters a moment after the start
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
    if bench.path.back_end == "userspace":
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
    if bench.path.back_end == "userspace":
        assert len(got) == QUEUE // PACKET
        assert sum(row.dropped_bytes for row in report.windows) == report.drops["queue"] * PACKET


def test_wrap(bench: Bench) -> None:
    bench.link.load(RateTrace("short", (0, 0.1, 0.3), (12e6, 3e6)), 0, "t")
    bench.start()
    got = bench.flood(1.2, packets_per_s=1200)
    report = checked(bench.link.stop())
    assert report.trace_wraps >= 4
    if bench.path.back_end == "userspace":
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
    if bench.path.back_end == "userspace":
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


@pytest.mark.skipif(netem_available(), reason="this kernel has sch_netem")
def test_a_host_without_netem_is_told_what_to_do(tmp_path) -> None:
    with pytest.raises(UserError, match="sch_netem.*--link userspace"), network(tmp_path, 1, PathSpec(0.08, back_end="kernel")):
        pass
