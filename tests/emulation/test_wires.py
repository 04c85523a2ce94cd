"""Wires and stars on this machine: rates, delay, shared queues, what is read back, and that nothing stays behind.

Bytes are counted by the kernel at the interfaces. An upper bound on what passed is exact: no more than the rate allows between a clock
read before the first count and one read after the second, and a burst. A lower bound has to hold in the best of several windows only, so
that a busy machine can't fail it.
"""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import descendants, inside, interfaces
from quiet import in_real_time

from testbed.errors import TestbedError, UserError
from testbed.link import PathSpec
from testbed.netns.owned import clean, run_lock
from testbed.netns.wires import FRAME_BYTES, MTU_BYTES, UNSHAPED, Wire, WireSpec
from testbed.network import Network
from testbed.setup import native
from testbed.shapers.userspace import NO_OFFLOAD
from testbed.star import Star
from traces.trace import RateTrace

pytestmark = [pytest.mark.emulation, in_real_time]

UDP_SEGMENT = 103
WINDOW_S = 0.5
WINDOWS = 6
SEND_S = "20"
"""Longer than any test looks; senders are ended, not waited for."""
DATAGRAM = 20 * 1480 - 8
"""Payload that makes 20 full packets."""
SPRAY = f"""
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    while True:
        one.sendto(bytes({DATAGRAM}), (sys.argv[1], int(sys.argv[2])))
"""

needs_c = pytest.mark.skipif(
    not native.built(), reason="the relay in C is not built here: scripts/setup does it where there is a C compiler"
)
SHAPERS = ["kernel", pytest.param("relay", marks=needs_c)]


@contextmanager
def star(folder: Path, networks: dict[str, dict[str, WireSpec]]) -> Iterator[Star]:
    with run_lock(state_dir=folder) as run, Star(networks, run) as one:
        yield one


