"""Whether the host stood still while a test judged milliseconds: told by witnesses, one pinned to each core, that only sleep and wake.

They are of a higher real-time priority than anything that is tested, so that what makes them late is the host, no load of this machine.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

STANDSTILL_S = 0.0005
"""A witness that wakes so late tells of it."""
_WITNESS = f"""
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
while True:
    begin_s = time.monotonic()
    time.sleep(0.001)
    if time.monotonic() - begin_s > 0.001 + {STANDSTILL_S}:
        print(time.monotonic(), flush=True)
"""
_told_s: list[float] = []
_begun_s = 0.0


def host_stood_still() -> bool:
    """Since the test that runs was begun, the last time. Without witnesses (no real-time rights) never."""
    time.sleep(0.05)  # what a witness says is on its way
    return any(at_s >= _begun_s for at_s in _told_s)


in_real_time = pytest.mark.flaky(reruns=3, reruns_delay=15, condition=host_stood_still)
"""For tests that judge milliseconds: one that failed is void and runs again if the host stood still meanwhile, else it has failed.

A host that is busy is so for seconds, mostly: four attempts in a row would meet the same moment.
"""


@pytest.fixture(scope="session", autouse=True)
def witnesses() -> Iterator[None]:
    """One a core, for the session."""
    command = [sys.executable, "-S", "-c", _WITNESS]
    started = [
        subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for core in sorted(os.sched_getaffinity(0))
    ]
    for each in started:
        threading.Thread(target=_listen, args=(each,), daemon=True).start()
    yield
    for each in started:
        each.kill()
        each.wait()


def _listen(witness: "subprocess.Popen[str]") -> None:
    assert witness.stdout
    for line in witness.stdout:
        _told_s.append(float(line))


@pytest.fixture(autouse=True)
def begun() -> None:
    """When the test, or its next attempt, begins."""
    global _begun_s
    _begun_s = time.monotonic()
