"""What Linux' own queues do, in our links and in Mininet's. The guest has netem: `sudo scripts/guest -- python3 -m pytest -k kernel_links
tests/emulation`; under its virtual clock times are exact, whatever the host does.
"""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import network

from testbed.link import LinkReport, PathSpec
from testbed.network import Lane
from testbed.shapers.kernel import netem_available
from traces.trace import Conditions, RateTrace

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(not netem_available(), reason="this kernel has no sch_netem; scripts/guest has one"),
]

PACKET = 1500
PAYLOAD = PACKET - 28
GREETING_LOST = "unable to read from stream socket"  # of iperf3
RTT_S = 0.04
in_the_guest = pytest.mark.skipif("NETLLM_TESTBED_GUEST" not in os.environ, reason="makes switches in the root namespace: for the guest")


@dataclass
class Bench:
    """A lane with a socket at each end."""

    lane: Lane
    server: socket.socket
    client: socket.socket

    def run(self, trace: RateTrace, sends: Callable[["Bench"], None], uplink: RateTrace | None = None) -> LinkReport:
        """One trial in which `sends` happens."""
        self.lane.link.load(trace, 0, "t", uplink=uplink)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
            origin.sendto(b"start", str(self.lane.link.start_path))
        time.sleep(0.02)
        sends(self)
        report = self.lane.link.stop()
        assert report.uncounted_losses == 0
        assert report.packets_in == report.packets_out + report.packets_inside + sum(report.drops.values())
        return report

    def send(self, numbers: range, gap_s: float = 0.0, up: bool = False) -> None:
        """Numbered full packets, evenly."""
        source, sink = (self.client, self.server) if up else (self.server, self.client)
        begin = time.monotonic()
        for i, number in enumerate(numbers):
            time.sleep(max(begin + i * gap_s - time.monotonic(), 0) if gap_s else 0)
            source.sendto(struct.pack("Qd", number, time.monotonic()) + bytes(PAYLOAD - 16), sink.getsockname())

    def receive(self, quiet_s: float = 0.3, up: bool = False) -> list[tuple[int, float]]:
        """(number, when it was sent) of what is waiting at the far end or comes, until none has come for `quiet_s`."""
        sink = self.server if up else self.client
        sink.settimeout(quiet_s)
        got = []
        while True:
            try:
                got.append(struct.unpack_from("Qd", sink.recv(2048)))
            except TimeoutError:
                return got


@pytest.fixture
def bench(request, tmp_path, udp_socket) -> Iterator[Bench]:
    path = getattr(request, "param", PathSpec(RTT_S, 100_000, "kernel"))
    with network(tmp_path, 1, path) as net:
        lane = net.lanes[0]
        yield Bench(lane, udp_socket(lane.server.pid, lane.server_ip, 0), udp_socket(lane.client.pid, lane.client_ip, 0))


def constant(mbps: float, conditions: Conditions | None = None) -> RateTrace:
    return RateTrace("constant", (0, 10), (mbps * 1e6,), conditions=conditions)


def test_the_delay_follows_the_trace_and_nothing_is_overtaken(bench):
    """60 ms one way, then 5 ms: who was sent 55 ms earlier arrives first all the same."""
    trace = constant(50, Conditions((0, 0.5, 10), delay_s=(0.06, 0.005)))
    got = []

    def sends(bench: Bench) -> None:
        bench.send(range(1000), 0.001)
        got.extend(bench.receive())

    bench.run(trace, sends)
    assert [number for number, _ in got] == list(range(1000))


def test_the_delay_is_the_traces(bench):
    waits = []

    def sends(bench: Bench) -> None:
        begin = time.monotonic()
        for at in (0.1, 0.3, 0.7, 0.9):
            time.sleep(max(begin + at - time.monotonic(), 0))
            bench.send(range(1))
            bench.client.settimeout(1)
            sent = struct.unpack_from("Qd", bench.client.recv(2048))[1]
            waits.append(time.monotonic() - sent)

    bench.run(constant(50, Conditions((0, 0.5, 10), delay_s=(0.06, 0.005))), sends)
    assert waits[:2] == pytest.approx([0.06] * 2, abs=0.002)
    assert waits[2:] == pytest.approx([0.005] * 2, abs=0.002)