def tcp(one: Star, sender: str, receiver: str, port: int) -> None:
    """A connection that is always full."""
    what = [sys.executable, "-m", "testbed.fidelity.traffic"]
    sink = one.popen(receiver, [*what, "tcp-sink", one.ip("data", receiver), str(port)], stdout=subprocess.PIPE)
    assert sink.stdout and sink.stdout.readline() == b"ready\n"
    source = one.popen(
        sender, [*what, "tcp-send", one.ip("data", receiver), str(port), SEND_S], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert source.stdin and source.stdout and source.stdout.readline() == b"ready\n"
    source.stdin.write(b"go\n")
    source.stdin.flush()


def count(one: Star, host: str) -> tuple[int, int]:
    """Ethernet bytes that `host` received and sent on the data network so far."""
    lines = Path(f"/proc/{one.hosts[host].pid}/net/dev").read_text().splitlines()
    numbers = next(line.partition(":")[2].split() for line in lines if line.strip().startswith(f"{host}-eth0:"))
    return int(numbers[0]), int(numbers[8])


def shares(one: Star, hosts: Iterable[str], rate_bps: float) -> dict[str, list[tuple[float, float]]]:
    """Received and sent in each window, of what the wire allows between the clock readings around both counts."""
    names = list(hosts)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    allowed_per_s = rate_bps / 8 * FRAME_BYTES / MTU_BYTES
    for _ in range(WINDOWS):
        begin_s = time.monotonic()
        before = {name: count(one, name) for name in names}
        time.sleep(WINDOW_S)
        after = {name: count(one, name) for name in names}
        allowed = allowed_per_s * (time.monotonic() - begin_s)
        for name in names:
            received, sent = (b - a for a, b in zip(before[name], after[name], strict=True))
            found[name].append((received / allowed, sent / allowed))
    return found


def wait_for_bytes(one: Star, host: str, size_bytes: int) -> None:
    """Until `host` received so much."""
    deadline = time.monotonic() + 20
    while count(one, host)[0] < size_bytes:
        assert time.monotonic() < deadline, f"{host} received {count(one, host)[0]} bytes"
        time.sleep(0.01)


@pytest.mark.parametrize("mbps", [10, 100, 1000])
@pytest.mark.parametrize("by", SHAPERS)
def test_tcp_gets_the_rate_and_no_more(tmp_path: Path, by: str, mbps: int) -> None:
    spec = WireSpec(mbps * 1e6, by=by)  # type: ignore[arg-type]
    with star(tmp_path, {"data": {"e0": spec, "e1": spec}}) as one:
        tcp(one, "e0", "e1", 5000)
        wait_for_bytes(one, "e1", 500_000)
        received = [down for down, _ in shares(one, ["e1"], spec.rate_bps or 0)["e1"]]
    burst = max(spec.tbf["burst"], spec.offloaded_bytes) / (mbps * 1e6 / 8 * WINDOW_S)
    assert max(received) <= 1 + burst + 0.001
    assert max(received) >= 0.93  # 0.965 is what is left of headers where packets of 64 kB are counted as one


@pytest.mark.parametrize("mbps", [10, 100, 1000])
@pytest.mark.parametrize("by", SHAPERS)
def test_udp_gets_the_rate_and_no_more(tmp_path: Path, by: str, mbps: int) -> None:
    """The sender's own wire lets everything through; the receiver's is the bottleneck, and drops."""
    spec = WireSpec(mbps * 1e6, by=by)  # type: ignore[arg-type]
    with star(tmp_path, {"data": {"e0": UNSHAPED, "e1": spec}}) as one:
        one.popen("e0", [sys.executable, "-c", SPRAY, one.ip("data", "e1"), "5001"])
        wait_for_bytes(one, "e1", 500_000)
        received = [down for down, _ in shares(one, ["e1"], spec.rate_bps or 0)["e1"]]
        wire = one.wires["data"]["e1"]
        drops = wire.report().drops["queue"] if by == "relay" else wire.sent()[1].drops
    assert max(received) <= 1 + (spec.tbf["burst"] + 2 * FRAME_BYTES) / (mbps * 1e6 / 8 * WINDOW_S) + 0.001
    assert max(received) >= (0.98 if mbps < 1000 else 0.5)  # what one core sends is the bound at 1000 Mbit/s on a busy machine
    assert drops > 100 or mbps == 1000


@needs_c
def test_the_relay_delays(tmp_path: Path) -> None:
    """Four wires on the way there and back, 10 ms each."""
    spec = WireSpec(50e6, delay_s=0.01, by="relay")
    with star(tmp_path, {"data": {"e0": spec, "e1": spec}}) as one:
        ping = one.popen("e0", ["ping", "-c", "5", "-i", "0.1", one.ip("data", "e1")], stdout=subprocess.PIPE)
        output = ping.communicate()[0].decode()
        report = one.wires["data"]["e0"].report()
    assert ping.returncode == 0
    fastest_ms = float(output.rpartition("= ")[2].split("/")[0])
    assert 40 <= fastest_ms < 50
    assert report.packets_out == 10 and report.uncounted_losses == 0 and report.started_at


@pytest.mark.parametrize("by", SHAPERS)
def test_all_to_all_fills_every_wire_both_ways(tmp_path: Path, by: str) -> None:
    names, rate_bps = [f"e{i}" for i in range(4)], 20e6
    with star(tmp_path, {"data": {name: WireSpec(rate_bps, queue_bytes=60_000, by=by) for name in names}}) as one:  # type: ignore[arg-type]
        for i, sender in enumerate(names):
            for receiver in names:
                if receiver != sender:
                    tcp(one, sender, receiver, 5000 + i)
        for name in names:
            wait_for_bytes(one, name, 500_000)
        found = shares(one, names, rate_bps)
    for name in names:
        down, up = (max(column) for column in zip(*found[name], strict=True))
        assert 0.93 <= down <= 1.02, name
        assert up >= 0.93, name
        assert by == "relay" or up <= 1.02, name  # an interface before the relay counts what the relay may drop


@pytest.mark.parametrize("queue_bytes", [30_000, 300_000])
@pytest.mark.parametrize("by", SHAPERS)
def test_senders_to_one_host_share_its_wire_and_overflow_its_queue(tmp_path: Path, by: str, queue_bytes: int) -> None:
    names, rate_bps = [f"e{i}" for i in range(4)], 20e6
    with star(tmp_path, {"data": {name: WireSpec(rate_bps, queue_bytes=queue_bytes, by=by) for name in names}}) as one:  # type: ignore[arg-type]
        for i, sender in enumerate(names[1:]):
            tcp(one, sender, "e0", 5000 + i)
        wait_for_bytes(one, "e0", 1_000_000)
        found = shares(one, names, rate_bps)
        wires = one.wires["data"]
        sent = {name: wires[name].sent() for name in names}
        dropped = wires["e0"].report().drops["queue"] if by == "relay" else sent["e0"][1].drops
    assert 0.95 <= max(down for down, _ in found["e0"]) <= 1.02
    sums = {name: sum(up for _, up in found[name]) / WINDOWS for name in names[1:]}
    assert all(0.03 <= share <= 0.9 for share in sums.values()), sums
    assert (queue_bytes > 30_000 or dropped > 0) and dropped < 0.2 * sum(sent[name][0].packets for name in names[1:])
    assert by == "kernel" or all(end.drops == 0 for ends in sent.values() for end in ends), "nothing is lost before the relay's count"


@pytest.mark.parametrize("by", SHAPERS)
def test_a_large_packet_of_the_kernel_is_lost_in_part_only(tmp_path: Path, by: str, udp_socket: Callable[..., socket.socket]) -> None:
    """40 datagrams that cross the sender's kernel as one packet of 59 kB meet a queue of 30 kB: what fits stays, the rest is counted."""
    size_bytes, count_sent = MTU_BYTES - 28, 40
    spec = WireSpec(1e6, queue_bytes=30_000, by=by)  # type: ignore[arg-type]
    with star(tmp_path, {"data": {"e0": UNSHAPED, "e1": spec}}) as one:
        sender, receiver = (udp_socket(one.hosts[name].pid, one.ip("data", name), 6000) for name in ("e0", "e1"))
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size_bytes)
        sender.sendto(bytes(count_sent * size_bytes), receiver.getsockname())
        receiver.settimeout(1.0)
        received = 0
        with suppress(TimeoutError):
            while receiver.recv(2 * MTU_BYTES):
                received += 1
        wire = one.wires["data"]["e1"]
        dropped = wire.report().drops["queue"] if by == "relay" else wire.sent()[1].drops
        assert one.wires["data"]["e0"].sent()[0].packets == 1, "the kernel segmented it beforehand, which proves nothing"
    assert received + dropped == count_sent
    assert 17 <= received <= 25


