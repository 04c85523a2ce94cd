"""Watches the host while an emulation runs: how busy its cores are, what the hypervisor stole, whether tasks waited for a core.

A link that is late was kept from running by somebody. These samples say whether the host or the relay was to blame. They judge nothing:
the verdict on a trial is the link's own.
"""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.clock import now_s, thread_cpu_s
from testbed.errors import TestbedError
from testbed.records import HostRow
from testbed.units import s_from_ns, s_from_us

PERIOD_S = 0.1
"""That of the links' counters. On a busy machine a sample costs the root process up to 0.2 ms of CPU time, two thousandths of a core."""
MOST_COST_SHARE = 0.005
"""Where a sample costs more (`/proc/stat` has a column for each interrupt), they come so much more rarely."""
PROC = Path("/proc")
_COUNTED = 8
"""Columns of `/proc/stat`'s first line that add up to all time, proc(5): user nice system idle iowait irq softirq steal."""
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
_ENOUGH_BYTES = 512
"""For the first line."""


@dataclass(frozen=True)
class Counters:
    """What the kernel has counted since its start, read at `at_s`."""

    at_s: float
    ticks: tuple[int, ...]
    """Of all cores together, the first `_COUNTED` columns of `/proc/stat`."""
    waited_s: float | None
    """For so long some task has waited for a core; None where `/proc/pressure/cpu` is missing or switched off."""
    relay_ran_s: float | None = None
    relay_waited_s: float | None = None


class Host:
    """The kernel's counters. The files stay open: with cold caches opening them costs three times what reading does."""

    def __init__(self, relay_pid: int | None = None, proc: Path = PROC) -> None:
        self._stat = _open(proc / "stat")
        self._pressure = _open(proc / "pressure" / "cpu")
        self._relay = None if relay_pid is None else _open(proc / str(relay_pid) / "schedstat")

    def read(self, at_s: float) -> Counters:
        """The counters now, which is `at_s`. Raises `TestbedError` when `/proc/stat` can't be read."""
        line = _first_line(self._stat)
        if not line:
            raise TestbedError("/proc/stat can't be read, wanted the CPU time that this host has spent")
        ran_s, relay_waited_s = self._of_relay()
        return Counters(at_s, tuple(int(column) for column in line.split()[1 : _COUNTED + 1]), self._waited_s(), ran_s, relay_waited_s)

    def _waited_s(self) -> float | None:
        """`total` (us) of the line `some avg10=.. avg60=.. avg300=.. total=..`."""
        total = _first_line(self._pressure).rpartition(b"total=")[2]
        return s_from_us(int(total)) if total else None

    def _of_relay(self) -> tuple[float | None, float | None]:
        """For how long the relay ran and waited for a core; it may have ended."""
        numbers = _first_line(self._relay).split()
        return (s_from_ns(int(numbers[0])), s_from_ns(int(numbers[1]))) if numbers else (None, None)

    def close(self) -> None:
        """Close the files."""
        for file in (self._stat, self._pressure, self._relay):
            if file is not None:
                os.close(file)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _first_line(file: int | None) -> bytes:
    """Empty where the kernel has no such file, switched it off, or its process has ended."""
    try:
        return b"" if file is None else os.pread(file, _ENOUGH_BYTES, 0).partition(b"\n")[0]
    except OSError:
        return b""


def between(before: Counters, after: Counters) -> HostRow | None:
    """What went on between two readings; None when no tick was counted. A counter that goes back, as some kernels' do, stood still."""
    ticks = [max(b - a, 0) for a, b in zip(before.ticks, after.ticks, strict=True)]
    window_s, total = after.at_s - before.at_s, sum(ticks)
    if total == 0 or window_s <= 0:
        return None
    idle = ticks[_IDLE] + ticks[_IOWAIT]
    return HostRow(
        at_s=after.at_s,
        window_s=window_s,
        busy_share=(total - idle - ticks[_STEAL]) / total,
        steal_share=ticks[_STEAL] / total,
        cpu_pressure_share=_share(before.waited_s, after.waited_s, window_s),
        relay_busy_share=_share(before.relay_ran_s, after.relay_ran_s, window_s),
        relay_wait_share=_share(before.relay_waited_s, after.relay_waited_s, window_s),
    )


def _share(before_s: float | None, after_s: float | None, window_s: float) -> float | None:
    if before_s is None or after_s is None:
        return None
    return min(max(after_s - before_s, 0.0) / window_s, 1.0)


class Sampler:
    """`with Sampler(take):` hands a `HostRow` to `take` every `period_s`, from its own thread; its end raises what `take` raised."""

    def __init__(self, take: Callable[[HostRow], None], relay_pid: int | None = None, period_s: float = PERIOD_S) -> None:
        self._take, self._period_s, self._host = take, period_s, Host(relay_pid)
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)

    def __enter__(self) -> Self:
        self._before = self._host.read(now_s())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._host.close()
        if self._error and not error:
            raise self._error

    def _run(self) -> None:
        try:
            pause_s = self._period_s
            while not self._over.wait(pause_s):
                used_s = thread_cpu_s()
                self._sample()
                pause_s = max(self._period_s, (thread_cpu_s() - used_s) / MOST_COST_SHARE)
            self._sample()
        except Exception as error:  # handed to the main thread, which raises it
            self._error = error

    def _sample(self) -> None:
        """A window from the last sample to now; where no tick was counted, it goes on."""
        after = self._host.read(now_s())
        if row := between(self._before, after):
            self._take(row)
            self._before = after


@dataclass(frozen=True)
class Strain:
    """The host during a trial: means over its span, and its worst windows."""

    steal_share: float | None = None
    worst_steal_share: float | None = None
    cpu_pressure_share: float | None = None
    worst_cpu_pressure_share: float | None = None
    relay_wait_share: float | None = None


NO_STRAIN = Strain()
"""Not measured."""


def strain(rows: Iterable[HostRow], begin_s: float, end_s: float) -> Strain:
    """Means of the windows that lie in the span from `begin_s` to `end_s`, each by how much of it does, and the worst of them."""
    weighted = [(row, min(row.at_s, end_s) - max(row.at_s - row.window_s, begin_s)) for row in rows]
    inside = [(row, weight_s) for row, weight_s in weighted if weight_s > 0]
    steal = [(row.steal_share, weight_s) for row, weight_s in inside]
    pressure = [(row.cpu_pressure_share, weight_s) for row, weight_s in inside if row.cpu_pressure_share is not None]
    relay = [(row.relay_wait_share, weight_s) for row, weight_s in inside if row.relay_wait_share is not None]
    return Strain(weighted_mean(steal), _worst(steal), weighted_mean(pressure), _worst(pressure), weighted_mean(relay))


def weighted_mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    """Of (value, weight); None of nothing."""
    weighted = list(weighted)
    total = sum(weight for _, weight in weighted)
    return sum(value * (weight / total) for value, weight in weighted) if total else None


def _worst(weighted: Iterable[tuple[float, float]]) -> float | None:
    return max((value for value, _ in weighted), default=None)
