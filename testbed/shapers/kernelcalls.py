"""The few Linux calls that Python lacks: real-time set-up of a process, TAP devices, network namespaces."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_TIMERSLACK = 29
MCL_CURRENT, MCL_FUTURE = 1, 2
CLONE_NEWNET = 0x4000_0000
TUNSETIFF = 0x4004_54CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_realtime(priority: int) -> list[str]:
    """SCHED_FIFO (not inherited by children), memory locked, no timer slack. Returns a sentence for each thing the kernel refused."""
    problems = []
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        problems.append(f"SCHED_FIFO refused: {error.strerror}")
    try:
        _check(_libc.mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall")
    except OSError as error:
        problems.append(f"mlockall refused: {error.strerror}")
    _libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    return problems


def open_tap(pid: int, interface: str) -> int:
    """Make TAP device `interface` in the network namespace of process `pid`; it lives as long as the descriptor returned (non-blocking)."""
    with inside(pid):
        return _create_tap(interface)


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """Within, what this thread makes belongs to the network namespace of process `pid`. OSError when that can't be entered."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(f"/proc/{pid}/ns/net", "rb") as there:
        _check(_libc.setns(there.fileno(), CLONE_NEWNET), f"setns {there.name}")
        try:
            yield
        finally:
            _check(_libc.setns(own.fileno(), CLONE_NEWNET), "setns back")


def _create_tap(interface: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI))
    except OSError:
        os.close(tap)
        raise
    return tap


def dropped_by_interface(pid: int, interface: str) -> int:
    """Packets that `interface` in the network namespace of `pid` has dropped or failed on, either way, since it was made."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            numbers = [int(number) for number in counters.split()]
            return sum(numbers[i] for i in (2, 3, 4, 10, 11, 12))  # receive errs, drop, fifo; transmit errs, drop, fifo
    raise FileNotFoundError(f"no interface {interface} in the network namespace of process {pid}")