def test_networks_are_apart_and_an_unshaped_one_is_fast(tmp_path: Path) -> None:
    slow = WireSpec(1e6)
    with star(tmp_path, {"data": {"e0": slow, "e1": slow}, "control": {"e0": UNSHAPED, "e1": UNSHAPED, "driver": UNSHAPED}}) as one:
        with inside(one.hosts["driver"].pid):
            there = subprocess.run(["ping", "-c", "1", one.ip("control", "e1")], capture_output=True, check=False).returncode
            apart = subprocess.run(["ping", "-c", "1", "-W", "1", one.ip("data", "e1")], capture_output=True, check=False).returncode
        tcp_over_control(one)
        assert (there, apart) == (0, 2), "no way at all from one network to the other"
        up, down = one.wires["control"]["e1"].sent()
        assert down.size_bytes >= 20_000_000 and up.packets > 0  # 160 s at the other network's rate
        assert one.wires["data"]["e1"].sent()[1].packets == 0


def tcp_over_control(one: Star) -> None:
    """20 MB from the driver to e1."""
    receive = "import socket, sys\nwith socket.create_server((sys.argv[1], 5000)) as s:\n print(flush=True)\n c = s.accept()[0]\n"
    receive += " n = 0\n while data := c.recv(2**20):\n  n += len(data)\nprint(n)"
    send = "import socket, sys\nwith socket.create_connection((sys.argv[1], 5000)) as s:\n s.sendall(bytes(20_000_000))"
    sink = one.popen("e1", [sys.executable, "-c", receive, one.ip("control", "e1")], stdout=subprocess.PIPE)
    assert sink.stdout
    sink.stdout.readline()
    assert one.popen("driver", [sys.executable, "-c", send, one.ip("control", "e1")]).wait() == 0
    assert sink.stdout.read() == b"20000000\n"


