"""The relay in C against the Python one: the model to the last bit, on its own and under sanitisers; and what it says to nonsense."""

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.setup import native
from testbed.shapers import messages
from testbed.shapers.bottleneck import MAX_INSIDE_BYTES, Bottleneck
from testbed.shapers.codel import CoDel
from testbed.shapers.lane import Half
from testbed.shapers.messages import Attach, Course, Load, Stop
from testbed.units import ns_from_s

pytestmark = pytest.mark.skipif(not native.shutil.which(native.COMPILER), reason="no C compiler")

SECOND = ns_from_s(1)
MBPS = 10**9  # in 1e-3 bit/s
BUILDS = {"normal": native.STRICT, "sanitised": (*native.STRICT, *native.SANITISERS)}


@pytest.fixture(scope="module", params=BUILDS)
def relay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built afresh, all warnings being errors."""
    program = tmp_path_factory.mktemp("relay") / request.param
    subprocess.run(native.command(native.CHECKOUT, program, BUILDS[request.param]), check=True)
    return program


# The model


@dataclass(frozen=True)
class Limits:
    """What the bottleneck is made of."""

    delay_ns: int = 0
    queue_bytes: int = 10_000
    queue_packets: int = 0
    codel_target_ns: int = 0
    codel_interval_ns: int = 0


Event = tuple[int, str, int]
"""When, what (see `native/model.h`), size."""


def play_in_c(relay: Path, path: Limits, course: Course, offset_ns: int, events: list[Event]) -> list[tuple[float, ...]]:
    numbers = [path.delay_ns, path.queue_bytes, path.queue_packets, path.codel_target_ns, path.codel_interval_ns]
    numbers += [*messages.DIRECTION.unpack(course.head()), offset_ns, *course.numbers]
    lines = [f"{what} {now_ns}{f' {size}' if what == 'a' else ''}" for now_ns, what, size in events]
    text = " ".join(map(str, numbers)) + "\n" + "\n".join(lines)
    done = subprocess.run([relay, "--model"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = []
    for line in done.stdout.splitlines():
        what, *values = line.split()
        told.append((what, *(float.fromhex(value) if what == "window" else int(value) for value in values)))
    return told


def play_in_python(path: Limits, course: Course, offset_ns: int, events: list[Event]) -> list[tuple[float, ...]]:
    codel = CoDel(path.codel_target_ns, path.codel_interval_ns) if path.codel_target_ns else None
    half = Half(-1, -1, Bottleneck(None, path.delay_ns, path.queue_bytes, path.queue_packets, codel))
    model, told, number = half.bottleneck, [], 0
    for now_ns, what, size in events:
        last: list[tuple[float, ...]] = []
        if what == "l":
            half.load(now_ns, course, offset_ns)
        elif what == "s":
            half.start(now_ns)
        elif what == "a":
            half.advance(now_ns)
            model.offer(now_ns, size, number)
            number += 1
        elif what == "t":
            half.advance(now_ns)
            while entry := model.take(now_ns):
                told.append(("packet", entry.payload, entry.begin_ns, entry.departure_ns, entry.due_ns))
                half._lateness.add(now_ns - entry.due_ns)
                if half.windows:
                    half.windows.served(entry, now_ns - entry.due_ns)
        elif what == "e":
            done = half.stop(now_ns)
            columns = messages.COLUMNS
            last = [("window", *done.rows[i : i + columns]) for i in range(0, len(done.rows), columns)]
            last.append(("counters", done.inside, done.wraps, len(done.rows) // columns, done.windows_lost, done.max_late_ns))
        due_ns = -1 if model.due_ns is None else model.due_ns
        lost = (*model.drops.values(), model.dropped_bytes, model.lost_bytes)
        told += [*last, ("state", *lost, model.queue_bytes, model.inside_bytes, due_ns)]
    return told


@st.composite
def ascending(draw: st.DrawFn, count: int) -> list[int]:
    """Edges from 0 on, some of them equal, the last above 0."""
    widths = draw(st.lists(st.one_of(st.integers(0, 3), st.integers(1, SECOND)), min_size=count, max_size=count))
    widths[draw(st.integers(0, count - 1))] += SECOND // 50
    edges = [0]
    for width in widths:
        edges.append(edges[-1] + width)
    return edges


@st.composite
def courses(draw: st.DrawFn) -> Course:
    """Rates, opportunities or none; with conditions or without."""
    kind = draw(st.sampled_from(["rates", "rates", "opportunities", "none"]))
    times, rates = [], []
    if kind == "rates":
        count = draw(st.integers(1, 6))
        times = draw(ascending(count))
        rates = draw(st.lists(st.one_of(st.just(0), st.integers(10**5, 50 * MBPS)), min_size=count, max_size=count))
        widest = max(range(count), key=lambda i: times[i + 1] - times[i])
        rates[widest] = max(rates[widest], MBPS // 10)  # else a lap could carry next to nothing
    elif kind == "opportunities":
        times = sorted(draw(st.lists(st.integers(0, SECOND), min_size=1, max_size=20)))
        times[-1] = max(times[-1], SECOND // 50)
    segments = draw(st.integers(0, 4)) if times else 0
    numbers = st.one_of(st.sampled_from([0, 2**53]), st.integers(0, 2**53))
    columns = [draw(st.lists(values, min_size=segments, max_size=segments)) for values in (st.integers(-1, SECOND // 5), numbers, numbers)]
    return Course(
        times=times,
        rates=rates,
        mean_rate=draw(st.integers(1, 20 * MBPS)) if times else 0,
        edges=draw(ascending(segments)) if segments else [],
        delays=columns[0],
        enter=columns[1],
        stay=columns[2],
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """One trial or two of arrivals in bursts and apart, with deliveries now and then, so that some are late. Long ones show more."""
    chance, now_ns, told = random.Random(draw(st.integers(0, 2**32))), draw(st.integers(1, 2**50)), []
    longest_ns = draw(st.sampled_from([SECOND // 10_000, SECOND // 500, SECOND // 20]))
    for _ in range(draw(st.integers(1, 2))):
        kinds = chance.choices("at", (4, 1), k=draw(st.integers(0, 300)))
        at = chance.randint(0, len(kinds) // 4)
        for what in ["l", *kinds[:at], "s", *kinds[at:], "t", "e"]:
            now_ns += chance.choice([0, chance.randint(0, longest_ns), chance.randint(0, 3 * longest_ns)])
            told.append((now_ns, what, chance.choice([1500, chance.randint(1, 1500)]) if what == "a" else 0))
    return told


paths = st.builds(
    Limits,
    delay_ns=st.integers(0, SECOND),
    queue_bytes=st.integers(1000, 30_000),
    queue_packets=st.integers(0, 12),
    codel_target_ns=st.one_of(st.just(0), st.integers(1, SECOND // 100)),
    codel_interval_ns=st.one_of(st.integers(0, SECOND // 50), st.integers(0, SECOND // 5)),
)


@given(path=paths, course=courses(), offset_ns=st.integers(0, 5 * SECOND), events=events())
def test_the_model_in_c_is_the_model_in_python(relay, path, course, offset_ns, events):
    assert play_in_c(relay, path, course, offset_ns, events) == play_in_python(path, course, offset_ns, events)


def test_codel_drops_alike_under_a_standing_queue(relay):
    """A sender that doesn't slow down: CoDel goes through its control law a hundred times, in C as in Python."""
    path = Limits(queue_bytes=10**6, codel_target_ns=ns_from_s(0.005), codel_interval_ns=ns_from_s(0.1))
    course = Course(times=[0, SECOND], rates=[6 * MBPS], mean_rate=6 * MBPS)
    arrivals = [(i * SECOND // 700, "a", 1500) for i in range(5000)]
    events = sorted([(0, "l", 0), (0, "s", 0), *arrivals, *((t * SECOND // 10, "t", 0) for t in range(1, 90)), (9 * SECOND, "e", 0)])
    events.sort(key=lambda event: (event[0], "lsate".index(event[1])))
    told = play_in_c(relay, path, course, 0, events)
    assert told == play_in_python(path, course, 0, events)
    assert told[-1][1] == 0 and told[-1][2] > 100, "by CoDel, not by the queue's bound"


def test_codel_begins_each_trial_anew(relay):
    """What it had to do against one trial's standing queue is nothing that the next trial should pay for."""
    path = Limits(queue_bytes=10**6, codel_target_ns=ns_from_s(0.005), codel_interval_ns=ns_from_s(0.1))
    course = Course(times=[0, SECOND], rates=[6 * MBPS], mean_rate=6 * MBPS)

    def trial(begin_ns: int) -> list[Event]:
        arrivals = [(begin_ns + i * SECOND // 700, "a", 1500) for i in range(2100)]
        return [(begin_ns, "l", 0), (begin_ns, "s", 0), *arrivals, (begin_ns + 3 * SECOND, "e", 0)]

    told = play_in_c(relay, path, course, 0, [*trial(0), *trial(3 * SECOND)])
    assert told == play_in_python(path, course, 0, [*trial(0), *trial(3 * SECOND)])
    drops = [line[1:6] for line in told if line[0] == "state"]
    assert drops[: len(drops) // 2] == drops[len(drops) // 2 :] and drops[-1][1] > 10


def test_a_packet_in_numbers(relay):
    """1500 bytes at 12 Mbit/s take 1 ms; the second waits for the first; the third finds the queue full."""
    course = Course(times=[0, SECOND], rates=[12 * MBPS], mean_rate=12 * MBPS)
    events = [(0, "l", 0), (0, "s", 0), (0, "a", 1500), (0, "a", 1500), (0, "a", 1500), (50_000_000, "t", 0)]
    told = play_in_c(relay, Limits(delay_ns=40_000_000, queue_bytes=3000), course, 0, events)
    assert [line[1:] for line in told if line[0] == "packet"] == [(0, 0, 10**6, 41 * 10**6), (1, 10**6, 2 * 10**6, 42 * 10**6)]
    assert told[-1][1:5] == (1, 0, 0, 1500)


def test_windows_in_numbers(relay):
    """12 Mbit/s are 150 000 bytes in 100 ms; nothing waits for the first half of a window, then there is more than enough."""
    course = Course(times=[0, SECOND], rates=[12 * MBPS], mean_rate=12 * MBPS)
    arrivals = [(50_000_000, "a", 1500)] * 100
    events = [(0, "l", 0), (0, "s", 0), *arrivals, (2 * 10**8, "t", 0), (2 * 10**8, "e", 0)]
    told = play_in_c(relay, Limits(queue_bytes=10**6), course, 0, events)
    windows = [line[1:] for line in told if line[0] == "window"]
    assert [window[:5] for window in windows] == [(150_000, 75_000, 0, 0, 75_000), (150_000, 75_000, 0, 0, 0)]
    assert windows[0][5] == 75_000, "due by then, but served when the relay woke up at the end"


def test_windows_of_more_than_two_hours(relay):
    """Memory for windows comes in blocks, and ends with the last that is recorded."""
    course = Course(times=[0, 7 * SECOND // 10, SECOND], rates=[3 * MBPS, 0], mean_rate=2 * MBPS)
    times = range(0, 7300 * SECOND, 17 * SECOND + 1)
    arrivals = [event for now_ns in times for event in ((now_ns, "a", 1000), (now_ns + SECOND, "t", 0))]
    events = [(0, "l", 0), (0, "s", 0), *arrivals, (7300 * SECOND, "e", 0)]
    told = play_in_c(relay, Limits(), course, 0, events)
    assert told == play_in_python(Limits(), course, 0, events)
    assert told[-2] == ("counters", 0, 7300, 72_000, 1000, told[-2][-1])


def test_a_short_lap_costs_no_time(relay):
    """A trace of 1 ns, ten seconds after its start; and a packet that takes twelve thousand laps."""
    course = Course(times=[0, 1], rates=[8 * MBPS], mean_rate=8 * MBPS)
    events = [(0, "l", 0), (0, "s", 0), (10 * SECOND, "a", 1000), (10 * SECOND + 10**6, "t", 0)]
    packet, _ = play_in_c(relay, Limits(), course, 0, events)[-2:]
    assert packet == ("packet", 0, 10 * SECOND, 10 * SECOND + 10**6, 10 * SECOND + 10**6)
    slow = Course(times=[0, SECOND], rates=[1000], mean_rate=1000)  # 1 bit/s
    assert play_in_c(relay, Limits(), slow, 0, [(0, "l", 0), (0, "s", 0), (0, "a", 1500)])[-1][-1] == 12_000 * SECOND


def test_what_is_inside_is_bounded(relay):
    path = Limits(delay_ns=SECOND, queue_bytes=10**9)
    events = [(0, "l", 0), *[(0, "a", 1500)] * (MAX_INSIDE_BYTES // 1500 + 5)]
    told = play_in_c(relay, path, Course(), 0, events)
    assert told[-1][1] == 5 and told[-1][7] == MAX_INSIDE_BYTES // 1500 * 1500


@pytest.mark.parametrize(
    ("course", "said"),
    [
        (Course(times=[0, SECOND], rates=[0]), "the trace carries nothing"),
        (Course(times=[0, 0], rates=[5]), "the last edge is 0 ns"),
        (Course(times=[0, 0, 2**59], rates=[5, 0]), "the trace carries nothing"),
        (Course(times=[0, 1, 2**59], rates=[5, 0]), "next to nothing"),
        (Course(times=[0, SECOND, 5], rates=[5, 5]), "edge 2 is 5 ns after 1000000000 ns"),
        (Course(times=[5, SECOND], rates=[5]), "the first edge is 5 ns, wanted 0"),
        (Course(times=[0, SECOND], rates=[-5]), "rate 0 is -5, wanted 0 to"),
        (Course(times=[0, SECOND], rates=[2**62]), "rate 0 is 4611686018427387904, wanted 0 to"),
        (Course(times=[0, SECOND], rates=[5, 5]), "2 edges for 2 rates, wanted one more"),
        (Course(rates=[5]), "1 rates without times"),
        (Course(times=[0]), "the last opportunity is 0 ns"),
        (Course(times=[5, -1]), "opportunity 1 is -1"),
        (Course(times=[9, 2**62]), "opportunity 1 is 4611686018427387904"),
        (Course(times=[9], mean_rate=-1), "a mean rate of -1"),
        (Course(times=[9], edges=[0, 0], delays=[1], enter=[0], stay=[0]), "the last edge of conditions is 0 ns"),
        (Course(times=[9], edges=[0, 9], delays=[-2], enter=[0], stay=[0]), "delay 0 is -2"),
        (Course(times=[9], edges=[0, 9], delays=[2**40], enter=[0], stay=[0]), "delay 0 is 1099511627776"),
        (Course(times=[9], edges=[0, 9], delays=[1], enter=[2**53 + 1], stay=[0]), "loss 0 is 9007199254740993"),
        (Course(times=[9], edges=[0, 9], delays=[1], enter=[0], stay=[-1]), "loss 0 is -1"),
    ],
)
def test_a_trace_that_makes_no_sense_is_refused_in_a_sentence(relay, course, said):
    numbers = [0, 9000, 0, 0, 0, *messages.DIRECTION.unpack(course.head()), 0, *course.numbers]
    done = subprocess.run([relay, "--model"], input=" ".join(map(str, numbers)), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""


# The process


@dataclass
class Process:
    """A relay with nothing to relay."""

    process: "subprocess.Popen[bytes]"
    control: socket.socket

    def answer(self) -> tuple[int, str]:
        data = self.control.recv(messages.MAX_MESSAGE_BYTES)
        return messages.ANSWER.unpack_from(data)[0], data[messages.ANSWER.size :].decode()

    def ask(self, datagram: bytes, *descriptors: int) -> tuple[int, str]:
        socket.send_fds(self.control, [datagram], descriptors)
        return self.answer()


@pytest.fixture
def process(relay: Path) -> Iterator[Process]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    with theirs:
        started = subprocess.Popen([relay, str(os.getpid()), str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    yield Process(started, ours)
    ours.close()
    _, errors = started.communicate(timeout=20)
    assert (started.returncode, errors) == (0, b"")


def test_it_is_ready_and_ends_with_its_socket(process):
    kind, problems = process.answer()
    assert kind == messages.READY
    assert all(" refused: " in problem for problem in problems.splitlines())


ATTACH = Attach(
    lane=1,
    server_pid=2**30,  # no process has that number
    client_pid=2**30,
    delay_ns=0,
    queue_bytes=9000,
    queue_packets=0,
    codel_target_ns=0,
    codel_interval_ns=0,
    offload=False,
    server_interface="srv",
    client_interface="cli",
    start_path="/nonexistent/start",
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "enter the network namespace /proc/1073741824/ns/net: No such file or directory"),
        ({"delay_ns": -1}, "a delay of -1 ns"),
        ({"delay_ns": 2**62}, "a delay of 4611686018427387904 ns"),
        ({"queue_bytes": 0}, "a queue of 0 bytes"),
        ({"queue_packets": -1}, "and -1 packets"),
        ({"codel_target_ns": -5}, "CoDel with -5"),
        ({"codel_interval_ns": 2**40}, "CoDel with 0 and 1099511627776 ns"),
        ({"server_interface": ""}, "the interfaces have no names"),
        ({"client_interface": "x" * 16}, "the interfaces have no names"),
        ({"start_path": "x" * 108}, "the start socket has no path"),
    ],
)
def test_a_lane_that_makes_no_sense_is_refused_in_a_sentence(process, changes, said):
    process.answer()
    kind, why = process.ask(replace(ATTACH, **changes).encode())
    assert kind == messages.FAILED and said in why


def test_requests_that_make_no_sense_are_refused_in_a_sentence(process):
    process.answer()
    load = Load(lane=7, offset_ns=0, down=Course(), up=Course()).encode()
    for datagram, said in (
        (b"x", "a request of 1 bytes, wanted 8"),
        (messages.HEADER.pack(9, 0), "unknown request 9"),
        (ATTACH.encode()[:-1], "a request of 203 bytes, wanted 204"),
        (load + b"x", "a request of 97 bytes, wanted 96"),
        (load, "there is no lane 7"),
        (Stop(lane=2**32 - 1).encode(), "there is no lane 4294967295"),
        (bytes(4096), "unknown request 0"),
    ):
        assert process.ask(datagram) == (messages.FAILED, said)


def test_noise_is_refused_and_its_descriptors_are_closed(process):
    process.answer()
    opened = len(os.listdir(f"/proc/{process.process.pid}/fd"))
    chance = random.Random(4)
    with open(os.devnull) as nothing:
        for _ in range(5000):
            noise = chance.randbytes(chance.choice([1, 7, 8, 96, 204, chance.randint(9, 6000)]))
            datagram = messages.HEADER.pack(chance.randint(1, 3), 0)[: len(noise)] + noise[8:] if chance.random() < 0.7 else noise
            kind, _ = process.ask(datagram, *[nothing.fileno()] * chance.choice([0, 1, 2, 20]))
            assert kind == messages.FAILED
    assert len(os.listdir(f"/proc/{process.process.pid}/fd")) == opened


def test_a_testbed_that_listens_to_no_answer_does_not_stop_it(process):
    process.answer()
    process.control.setblocking(False)
    sent = 0
    while sent < 20_000:
        try:
            process.control.send(b"x")
            sent += 1
        except BlockingIOError:
            process.control.setblocking(True)  # the relay still reads: room comes
            process.control.send(b"x")
            process.control.setblocking(False)


@pytest.mark.parametrize("arguments", [[], ["1"], ["1", "2", "3"], ["x", "0"], ["1", "2x"], ["--modle"]])
def test_it_says_how_it_is_used(relay, arguments):
    done = subprocess.run([relay, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: relay PARENT_PID FD | relay --model | relay --awake\n")


# What keeps the cores awake


def test_each_core_is_kept_awake_by_a_thread_that_gives_way_to_everybody(relay: Path) -> None:
    with subprocess.Popen([relay, "--awake"], start_new_session=True) as process:
        try:
            tasks = Path(f"/proc/{process.pid}/task")
            cores = os.sched_getaffinity(0)
            spinning, deadline = [], time.monotonic() + 20
            while len(spinning) < len(cores):
                assert process.poll() is None and time.monotonic() < deadline
                spinning = [task for task in map(int, os.listdir(tasks)) if os.sched_getscheduler(task) == os.SCHED_IDLE]
            assert sorted(core for task in spinning for core in os.sched_getaffinity(task)) == sorted(cores)
            weight = Path(f"/proc/{process.pid}/autogroup")
            assert not weight.exists() or weight.read_text().endswith("nice 19\n")
        finally:
            process.kill()
