"""Networks: what the hosts get, and that all of it is gone afterwards, however the run ended, and nothing else is."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FOREIGN, descendants, interfaces, namespaces, network
from quiet import in_real_time

from testbed.errors import UserError
from testbed.host import in_virtual_machine
from testbed.link import PathSpec
from testbed.netns import hosts
from testbed.netns.owned import Run, clean, run_lock
from testbed.network import ALLOWED, Network
from testbed.setup import native

pytestmark = pytest.mark.emulation

CHILD = """
import subprocess, sys, time
from pathlib import Path
from testbed.link import PathSpec
from testbed.network import Network
from testbed.netns.owned import run_lock
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
with run_lock("child", Path(sys.argv[1])) as run, Network(2, PathSpec(), "cubic", run) as net:
    net.lanes[0].popen_server(["sleep", "1000"], **quiet)
    net.lanes[1].popen_client(["sh", "-c", "setsid sleep 1001 & sleep 1002"], **quiet)  # a grandchild that leaves the session
    net.popen_controller(["sleep", "1003"], user=(65534, 65534), **quiet)
    net.lanes[0].popen_server(["sh", "-c", "trap '' TERM; sleep 1004 & sleep 1005"], **quiet)  # deaf to SIGTERM
    time.sleep(0.3)
    print("up", flush=True)
    how = sys.stdin.readline().strip()
    if how == "raise":
        raise RuntimeError("as asked")
    if how == "wait":
        time.sleep(1000)
"""


@pytest.fixture
def foreign() -> Iterator[None]:
    """A namespace, interfaces and a process that are not ours and look as if they were; they have to survive the test."""
    names = [f"server0-eth{os.getpid() % 1000}", f"client0-eth{os.getpid() % 1000}"]
    space = f"netllm-server0-{os.getpid()}"
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True)
    for name in names:
        subprocess.run(["ip", "link", "set", name, "alias", FOREIGN], check=True)
    subprocess.run(["ip", "netns", "add", space], check=True)
    process = subprocess.Popen(["bash", "-c", "exec -a mininet:server0 sleep 900"])
    in_space = subprocess.Popen(["ip", "netns", "exec", space, "bash", "-c", "exec -a testbed.shapers.relay sleep 900"])
    try:
        yield
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        assert all(f"{name}@" in links for name in names)
        assert space in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert process.poll() is None and in_space.poll() is None
    finally:
        for one in (process, in_space):
            one.kill()
            one.wait()
        subprocess.run(["ip", "link", "delete", names[0]], check=False)
        subprocess.run(["ip", "netns", "delete", space], check=False)


class Child:
    """A testbed in a process of its own; all that it starts inherits a mark, so that runs of others don't confuse the count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"NETLLM_TEST_MARK={uuid.uuid4()}"
        self._interfaces = interfaces()
        environment = dict([*os.environ.items(), self.mark.split("=")])
        how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        self.process = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment, **how)

    def wait_up(self) -> None:
        """Until the network is there."""
        assert self.process.stdout and self.process.stderr
        assert self.process.stdout.readline() == "up\n", self.process.stderr.read()

    def left(self, within_s: float = 3.0) -> tuple[set[str], set[str]]:
        """Command lines and new interfaces that are still there after `within_s`: the kernel takes a moment to bury the dead."""
        deadline = time.monotonic() + within_s
        while True:
            found = {command for pid, command in descendants(self.mark).items() if pid != self.process.pid}, interfaces() - self._interfaces
            if not any(found) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, remove what is left of it."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        clean(self.folder)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """On its way up."""
    one = Child(tmp_path)
    yield one
    one.close()


NOTHING: tuple[set[str], set[str]] = (set(), set())


def test_what_is_up_differs_from_nothing(child: Child) -> None:
    """Else the other tests would prove nothing. The root namespace gets no interface even while the network is up."""
    child.wait_up()
    commands, links = child.left(within_s=0)
    assert not links
    relays = [command for command in commands if "testbed.shapers.relay" in command or "netllm-relay" in command]  # in Python, or in C
    assert sum("mininet:" in command for command in commands) == 5 and len(relays) == 1
    assert {f"sleep {n}" for n in range(1000, 1006)} <= commands
    assert len(namespaces(descendants(child.mark))) == 6  # five hosts' and the root's


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 1)])
def test_all_is_undone_when_the_run_ends(child: Child, tmp_path: Path, how: str, code: int) -> None:
    child.wait_up()
    _, errors = child.process.communicate(how + "\n", timeout=10)
    assert child.process.returncode == code and ("as asked" in errors) == bool(code)
    assert child.left() == NOTHING
    assert clean(tmp_path).removed == []


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_all_is_undone_upon_a_signal(child: Child, tmp_path: Path, number: int, code: int) -> None:
    child.wait_up()
    assert child.process.stdin
    child.process.stdin.write("wait\n")
    child.process.stdin.flush()
    time.sleep(0.1)
    os.kill(child.process.pid, number)
    time.sleep(0.2)
    os.kill(child.process.pid, number)  # an impatient user
    assert child.process.wait(timeout=10) == code
    assert child.left() == NOTHING
    assert clean(tmp_path).removed == []


@pytest.mark.usefixtures("foreign")
def test_after_a_kill_9_children_die_and_clean_removes_the_rest(child: Child, tmp_path: Path) -> None:
    child.wait_up()
    child.kill()
    removed = clean(tmp_path).removed
    assert child.left() == NOTHING
    assert "state of run child" in removed
    assert any("sleep" in one for one in removed)  # a grandchild has no death signal; it's found by its token
    assert clean(tmp_path).removed == [] and [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("foreign")
def test_after_a_kill_9_the_next_run_cleans_up(child: Child, tmp_path: Path) -> None:
    child.wait_up()
    child.kill()
    with run_lock(state_dir=tmp_path) as run:
        assert "state of run child" in run.removed
        assert child.left() == NOTHING


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("after_s", [0.1, 0.25, 0.4, 0.5, 0.6, 0.8])
def test_kill_9_while_it_comes_up(child: Child, tmp_path: Path, after_s: float) -> None:
    time.sleep(after_s)
    child.kill()
    clean(tmp_path)
    assert child.left() == NOTHING


@pytest.mark.skipif(not native.built() or not in_virtual_machine(), reason="no relay in C, or no virtual machine")
def test_a_network_that_keeps_the_cores_awake_lets_them_sleep_afterwards(tmp_path: Path) -> None:
    before = spinners()
    with run_lock("awake", tmp_path) as run, Network(1, PathSpec(), "cubic", run, awake=True) as net:
        assert net.facts["awake"] is True
        deadline = time.monotonic() + 10
        while not spinners() - before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(spinners() - before) == 1
    assert spinners() == before


def test_on_bare_metal_no_core_is_kept_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "in_virtual_machine", lambda: False)
    before = spinners()
    with run_lock("awake", tmp_path) as run, Network(1, PathSpec(), "cubic", run, awake=True) as net:
        assert net.facts["awake"] is False and spinners() == before


def spinners() -> set[int]:
    """Processes of the relay's program that keep cores awake."""
    return {int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and b"--awake" in command_line(Path("/proc", pid, "cmdline"))}


