"""The only file that reads a clock; everything else is handed `now`."""

import time
from datetime import UTC, datetime


def now_s() -> float:
    """Seconds on CLOCK_MONOTONIC, which all processes of this machine share."""
    return time.monotonic()


def now_ns() -> int:
    """Nanoseconds on CLOCK_MONOTONIC."""
    return time.monotonic_ns()


def utc_now() -> datetime:
    """The calendar time, for names of result folders and headers only."""
    return datetime.now(UTC)