@pytest.mark.parametrize("burst", [None, 5.0])
def test_losses_are_as_many_and_as_long_as_the_trace_says_and_counted(bench, burst):
    count, share = 5000, 0.1
    got = []

    def sends(bench: Bench) -> None:
        bench.send(range(count), 0.0005)
        got.extend(number for number, _ in bench.receive())

    conditions = Conditions((0, 10), loss=(share,), burst_packets=burst and (burst,))
    report = bench.run(constant(50, conditions), sends)
    lost = sorted(set(range(count)) - set(got))
    runs = sum(number - 1 not in set(lost) for number in lost)
    assert report.drops["loss"] == len(lost)
    assert sum(row.lost_bytes for row in report.windows) == pytest.approx(len(lost) * PACKET, rel=0.02)
    assert len(lost) / count == pytest.approx(share, rel=0.25 if burst is None else 0.4)
    assert len(lost) / runs == pytest.approx(1 / (1 - share) if burst is None else burst, rel=0.1 if burst is None else 0.3)
    assert any("chance" in note for note in report.notes)


def test_an_uplink_trace_paces_the_way_back(bench):
    """At 2 Mbit/s a full packet takes 6 ms; downwards, 24 Mbit/s go on."""
    times = {}

    def sends(bench: Bench) -> None:
        for up in (True, False):
            begin = time.monotonic()
            bench.send(range(40), up=up)
            bench.receive(0.1, up=up)
            times[up] = time.monotonic() - begin - 0.1

    report = bench.run(constant(24), sends, uplink=constant(2))
    assert times[True] == pytest.approx(40 * 0.006 + RTT_S / 2, abs=0.02)
    assert times[False] == pytest.approx(40 * 0.0005 + RTT_S / 2, abs=0.01)
    assert sum(row.delivered_bytes for row in report.windows if row.direction == "up") == pytest.approx(40 * PACKET, rel=0.05)


@pytest.mark.parametrize("bench", [PathSpec(RTT_S, 100_000, "kernel", queue_packets=10)], indirect=True)
def test_a_queue_bounded_in_packets(bench):
    got = []

    def sends(bench: Bench) -> None:
        bench.send(range(100))
        got.extend(bench.receive(0.5))

    report = bench.run(constant(1), sends)
    assert 10 <= len(got) <= 14  # HTB lets some pass at once when it was idle
    assert report.drops["queue"] == 100 - len(got)


@pytest.mark.parametrize("bench", [PathSpec(RTT_S, 200_000, "kernel", discipline="codel")], indirect=True)
def test_codel_drops_what_waits_too_long(bench):
    """Twice the link's rate for a while: a droptail queue of 133 packets would hold the delay at 530 ms."""
    got = []

    def sends(bench: Bench) -> None:
        bench.send(range(1500), 0.002)
        got.extend(bench.receive(0.6))

    report = bench.run(constant(3), sends)
    assert report.drops["codel"] > 20
    assert len(got) + sum(report.drops.values()) == 1500
    assert any("CoDel" in note for note in report.notes)


@pytest.mark.parametrize("bench", [PathSpec(0.08, 60_000, "kernel")], indirect=True)
def test_tcp_fills_the_queue_until_it_drops(bench):
    """Of packets that the sender's socket still owns TCP would let only a few wait."""

    def sends(bench: Bench) -> None:
        sink = bench.lane.popen_client(["iperf3", "--server", "--one-off"], stdout=subprocess.DEVNULL)
        time.sleep(1)
        arguments = ["--client", bench.lane.client_ip, "--time", "5", "--congestion", "reno"]
        assert bench.lane.popen_server(["iperf3", *arguments], stdout=subprocess.DEVNULL).wait() == 0
        sink.wait()

    report = bench.run(constant(12), sends)
    assert report.drops["queue"] > 0
    assert max(row.queue_bytes for row in report.windows) > 50_000


def test_a_path_without_delay_gets_netem_when_a_trace_wants_it(tmp_path, udp_socket):
    def few(bench: Bench) -> None:
        bench.send(range(20))
        bench.receive()

    with network(tmp_path, 1, PathSpec(0, 100_000, "kernel")) as net:
        lane = net.lanes[0]
        bench = Bench(lane, udp_socket(lane.server.pid, lane.server_ip, 0), udp_socket(lane.client.pid, lane.client_ip, 0))
        report = bench.run(constant(50, Conditions((0, 5, 10), loss=(1, 0))), few)
        assert report.drops["loss"] == 20
        report = bench.run(constant(50), few)
        assert report.drops["loss"] == 0 and report.packets_out == 20


def test_a_trial_begins_with_empty_queues(bench):
    """What waits when a trial is stopped is dropped, not delivered into the next one."""
    bench.lane.link.load(constant(0.2), 0, "first")
    bench.send(range(50))
    assert bench.lane.link.stop().packets_inside > 20
    report = bench.run(constant(50), lambda bench: bench.send(range(100, 110)))
    assert report.packets_in == 10
    assert [number for number, _ in bench.receive() if number < 100][5:] == []


# Mininet's TCLink behind Open vSwitch, as a baseline