def command_line(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def test_without_clean_only_grandchildren_outlive_a_kill_9(child: Child) -> None:
    """The death signal takes shells, relay and children at once."""
    child.wait_up()
    child.kill()
    assert child.left(within_s=1)[0] == {"sleep 1001", "sleep 1002", "sleep 1004", "sleep 1005"}


def test_a_second_run_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with network(tmp_path) as net:
        for attempt in (lambda: Run("other", tmp_path).__enter__(), lambda: clean(tmp_path)):
            with pytest.raises(UserError, match=f"another run is under way .process {os.getpid()}"):
                attempt()
        assert ping(net) == 0


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of all that this process starts from now on, not in its own."""
    value = str(uuid.uuid4())
    monkeypatch.setenv("NETLLM_TEST_MARK", value)
    return f"NETLLM_TEST_MARK={value}"


def ping(net: Network) -> int:
    lane = net.lanes[0]
    return lane.popen_client(["ping", "-c1", "-W2", lane.server_ip], stdout=subprocess.DEVNULL).wait(timeout=10)


def test_hosts_reach_whom_they_should(tmp_path: Path) -> None:
    with network(tmp_path, 2) as net:
        one, two = net.lanes
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for lane, target, reached in (
            (one, one.server_ip, True),
            (two, two.controller_ip, True),
            (one, two.server_ip, False),
            (one, two.controller_ip, False),
        ):
            code = lane.popen_client(["ping", "-c1", "-W1", target], **quiet).wait(timeout=10)
            assert (code == 0) == reached, target
        assert (one.server.IP(), one.client.IP(), one.client.MAC()) == (one.server_ip, one.client_ip, "02:4e:4c:00:00:02")
        controller = net.popen_controller(["ping", "-c1", "-W2", two.client_control_ip], stdout=subprocess.DEVNULL)
        assert controller.wait(timeout=10) == 0


def test_children_run_where_and_as_whom_they_should(tmp_path: Path) -> None:
    with network(tmp_path) as net:
        control = "/proc/sys/net/ipv4/tcp_congestion_control"
        show = ["sh", "-c", f"id -u; id -G; cat {control}; ps -o pgid= -p $$ | tr -d ' '; echo $$; echo $MARK"]
        pipe = {"stdout": subprocess.PIPE, "env": {"MARK": "here", "PATH": os.environ["PATH"]}}
        as_root = net.lanes[0].popen_server(show, **pipe).communicate()[0].split()
        as_nobody = net.popen_controller(show, user=(65534, 65533), **pipe).communicate()[0].split()
        assert as_root[0] == b"0" and as_nobody[:2] == [b"65534", b"65533"]
        for seen in (as_root, as_nobody):
            assert seen[-4:-3] == [b"cubic"] and seen[-3] == seen[-2] and seen[-1] == b"here"


@pytest.mark.parametrize("name", ["reno", "bbr"])
def test_congestion_control_is_set_in_each_host_and_the_machine_keeps_its_own(tmp_path: Path, name: str) -> None:
    if name not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
        pytest.skip(f"this kernel has no {name}")
    before = ALLOWED.read_text()
    with network(tmp_path, congestion_control=name) as net:
        assert net.facts["tcp_congestion_control"] == name and net.facts["tcp_slow_start_after_idle"] == "1"
        assert ALLOWED.read_text() == before
    assert ALLOWED.read_text() == before


@pytest.mark.parametrize("name", ["cubik", "Cubic; reboot", ""])
def test_an_unknown_congestion_control_is_refused_with_those_there_are(tmp_path: Path, name: str, mark: str) -> None:
    with pytest.raises(UserError, match="wanted one of .*cubic.*"), network(tmp_path, congestion_control=name):
        pass
    assert descendants(mark) == {}


@pytest.mark.parametrize("lanes", [0, -1, 65])
def test_a_number_of_lanes_that_makes_no_sense_is_refused(tmp_path: Path, lanes: int) -> None:
    with pytest.raises(UserError, match="wanted 1 to 64"), network(tmp_path, lanes):
        pass


def test_a_failure_half_way_undoes_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    def fail(*_: object) -> None:
        assert len(descendants(mark)) > 5
        raise KeyboardInterrupt

    monkeypatch.setattr("testbed.network.Wires.join", fail)
    with pytest.raises(KeyboardInterrupt), network(tmp_path, 2):
        pass
    assert descendants(mark) == {}
    assert clean(tmp_path).removed == []


@pytest.mark.parametrize(("code", "error"), [(1, UserError), (143, SystemExit)])
def test_a_signal_while_hosts_are_made_is_not_taken_for_a_missing_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[BaseException]
) -> None:
    def end(*_: object, **__: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("testbed.netns.hosts._host_class", lambda: end)
    with pytest.raises(error), network(tmp_path):
        pass


def test_two_networks_of_two_owners_do_not_meet(tmp_path: Path) -> None:
    """Names and addresses are the same in both; namespaces keep them apart."""
    with network(tmp_path / "a") as one, network(tmp_path / "b", path=PathSpec(rtt_s=0.01)) as two:
        assert ping(one) == ping(two) == 0


@in_real_time
def test_loading_one_lane_does_not_delay_another(tmp_path: Path) -> None:
    """Long traces go to the relay, and long reports come from it, while other lanes carry packets."""
    from traces.trace import OpportunityTrace

    long_trace = OpportunityTrace("long", tuple(i / 1000 for i in range(1, 300_000)))
    with network(tmp_path, 2, PathSpec(rtt_s=0.01)) as net:
        one, two = net.lanes
        one.link.load(long_trace, 0, "steady")
        flow = one.popen_client(["ping", "-q", "-i", "0.002", "-w", "2", one.server_ip], stdout=subprocess.PIPE)
        for i in range(5):
            two.link.load(long_trace, 0, f"t{i}")
            two.link.stop()
        flow.communicate()
        report = one.link.stop()
    assert report.packets_out > 100
    assert report.lateness_p99_s < 10e-3 or not report.realtime  # generous: the kernel buries the last test's namespaces meanwhile
