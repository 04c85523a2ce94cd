"""The relay under what it may meet: odd frames, no real-time rights, its own death, a dead host."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import inside, network

from testbed.errors import TestbedError
from testbed.link import LinkReport, PathSpec
from testbed.netns.hosts import Spawner
from testbed.netns.owned import run_lock
from testbed.network import Network
from testbed.setup import native
from testbed.shapers.userspace import RelaySet
from testbed.user import DIE_WITH_STARTER
from traces.trace import RateTrace

pytestmark = pytest.mark.emulation

TRACE = RateTrace("constant", (0, 10), (50e6,))
SERVER, CLIENT = bytes.fromhex("024e4c000001"), bytes.fromhex("024e4c000002")
HEADER = CLIENT + SERVER


needs_c = pytest.mark.skipif(
    not native.built(), reason="the relay in C is not built here: scripts/setup does it where there is a C compiler"
)


@pytest.fixture(params=[pytest.param("userspace", marks=needs_c), "python"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path, 2, PathSpec(back_end=request.param)) as one:
        yield one


def frames(net: Network, *sent: bytes) -> tuple[list[bytes], LinkReport]:
    """Put frames on the wire at lane 0's server; what comes out at the client, and the report."""
    lane = net.lanes[0]
    with inside(lane.server.pid):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind((lane.link.server_interface, 0))
    with inside(lane.client.pid):
        into = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # all protocols
        into.bind((lane.link.client_interface, 3))
        into.settimeout(0.3)
    lane.link.load(TRACE, 0, "t")
    got = []
    with out, into:
        for frame in sent:
            out.send(frame)
        while True:
            try:
                data, (_, _, kind, _, _) = into.recvfrom(4096)
            except TimeoutError:
                break
            if kind != socket.PACKET_OUTGOING:
                got.append(data)
    return got, lane.link.stop()


def ping(net: Network, lane: int) -> int:
    """Whether a lane carries packets: 0."""
    one = net.lanes[lane]
    return one.popen_client(["ping", "-c1", "-W2", one.server_ip], stdout=subprocess.DEVNULL).wait(timeout=10)


def test_frames_pass_unchanged_whatever_they_hold(net: Network) -> None:
    odd = [
        HEADER + b"\x88\xb5" + bytes(46),  # an experimental protocol
        HEADER + b"\x08\x00" + b"\xff" * 60,  # no IPv4 packet, though it says so
        HEADER + b"\x86\xdd" + bytes(40),  # IPv6
        HEADER + b"\x00\x05" + b"hello",  # a length instead of a type
        HEADER + b"\x08\x06" + bytes(28),  # ARP goes past the queue, uncounted
        HEADER + b"\x88\xb5" + bytes(range(250)) * 6,  # as long as can be
    ]
    got, report = frames(net, *odd)
    assert sorted(got) == sorted(odd)
    assert (report.packets_in, report.packets_out, report.uncounted_losses) == (5, 5, 0)
    assert ping(net, 0) == 0


def test_frames_that_are_too_long_or_empty_are_dropped_and_counted(net: Network) -> None:
    lane = net.lanes[0]
    for popen, interface in ((lane.popen_server, lane.link.server_interface), (lane.popen_client, lane.link.client_interface)):
        assert popen(["ip", "link", "set", "dev", interface, "mtu", "9000"]).wait(timeout=5) == 0
    got, report = frames(net, *(HEADER + b"\x88\xb5" + bytes(length) for length in (1501, 4000, 0, 50)))
    assert [len(frame) for frame in got] == [64]
    assert (report.drops["malformed"], report.packets_out, report.uncounted_losses) == (3, 1, 0)
    assert ping(net, 0) == 0


def test_a_receiver_that_is_down_is_a_counted_loss(net: Network) -> None:
    lane = net.lanes[0]
    assert lane.popen_client(["ip", "link", "set", "dev", lane.link.client_interface, "down"]).wait(timeout=5) == 0
    lane.link.load(TRACE, 0, "t")
    lane.popen_server(["ping", "-c3", "-i0.1", "-W1", lane.client_ip], stdout=subprocess.DEVNULL).wait(timeout=10)
    report = lane.link.stop()
    assert report.drops["transmit"] == 3 and report.uncounted_losses == 0