@pytest.fixture(scope="module")
def open_vswitch() -> None:
    """Its daemons run."""
    if not shutil.which("ovs-vsctl"):
        pytest.skip("Open vSwitch is not installed")
    time.sleep(max(0.0, 11.0 - time.monotonic()))  # Open vSwitch 3.1 sees no CPU in a kernel's first 10 s: its switch forwards nothing
    control = "/usr/share/openvswitch/scripts/ovs-ctl"
    started = subprocess.run([control, "--system-id=random", "--no-record-hostname", "start"], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stdout + started.stderr


@pytest.fixture
def hosts(open_vswitch, request) -> Iterator[tuple[Any, Any]]:
    """Two hosts, a TCLink with the parameters asked for, a switch of the kernel's data path, a plain link."""
    from mininet.link import Link, TCLink
    from mininet.net import Mininet
    from mininet.node import OVSSwitch

    net = Mininet(controller=None, build=False)
    switch = net.addSwitch("s1", cls=OVSSwitch, failMode="standalone", datapath="kernel")
    one, two = net.addHost("h1", ip="10.99.0.1/24"), net.addHost("h2", ip="10.99.0.2/24")
    net.addLink(one, switch, cls=TCLink, **request.param)
    net.addLink(switch, two, cls=Link)
    net.build()
    net.start()
    try:
        heard = one.cmd("for i in $(seq 20); do ping -c 1 -W 1 -q", two.IP(), "&& break; done")  # the switch learns where they are
        assert " 1 received" in heard, heard
        yield one, two
    finally:
        net.stop()


def transfer(one: Any, two: Any, *arguments: str) -> dict[str, Any]:
    """iperf3 from one to the other: its sums.

    A UDP stream begins with one datagram each way, which iperf3 sends once: where the link loses that, iperf3 gives up after 30 s, having
    measured nothing, and is asked again.
    """
    for _ in range(5):
        server = two.popen(["iperf3", "--server", "--one-off"])
        two.cmd("for i in $(seq 100); do ss -Hltn 'sport = :5201' | grep -q . && break; sleep 0.1; done")
        out, errors = one.popen(["iperf3", "--client", two.IP(), "--json", *arguments]).communicate()
        server.kill()
        server.wait()
        answer = json.loads(out)
        if not ("--udp" in arguments and GREETING_LOST in answer.get("error", "")):
            break
    assert "error" not in answer, (answer["error"], errors)
    return answer["end"]


def pings(one: Any, two: Any, count: int) -> tuple[int, tuple[float, float, float]]:
    """How many were answered; minimum, mean and maximum of the round trip in ms."""
    text = one.cmd(f"ping -q -i 0.01 -c {count}", two.IP())
    summary = re.search(r"(\d+) received.*= ([\d.]+)/([\d.]+)/([\d.]+)/", text, re.DOTALL)
    assert summary, text
    return int(summary[1]), (float(summary[2]), float(summary[3]), float(summary[4]))


@in_the_guest
@pytest.mark.parametrize("hosts", [{"bw": 10, "delay": "20ms", "max_queue_size": 100}, {"bw": 50}], indirect=True, ids=["10", "50"])
def test_tclink_behind_open_vswitch_has_rate_and_delay(hosts, request):
    wanted = request.node.callspec.params["hosts"]
    answered, (least, mean, _) = pings(*hosts, 100)
    assert answered == 100
    delay_ms = 40 if "delay" in wanted else 0
    assert least >= delay_ms and mean < delay_ms + 1
    rate = transfer(*hosts, "--time", "4", "--congestion", "cubic")["sum_received"]["bits_per_second"]
    payload = (PACKET - 52) / (PACKET + 14)  # TCLink counts Ethernet frames
    assert rate == pytest.approx(wanted["bw"] * 1e6 * payload, rel=0.04)


@in_the_guest
@pytest.mark.parametrize("hosts", [{"bw": 10, "delay": "5ms", "loss": 5}], indirect=True)
def test_tclink_behind_open_vswitch_loses_what_is_asked_for(hosts):
    answered, _ = pings(*hosts, 1000)
    assert 1 - answered / 1000 == pytest.approx(1 - 0.95**2, rel=0.3)  # each way
    udp = transfer(*hosts, "--udp", "--bitrate", "5M", "--time", "4", "--length", "1400")["sum"]
    assert udp["lost_percent"] == pytest.approx(5, rel=0.35)


@in_the_guest
@pytest.mark.parametrize("hosts", [{"bw": 2, "delay": "1ms", "max_queue_size": 20}], indirect=True)
def test_tclink_behind_open_vswitch_holds_its_queue(hosts):
    """Twice the rate: half of it is lost at a queue, which is of netem's 20 packets."""
    udp = transfer(*hosts, "--udp", "--bitrate", "4M", "--time", "4", "--length", str(PAYLOAD))["sum"]
    assert udp["lost_percent"] == pytest.approx(50, abs=5)
