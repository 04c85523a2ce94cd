"""The relay in C, with and without sanitisers, between real TAP devices: odd frames, floods, vanished hosts, its testbed's death, GSO."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import inside

from testbed.setup import native
from testbed.shapers import messages
from testbed.shapers.kernelcalls import dropped_by_interface
from testbed.shapers.messages import Attach, Course, Load, Request, Result, Stop
from testbed.units import ns_from_s

pytestmark = [pytest.mark.emulation, pytest.mark.skipif(not native.shutil.which(native.COMPILER), reason="no C compiler")]

BUILDS = {"normal": (), "sanitised": native.SANITISERS}
SECOND = ns_from_s(1)
FAST = Course(times=(0, SECOND), rates=(10**13,), mean_rate=10**13)
"""10 Gbit/s: the queue never fills."""
HEADER = bytes.fromhex("024e4c000002") + bytes.fromhex("024e4c000001")
IPS = ("10.99.0.1", "10.99.0.2")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each build, made once."""
    folder = tmp_path_factory.mktemp("relay")
    for name, extra in BUILDS.items():
        subprocess.run(native.command(native.CHECKOUT, folder / name, extra), check=True)
    return {name: folder / name for name in BUILDS}


class Host:
    """A network namespace, kept by a process that sleeps in it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo made; exec sleep 600"], stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline()
        self.pid = self.process.pid

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in it, which must succeed."""
        return subprocess.run(["nsenter", "-t", str(self.pid), "-n", *command], check=True, capture_output=True, text=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class Rig:
    """A relay of our own with lanes between hosts of our own."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder, self.hosts, self.interfaces = folder, [], []  # type: ignore[var-annotated]
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        with theirs, open(folder / "stderr", "wb") as errors:
            argv = [program, str(os.getpid()), str(theirs.fileno())]
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=errors)
        self.ready = self.answer()

    def answer(self) -> tuple[int, str]:
        data = self.control.recv(messages.MAX_MESSAGE_BYTES)
        return messages.ANSWER.unpack_from(data)[0], data[messages.ANSWER.size :].decode()

    def ask(self, request: Request | bytes, *descriptors: int) -> tuple[int, str]:
        datagram = request if isinstance(request, bytes) else request.encode()
        socket.send_fds(self.control, [datagram], descriptors)
        return self.answer()

    def done(self, request: Request, *descriptors: int) -> None:
        assert self.ask(request, *descriptors) == (messages.DONE, "")

    def attach(self, lane: int = 0, delay_ns: int = 0, queue_bytes: int = 10**8, offload: bool = False) -> tuple[Host, Host]:
        """Two fresh hosts, and a lane between them."""
        server, client = Host(), Host()
        self.hosts += [server, client]
        self.done(self.request(lane, server, client, delay_ns, queue_bytes, offload))
        for host, interface, ip in ((server, "srv", IPS[0]), (client, "cli", IPS[1])):
            host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            host.run("ip", "address", "add", f"{ip}/24", "dev", interface)
            host.run("ip", "link", "set", "dev", interface, "up")
        return server, client

    def request(self, lane: int, server: Host, client: Host, delay_ns: int, queue_bytes: int, offload: bool) -> Attach:
        return Attach(
            lane=lane,
            server_pid=server.pid,
            client_pid=client.pid,
            delay_ns=delay_ns,
            queue_bytes=queue_bytes,
            queue_packets=0,
            codel_target_ns=0,
            codel_interval_ns=0,
            offload=offload,
            server_interface="srv",
            client_interface="cli",
            start_path=str(self.start_path(lane)),
        )

    def start_path(self, lane: int) -> Path:
        return self.folder / f"lane{lane}.sock"

    def load(self, down: Course = FAST, up: Course = FAST, lane: int = 0) -> None:
        request = Load(lane=lane, offset_ns=0, down=down, up=up)
        with memory(request.numbers()) as descriptor:
            self.done(request, descriptor)

    def start(self, lane: int = 0) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as starter:
            starter.sendto(b"start", str(self.start_path(lane)))

    def stop(self, lane: int = 0) -> Result:
        with memory(b"") as descriptor:
            self.done(Stop(lane=lane), descriptor)
            return Result.decode(os.pread(descriptor, 2**24, 0))

    def ticks(self) -> int:
        """Processor time of the relay, in 10 ms."""
        return sum(int(word) for word in Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13])

    def close(self) -> None:
        """The relay ends by itself, well, and has nothing to complain about."""
        self.control.close()
        try:
            assert self.process.wait(timeout=20) == 0
            assert (self.folder / "stderr").read_text() == ""
        finally:
            self.process.kill()
            self.process.wait()
            for host in self.hosts:
                host.kill()


class memory:
    """A file in memory that holds `data`; its descriptor."""

    def __init__(self, data: bytes) -> None:
        self.descriptor = os.memfd_create("test")
        os.write(self.descriptor, data)

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


@pytest.fixture(params=BUILDS)
def rig(request: pytest.FixtureRequest, programs: dict[str, Path], tmp_path: Path) -> Iterator[Rig]:
    one = Rig(programs[request.param], tmp_path)
    yield one
    one.close()


def frame_sockets(server: Host, client: Host) -> tuple[socket.socket, socket.socket]:
    """One that puts frames on the server's interface, one that gets what comes out at the client's."""
    with inside(server.pid):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind(("srv", 0))
    with inside(client.pid):
        into = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        into.bind(("cli", 3))
    into.setsockopt(socket.SOL_SOCKET, 33, 2**24)  # SO_RCVBUFFORCE
    into.settimeout(5)
    return out, into


def received(into: socket.socket, count: int) -> list[bytes]:
    got: list[bytes] = []
    while len(got) < count:
        data, (_, _, _, kind, _) = into.recvfrom(70_000)
        if kind != socket.PACKET_OUTGOING:
            got.append(data)
    return got


def conserved(counters: messages.Counters) -> bool:
    return counters.packets_in == counters.packets_out + counters.inside + sum(counters.drops.values())


def test_it_says_what_it_was_refused_and_is_real_time_where_it_may(rig):
    kind, problems = rig.ready
    assert kind == messages.READY
    if not problems:
        assert os.sched_getscheduler(rig.process.pid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        if rig.process.args[0].name == "normal":
            assert "VmLck:\t       0 kB" not in Path(f"/proc/{rig.process.pid}/status").read_text()
        assert Path(f"/proc/{rig.process.pid}/timerslack_ns").read_text() == "0\n", "real-time processes have none"


def test_frames_of_every_length_pass_unchanged_or_are_counted(rig):
    server, client = rig.attach()
    server.run("ip", "link", "set", "dev", "srv", "mtu", "9000")
    client.run("ip", "link", "set", "dev", "cli", "mtu", "9000")
    chance = random.Random(1)
    lengths = [*range(1, 600), *range(1490, 1530), 4000, 9000]
    frames = [(HEADER + b"\x88\xb5" + chance.randbytes(9000))[:length] for length in lengths if length >= 14]
    rig.load()
    rig.start()
    out, into = frame_sockets(server, client)
    good = [frame for frame in frames if 14 < len(frame) <= 1514]
    with out, into:
        for frame in frames:
            out.send(frame)
        assert received(into, len(good)) == good
        out.send(HEADER + b"\x08\x06" + bytes(28))  # ARP: past the queue, uncounted
        received(into, 1)
    down = rig.stop().down
    assert (down.packets_in, down.packets_out, down.drops["malformed"]) == (len(frames), len(good), len(frames) - len(good))
    assert conserved(down)


def test_a_trace_paces_and_its_windows_tell(rig):
    """100 packets of 1250 bytes at 10 Mbit/s take 100 ms: none comes before its time, and the windows add up to them."""
    server, client = rig.attach(delay_ns=SECOND // 50)
    rig.load(Course(times=(0, SECOND), rates=(10**10,), mean_rate=10**10))
    rig.start()
    frame = HEADER + b"\x88\xb5" + bytes(1250)
    out, into = frame_sockets(server, client)
    with out, into:
        sent_ns = time.monotonic_ns()
        for _ in range(100):
            out.send(frame)
        assert received(into, 100) == [frame] * 100
        took_ns = time.monotonic_ns() - sent_ns
        server.run("sleep", "0.1")  # the last window ends
    result = rig.stop()
    assert took_ns > SECOND // 10 + SECOND // 50
    assert result.started_ns is not None and conserved(result.down) and result.down.packets_out == 100
    rows = [result.down.rows[i : i + messages.COLUMNS] for i in range(0, len(result.down.rows), messages.COLUMNS)]
    assert all(row[0] == pytest.approx(125_000) for row in rows)
    assert sum(row[0] - row[1] for row in rows) == pytest.approx(125_000)
    assert sum(result.down.fine_us) + sum(result.down.coarse_us) == 100


def test_a_flood_neither_stops_it_nor_is_lost_uncounted(rig):
    """All that the kernel took from the sender is delivered, dropped by a bound, or counted by an interface."""
    server, client = rig.attach(queue_bytes=30_000)
    rig.load(Course(times=(0, SECOND), rates=(10**10,), mean_rate=10**10))
    with inside(server.pid):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(client.pid):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.run("ping", "-c1", "-W5", IPS[1])  # until ARP has answered the kernel drops packets before any interface
    with sender, receiver:
        receiver.bind((IPS[1], 9))
        for _ in range(30_000):
            sender.sendto(bytes(200), (IPS[1], 9))
        server.run("ping", "-c1", "-W5", IPS[1])
    down = rig.stop().down
    dropped = dropped_by_interface(server.pid, "srv")
    assert down.packets_in + dropped == 30_002
    assert conserved(down) and down.drops["queue"] > 1000


def test_packets_that_pass_cause_no_page_fault(programs, tmp_path):
    """All memory is there and locked before the first of them."""
    rig = Rig(programs["normal"], tmp_path)
    server, _ = rig.attach(delay_ns=SECOND // 25)
    rig.load()
    rig.start()
    if "mlockall" in rig.ready[1]:
        rig.close()
        pytest.skip("memory can't be locked here")

    def faults() -> list[str]:
        return Path(f"/proc/{rig.process.pid}/stat").read_text().rpartition(")")[2].split()[7:11]

    server.run("ping", "-c1", "-W5", IPS[1])
    before = faults()
    with inside(server.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(5000):
            sender.sendto(bytes(1400), (IPS[1], 9))
    server.run("ping", "-c1", "-W5", IPS[1])
    assert faults() == before
    rig.close()


def test_what_an_interface_drops_while_the_relay_is_held_up_is_told_by_the_interface(rig):
    server, _ = rig.attach()
    rig.load()
    with inside(server.pid):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.run("ping", "-c1", "-W5", IPS[1])
    rig.process.send_signal(signal.SIGSTOP)
    with sender:
        for _ in range(6000):
            sender.sendto(bytes(100), (IPS[1], 9))
    rig.process.send_signal(signal.SIGCONT)
    server.run("ping", "-c1", "-W5", IPS[1])
    assert rig.stop().down.packets_in + dropped_by_interface(server.pid, "srv") == 6002
    assert dropped_by_interface(server.pid, "srv") > 1000


def test_a_receiver_that_is_down_is_a_counted_loss(rig):
    server, client = rig.attach()
    server.run("ping", "-c1", "-W5", IPS[1])
    rig.load()
    client.run("ip", "link", "set", "dev", "cli", "down")
    with inside(server.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"x", (IPS[1], 9))
    client.run("ip", "link", "set", "dev", "cli", "up")
    server.run("ping", "-c1", "-W5", IPS[1])
    down = rig.stop().down
    assert down.drops["transmit"] == 3 and conserved(down)


def test_vanished_hosts_harm_no_other_lane_and_leave_it_idle(rig):
    for host in rig.attach(0):
        host.kill()
    server, _ = rig.attach(1)
    server.run("ping", "-c1", "-W5", IPS[1])
    server.run("sleep", "0.5")  # by now the kernel has removed the devices
    before = rig.ticks()
    server.run("sleep", "0.5")
    assert rig.ticks() - before < 10  # of 50
    server.run("ping", "-c1", "-W5", IPS[1])
    rig.load(lane=0)
    assert rig.stop(lane=0).down.packets_out == 0


def test_a_lane_that_can_not_be_made_leaves_nothing(rig):
    server, client = rig.attach(0)
    kind, why = rig.ask(rig.request(0, server, client, 0, 10**6, False))
    assert (kind, why) == (messages.FAILED, "lane 0 is attached already")
    opened = len(os.listdir(f"/proc/{rig.process.pid}/fd"))
    kind, why = rig.ask(rig.request(1, server, client, 0, 10**6, False))
    assert kind == messages.FAILED and "make interface srv: Device or resource busy" in why
    dead = Host()
    dead.kill()
    kind, why = rig.ask(rig.request(1, dead, client, 0, 10**6, False))
    assert kind == messages.FAILED and f"/proc/{dead.pid}/ns/net: No such file" in why
    assert len(os.listdir(f"/proc/{rig.process.pid}/fd")) == opened
    server.run("ping", "-c1", "-W5", IPS[1])


TESTBED = """
import os, socket, subprocess, sys, time
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
kept = [ours.fileno(), theirs.fileno()]  # the relay holds both ends: it doesn't see any closed
subprocess.Popen([sys.argv[1], str(os.getpid()), str(theirs.fileno())], pass_fds=kept)
ours.recv(4096)
print("ready", flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_testbed(programs):
    """Whose end may be a kill -9."""
    with subprocess.Popen([sys.executable, "-c", TESTBED, programs["normal"]], stdout=subprocess.PIPE) as testbed:
        assert testbed.stdout and testbed.stdout.readline() == b"ready\n"
        testbed.kill()
        assert testbed.stdout.read() == b"", "the pipe ends when the last process that holds it does, which is the relay"
    assert subprocess.run([programs["normal"], "1", "0"], check=False).returncode == -signal.SIGKILL, "as the child of somebody else"


EXTREMES = (0, 1, -1, 2, 3, 2**31, 2**53, 2**61, 2**63 - 1, -(2**63))


def edges(chance: random.Random, count: int) -> list[int]:
    return [0, *sorted(chance.randint(1, SECOND) for _ in range(count))]


def some_course(chance: random.Random) -> Course:
    count, segments = chance.randint(1, 5), chance.randint(0, 3)
    rates = [chance.randint(10**8, 10**12) for _ in range(count)] if chance.random() < 0.5 else []
    columns = [[chance.randint(-1, 2**30) for _ in range(segments)], *([chance.randint(0, 2**53) for _ in range(segments)] for _ in "es")]
    delays, enter, stay = columns
    conditions = {"edges": edges(chance, segments), "delays": delays, "enter": enter, "stay": stay} if segments else {}
    return Course(times=edges(chance, count)[0 if rates else 1 :], rates=rates, mean_rate=10**9, seed=chance.getrandbits(64), **conditions)


def odd_load(chance: random.Random) -> tuple[bytes, bytes]:
    """A request to load lane 0 and what goes into its descriptor, more often than not with a number or two that don't belong there."""
    request = Load(lane=0, offset_ns=chance.randint(0, 2**60), down=some_course(chance), up=some_course(chance))
    head, numbers = bytearray(request.encode()), bytearray(request.numbers())
    for _ in range(chance.choice([0, 0, 1, 2])):
        where = chance.choice([head, numbers])
        place = 8 * chance.randrange(where is head, len(where) // 8)
        where[place : place + 8] = chance.choice(EXTREMES).to_bytes(8, "little", signed=True)
    return bytes(head), bytes(numbers[: chance.choice([None] * 9 + [chance.randint(0, len(numbers))])])


def test_odd_loads_and_stops_are_refused_or_served(rig):
    """Thousands of them on a lane that packets pass; what is refused leaves the lane as it was."""
    server, client = rig.attach()
    out, into = frame_sockets(server, client)
    chance, answers, loaded = random.Random(5), {messages.DONE: 0, messages.FAILED: 0}, False
    with out, into, open(os.devnull, "wb") as nothing:
        for i in range(3000):
            datagram, data = odd_load(chance)
            with memory(data) as descriptor:
                kind, why = rig.ask(datagram, *chance.choice([[descriptor]] * 8 + [[], [nothing.fileno()], [out.fileno()]]))
            answers[kind] += 1
            loaded |= kind == messages.DONE
            assert bool(why) == (kind == messages.FAILED)
            out.send(HEADER + b"\x88\xb5" + bytes(i % 1500 + 1))
            if i % 3 == 0:
                rig.start()
            if i % 10 == 0:
                for descriptors in ([], [nothing.fileno()], [into.fileno()]):
                    assert rig.ask(Stop(lane=0), *descriptors)[0] == messages.FAILED
                result = rig.stop()
                assert conserved(result.down) or not loaded, "since the load"
                loaded = False
    assert min(answers.values()) > 300, answers
    with open(__file__, "rb") as unwritable:
        assert rig.ask(Stop(lane=0), unwritable.fileno()) == (messages.FAILED, "the result can't be written: Bad file descriptor")
    rig.load()
    server.run("ping", "-c1", "-W5", IPS[1])


def test_offloaded_frames_cross_whole_and_count_as_their_segments(rig):
    server, client = rig.attach(offload=True, delay_ns=SECOND // 1000)
    rig.load()
    rig.start()
    size, mss = 3_000_000, 1448
    with inside(client.pid):
        listener = socket.create_server((IPS[1], 7))
    with inside(server.pid):
        sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, sender:
        sender.connect((IPS[1], 7))
        receiver, _ = listener.accept()
        data = random.Random(2).randbytes(size)
        writer = threading.Thread(target=sender.sendall, args=(data,))
        writer.start()
        with receiver:
            got = b""
            while len(got) < size:
                got += receiver.recv(2**20)
        writer.join()
    assert got == data
    server.run("sleep", "0.1")  # the last window ends
    down = rig.stop().down
    assert conserved(down) and down.drops["transmit"] == 0
    assert down.packets_out < size / mss / 2, "whole, not in segments"
    columns = messages.COLUMNS
    served = sum(down.rows[i] - down.rows[i + 1] for i in range(0, len(down.rows), columns))
    assert size * (1 + 52 / mss) == pytest.approx(served, rel=0.01), "with 52 bytes of headers on each segment"


def test_odd_virtio_headers_are_passed_or_counted(rig):
    """A packet socket can put any header before a frame; the relay reads some of it."""
    server, client = rig.attach(offload=True)
    rig.load()
    with inside(server.pid):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        out.bind(("srv", 0))
    chance, sent = random.Random(3), 0
    with out:
        for _ in range(3000):
            length = chance.randint(14, 3000)
            head = struct.pack(
                "<BBHHHH", chance.choice([0, 1, 1, 2]), chance.choice([0, 1, 4, 3]), *(chance.randint(0, 1600) for _ in range(4))
            )
            ip = b"\x45\x00" + struct.pack(">H", length) + chance.randbytes(5) + chance.choice([b"\x06", b"\x11"])
            with suppress(OSError):  # the kernel refuses most
                out.send(head + HEADER + b"\x08\x00" + (ip + chance.randbytes(length))[:length])
                sent += 1
    server.run("ping", "-c1", "-W5", IPS[1])
    down = rig.stop().down
    assert sent > 50 and conserved(down)
    assert client.process.poll() is None
