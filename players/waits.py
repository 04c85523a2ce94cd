"""`Waits`: by how much a player's times are late because it waited for a core of the host, which no network is to blame for.

The kernel counts for how long a thread could have run and did not. Most of that changes nothing: a busy player wakes hundreds of times a
second and reads what came meanwhile a little later (on a host with two runnable tasks a core about 1 ms, 0.1 s in each second). What
counts is what the last wake-up before a time of the account waited, for that time is late by it, and each long wait, in which the
receive window may have filled up. A player that was stopped did not wait for a core: `testbed.lane` sees to that.
"""

import os
from pathlib import Path

from testbed.units import s_from_ns

SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Time run and time waited for a core, ns; slices (Linux, Documentation/scheduler/sched-stats.rst)."""
LONG_S = 0.1
"""A window of 64 KiB, TCP's first, holds what comes in that time at 5 Mbit/s."""
_ENOUGH_BYTES = 128


class Waits:
    """Of the thread that makes it. Call `woke` after each wake-up, `timed` where a time of the account was taken."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open(SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None
        self._seen_s = self._waited_s()
        self._newest_s = 0.0
        self.counted_s = 0.0

    def _waited_s(self) -> float:
        """Since the thread began; 0 where the kernel doesn't tell."""
        return 0.0 if self._file is None else s_from_ns(int(os.pread(self._file, _ENOUGH_BYTES, 0).split()[1]))

    def woke(self) -> None:
        """Between two times of the account: what was waited counts if it was long, or no other wake-up follows."""
        seen_s = self._waited_s()
        self._newest_s, self._seen_s = seen_s - self._seen_s, seen_s
        if self._newest_s > LONG_S:
            self.counted_s, self._newest_s = self.counted_s + self._newest_s, 0.0

    def timed(self) -> None:
        """A time of the account was taken: it is late by what was waited since the wake-up before the newest one."""
        seen_s = self._waited_s()
        self.counted_s += self._newest_s + seen_s - self._seen_s
        self._newest_s, self._seen_s = 0.0, seen_s

    def close(self) -> None:
        """Close the kernel's file; callable twice."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