def test_drops_of_the_interfaces_are_uncounted_losses(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the relay is too slow to empty a device's ring: here it's stopped while the server sends more than the ring holds."""
    lane = net.lanes[0]
    lane.link.load(TRACE, 0, "t")
    relay = net._links.process  # type: ignore[union-attr]
    relay.send_signal(signal.SIGSTOP)
    try:
        with inside(lane.server.pid):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for _ in range(6000):
                sender.sendto(bytes(100), (lane.client_ip, 9))
    finally:
        relay.send_signal(signal.SIGCONT)
    report = lane.link.stop()
    assert report.uncounted_losses >= 1000 and report.verdict == "fail"
    assert any("lost uncounted" in reason for reason in report.reasons)


def test_a_relay_that_stood_still_fails_its_verdict(net: Network) -> None:
    """What came meanwhile was read too late to be counted as late: the clock tells, not the packets."""
    lane = net.lanes[0]
    lane.link.load(TRACE, 0, "t")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as origin:
        origin.sendto(b"start", str(lane.link.start_path))
    relay = net._links.process  # type: ignore[union-attr]
    assert ping(net, 0) == 0
    relay.send_signal(signal.SIGSTOP)
    lane.popen_client(["sleep", "0.3"]).wait()
    relay.send_signal(signal.SIGCONT)
    assert ping(net, 0) == 0
    report = lane.link.stop()
    assert 0.25 < report.max_stall_s <= report.stalled_s < report.duration_s
    assert report.verdict == "fail" and any("stood still" in reason for reason in report.reasons)


def test_a_dead_host_harms_no_other_lane_and_leaves_the_relay_idle(net: Network) -> None:
    """Its devices vanish under the relay, which must not spin on them."""
    net.lanes[0].server.shell.kill()
    net.lanes[0].server.shell.wait()
    net.lanes[0].client.shell.kill()
    net.lanes[0].client.shell.wait()
    relay = net._links.process.pid  # type: ignore[union-attr]

    def ticks() -> int:
        return sum(int(word) for word in Path(f"/proc/{relay}/stat").read_text().rpartition(")")[2].split()[11:13])

    assert ping(net, 1) == 0
    net.lanes[1].popen_client(["sleep", "0.5"]).wait()  # by now the kernel has removed the devices
    before = ticks()
    net.lanes[1].popen_client(["sleep", "0.5"]).wait()
    assert ticks() - before < 10  # of 50
    assert ping(net, 1) == 0


def test_the_death_of_the_relay_is_told_at_once(net: Network) -> None:
    net.lanes[0].link.load(TRACE, 0, "t")
    net._links.process.kill()  # type: ignore[union-attr]
    net._links.process.wait()  # type: ignore[union-attr]
    with pytest.raises(TestbedError, match="relay process does not answer.*exit code -9"):
        net.lanes[0].link.stop()
    with pytest.raises(TestbedError, match="relay process does not answer"):
        net.lanes[1].link.load(TRACE, 0, "t")


def test_the_death_of_a_host_is_told(net: Network) -> None:
    lane = net.lanes[0]
    lane.link.load(TRACE, 0, "t")
    lane.client.shell.kill()
    lane.client.shell.wait()
    with pytest.raises(TestbedError, match="lane 0: a host of the link is gone"):
        lane.link.stop()


def test_without_real_time_rights_the_relay_runs_on_and_says_so(tmp_path: Path) -> None:
    with run_lock(state_dir=tmp_path) as run:
        spawner = Spawner(run)

        def spawn(argv: list[str], **popen: Any) -> subprocess.Popen[bytes]:
            return spawner.start([*DIE_WITH_STARTER, "--bounding-set", "-sys_nice,-ipc_lock", *argv], **popen)

        relay = RelaySet(spawn, run.folder)
        try:
            assert [problem.split(":")[0] for problem in relay.problems] == ["SCHED_FIFO refused", "mlockall refused"]
            assert relay.facts["realtime"] is False
        finally:
            relay.close()
            spawner.end([])


def test_the_relay_is_real_time_where_it_may(net: Network) -> None:
    """One that has the rights has the class; its children would not inherit it."""
    import os

    if net.facts["realtime"]:
        policy = os.sched_getscheduler(net._links.process.pid)  # type: ignore[union-attr]
        assert policy == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
