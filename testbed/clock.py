"""The only file that reads a clock; everything else is handed `now`."""

import time
from datetime import UTC, datetime


def now_s() -> float:
    """Seconds on CLOCK_MONOTONIC, which all processes of this machine share."""
    return time.monotonic()


def now_ns() -> int:
    """Nanoseconds on CLOCK_MONOTONIC."""
    return time.monotonic_ns()


def wall_offset_ns() -> int:
    """Nanoseconds from CLOCK_MONOTONIC to CLOCK_REALTIME, in which the kernel stamps captured packets; good to some tens of ns."""
    readings = []
    for _ in range(50):
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
    return min(readings)[1]


def thread_cpu_s() -> float:
    """CPU time that the calling thread has used, seconds."""
    return time.thread_time()


def utc_now() -> datetime:
    """The calendar time, for names of result folders and headers only."""
    return datetime.now(UTC)