@pytest.mark.parametrize(
    ("by", "command", "said"),
    [
        ("kernel", "tc qdisc change dev e0-eth0 root tbf rate 5mbit burst 5000 limit 300000", "tbf rate is 625000, wanted 2523333"),
        ("kernel", "tc qdisc del dev e0-eth0 root", "qdisc is noqueue, wanted tbf"),
        pytest.param("relay", "tc qdisc replace dev e0-eth0 root pfifo", "qdisc is pfifo, wanted noqueue", marks=needs_c),
        pytest.param("relay", "ip link set dev e0-eth0 txqueuelen 10", "ring is 10, wanted 4000", marks=needs_c),
    ],
)
def test_a_change_behind_our_back_is_read_back(tmp_path: Path, by: str, command: str, said: str) -> None:
    spec = WireSpec(20e6, by=by)  # type: ignore[arg-type]
    with star(tmp_path, {"data": {"e0": spec, "e1": spec}}) as one:
        for wire in one.wires["data"].values():
            wire.check()
        assert one.popen("e0", command.split()).wait() == 0
        with pytest.raises(TestbedError, match=f"wire of host e0, interface e0-eth0: {said}"):
            one.wires["data"]["e0"].check()
        one.wires["data"]["e1"].check()


@pytest.mark.parametrize("spec", [UNSHAPED, WireSpec(30e6), pytest.param(WireSpec(30e6, delay_s=0.02, by="relay"), marks=needs_c)])
def test_a_networks_control_link_is_what_is_asked_for(tmp_path: Path, spec: WireSpec) -> None:
    with run_lock(state_dir=tmp_path) as run, Network(1, PathSpec(rtt_s=0.01), "cubic", run, control=spec) as net:
        lane = net.lanes[0]
        ping = lane.popen_client(["ping", "-c", "3", "-i", "0.1", lane.controller_ip], stdout=subprocess.PIPE)
        output = ping.communicate()[0].decode()
        assert ping.returncode == 0
        assert float(output.rpartition("= ")[2].split("/")[0]) >= 2e3 * spec.delay_s
        assert ("control" in net.facts) == (spec != UNSHAPED)


@needs_c
def test_a_wire_follows_a_trace_both_ways_and_tells_what_it_did(tmp_path: Path) -> None:
    spec = WireSpec(40e6, by="relay")
    with star(tmp_path, {"data": {"e0": spec, "e1": spec}}) as one:
        wires = one.wires["data"]
        wires["e0"].load(RateTrace("steps", (0.0, 1.0, 2.0), (2e6, 20e6)), "t0 e0")
        wires["e1"].load(RateTrace("flat", (0.0, 10.0), (30e6,)), "t0 e1")
        for wire in wires.values():
            wire.start()
        tcp(one, "e0", "e1", 5001)
        time.sleep(2.1)
        sent = wires["e0"].report()
        by_second = [sum(row.delivered_bytes for row in sent.windows if row.direction == "down" and int(row.start_s) == s) for s in (0, 1)]
        assert sent.windows[0].trial_id == "t0 e0" and sent.trace_wraps >= 1
        assert by_second[0] <= 1.05 * 2e6 / 8 and by_second[1] > 3 * by_second[0]
    with pytest.raises(UserError, match="neither trace nor report"), star(tmp_path, {"data": {"e0": UNSHAPED, "e1": UNSHAPED}}) as one:
        one.wires["data"]["e0"].start()


