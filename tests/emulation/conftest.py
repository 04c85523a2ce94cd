"""Networks for tests, each with its own state folder (so that a run of somebody else is no obstacle), and sockets inside hosts."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from quiet import begun, witnesses  # noqa: F401 (fixtures for all tests here)

from testbed.link import PathSpec
from testbed.netns.owned import run_lock
from testbed.network import Network

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """Within, sockets made by this thread belong to the network namespace of `pid`."""
    with open("/proc/self/ns/net") as own, open(f"/proc/{pid}/ns/net") as there:
        assert _libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(own.fileno(), 0) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def network(folder: Path, lanes: int = 1, path: PathSpec | None = None, congestion_control: str = "cubic") -> Iterator[Network]:
    """A network whose state lies in `folder`."""
    with run_lock(state_dir=folder) as run, Network(lanes, path or PathSpec(), congestion_control, run) as net:
        yield net


@pytest.fixture
def udp_socket() -> Iterator[Callable[[int, str, int], socket.socket]]:
    """Makes UDP sockets in the namespace of a process, bound to an address; closed at the end."""
    made: list[socket.socket] = []

    def make(pid: int, ip: str, port: int) -> socket.socket:
        with inside(pid):
            made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made[-1].setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**23)
        made[-1].setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2**23)
        made[-1].bind((ip, port))
        made[-1].settimeout(5)
        return made[-1]

    yield make
    for one in made:
        one.close()


FOREIGN = "netllm-testbed of somebody else"
"""Alias of interfaces that tests make to see them survive."""


def interfaces() -> set[str]:
    """Of the root network namespace, without those that tests (perhaps of another suite at the same time) made as foreign ones."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {line.split(": ")[1] for line in links.splitlines() if FOREIGN not in line}


def descendants(mark: str) -> dict[int, str]:
    """Processes (pid to command line) that inherited an environment with `mark` in it: all that a marked process started, at any depth."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
    return found


def namespaces(pids: Iterable[int]) -> set[str]:
    """Network namespaces of processes."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    return found


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A trace that goes up and down between 4 and 8 Mbit/s."""
    path = tmp_path / "steps.txt"
    path.write_text("".join(f"{second} {4 + 4 * (second // 20 % 2)}\n" for second in range(0, 201, 5)))
    return path


def start_schedules(tmp_path: Path, trace: Path, *options: str) -> "subprocess.Popen[str]":
    """`run.py --task cjs` in a process of its own; it leaves its results in `tmp_path / "results"`."""
    command = [sys.executable, "-m", "testbed.cli", "--task", "cjs", "--trace", str(trace), "--out", str(tmp_path / "results"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def schedules_begun(tmp_path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a trial is on its way: it has left rows."""
    file = tmp_path / "results" / "latest" / "events.jsonl"
    while not (file.exists() and '"schedule_decision"' in file.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
