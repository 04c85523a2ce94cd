"""Watches the host while an emulation runs: how busy its cores are, what the hypervisor stole, whether tasks waited for a core.

A link that is late was kept from running by somebody. These samples say whether the host or the relay was to blame. They judge nothing:
the verdict on a trial is the link's own.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.clock import now_s
from testbed.records import HostRow
from testbed.units import s_from_ns, s_from_us

PERIOD_S = 0.1
"""That of the links' counters. A sample costs the root process about 50 us, a two-thousandth of a core."""
MOST_COST_SHARE = 0.005
"""Where a sample costs more (`/proc/stat` has a column for each interrupt), they come so much more rarely."""
PROC = Path("/proc")
_COUNTED = 8
"""Columns of `/proc/stat`'s first line that add up to all time, proc(5): user nice system idle iowait irq softirq steal."""
_IDLE, _IOWAIT, _STEAL = 3, 4, 7


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


def read(at_s: float, relay_pid: int | None = None, proc: Path = PROC) -> Counters:
    """The counters now, which is `at_s`."""
    first_line = (proc / "stat").read_text().partition("\n")[0]
    ticks = tuple(int(column) for column in first_line.split()[1 : _COUNTED + 1])
    ran_s, relay_waited_s = _of_process(relay_pid, proc)
    return Counters(at_s, ticks, _waited_s(proc), ran_s, relay_waited_s)


def _waited_s(proc: Path) -> float | None:
    """`total` (us) of the line `some avg10=.. avg60=.. avg300=.. total=..`."""
    try:
        line = (proc / "pressure" / "cpu").read_text().partition("\n")[0]
    except OSError:
        return None
    return s_from_us(int(line.rpartition("total=")[2]))


def _of_process(pid: int | None, proc: Path) -> tuple[float | None, float | None]:
    """For how long the process ran and waited for a core; it may have ended."""
    if pid is None:
        return None, None
    try:
        ran_ns, waited_ns, _ = (proc / str(pid) / "schedstat").read_text().split()
    except (OSError, ValueError):
        return None, None
    return s_from_ns(int(ran_ns)), s_from_ns(int(waited_ns))


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

    def __init__(
        self, take: Callable[[HostRow], None], relay_pid: int | None = None, period_s: float = PERIOD_S, proc: Path = PROC
    ) -> None:
        self._take, self._relay_pid, self._period_s, self._proc = take, relay_pid, period_s, proc
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._error and not error:
            raise self._error

    def _run(self) -> None:
        try:
            before = read(now_s(), self._relay_pid, self._proc)
            pause_s = self._period_s
            while not self._over.wait(pause_s):
                begin_s = now_s()
                after = read(begin_s, self._relay_pid, self._proc)
                if row := between(before, after):
                    self._take(row)
                    before = after
                pause_s = max(self._period_s, (now_s() - begin_s) / MOST_COST_SHARE)
        except Exception as error:  # handed to the main thread, which raises it
            self._error = error


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
    return sum(value * weight for value, weight in weighted) / total if total else None


def _worst(weighted: Iterable[tuple[float, float]]) -> float | None:
    return max((value for value, _ in weighted), default=None)