def test_a_wire_that_is_cut_loses_all_until_it_is_mended(tmp_path: Path) -> None:
    with star(tmp_path, {"data": {"e0": WireSpec(20e6), "e1": WireSpec(20e6)}}) as one:
        ping = ["ping", "-c", "1", "-W", "1", one.ip("data", "e1")]
        wire = one.wires["data"]["e0"]
        assert one.popen("e0", ping, stdout=subprocess.DEVNULL).wait() == 0
        wire.cut()
        assert one.popen("e0", ping, stdout=subprocess.DEVNULL).wait() == 1
        wire.mend()
        assert one.popen("e0", ping, stdout=subprocess.DEVNULL).wait() == 0


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of all that the test starts from now on."""
    name, value = "NETLLM_TEST_MARK", str(uuid.uuid4())
    monkeypatch.setenv(name, value)
    return f"{name}={value}"


def started(mark: str) -> dict[int, str]:
    """Of the test, but not the test itself."""
    return {pid: command for pid, command in descendants(mark).items() if pid != os.getpid()}


@pytest.mark.parametrize("by", SHAPERS)
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, by: str) -> None:
    before, shape, shaped = interfaces(), Wire.shape, []

    def fail(wire: Wire) -> None:
        shape(wire)
        shaped.append(wire)
        if len(shaped) == 3:
            assert len(started(mark)) >= 5
            raise KeyboardInterrupt

    monkeypatch.setattr(Wire, "shape", fail)
    spec = WireSpec(20e6, by=by)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt), star(tmp_path, {"data": {f"e{i}": spec for i in range(4)}}):
        pass
    assert started(mark) == {} and interfaces() <= before
    assert clean(tmp_path).removed == []


def test_without_the_relay_in_c_a_wire_through_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setattr("testbed.setup.native.built", lambda: None)
    with pytest.raises(UserError, match="need the relay in C") as refused, star(tmp_path, {"data": {"e0": WireSpec(1e6, by="relay")}}):
        pass
    assert str(refused.value) == NO_OFFLOAD
    assert started(mark) == {}


def test_a_kernel_that_cannot_pace_is_a_users_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.netns import wires

    wires._require_tbf.cache_clear()
    monkeypatch.setattr(wires, "tried", lambda command: False)
    with pytest.raises(UserError, match='no tc or no sch_tbf; by="relay" can'), star(tmp_path, {"data": {"e0": WireSpec(1e6)}}):
        pass


FIREWALLED = """
import sys
from pathlib import Path
from testbed.netns.owned import run_lock
from testbed.star import Star
from testbed.netns.wires import WireSpec
with run_lock(state_dir=Path(sys.argv[1])) as run, Star({"data": {f"e{i}": WireSpec(20e6) for i in range(2)}}, run, "reno") as one:
    sys.exit(one.popen("e0", ["ping", "-c", "1", "-W", "2", one.ip("data", "e1")]).wait())
"""


def test_a_firewall_of_the_machine_that_forwards_nothing_is_no_obstacle(tmp_path: Path) -> None:
    """As Docker sets it; tried in a namespace that stands for the machine."""
    firewall = "iptables -P FORWARD DROP 2>/dev/null || exit 77\n"
    inner = [sys.executable, "-c", FIREWALLED, str(tmp_path)]
    command = ["unshare", "--net", "sh", "-c", f'{firewall}exec "$@"', "sh", *inner]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("no iptables here")
    assert done.returncode == 0, done.stderr
