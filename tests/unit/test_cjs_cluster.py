"""The player of trials on a cluster: what it does when it is interrupted, and when processes end under it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from testbed.cjs import PreparedSchedules, ScheduleTrial, prepare_schedules, schedule_row
from testbed.cjs_cluster import ClusterRun, JoinedExecutors
from testbed.emulation import in_thread
from testbed.pressure import NO_STRAIN
from testbed.records import ExecutorRow, JobRow, ScheduleEndRow
from testbed.sim.cjs import COMPLETE
from testbed.spec import Experiment
from testbed.verdict import PathFacts

PATIENT = "import sys, time; sys.stdin.read(); print(flush=True); time.sleep(60)"
"""A driver that shows a sign of life and then waits."""


class Controller:
    """Stands in for the decision service's keeper."""

    restarts = 0

    def watch(self) -> str:
        return ""


class Executors(JoinedExecutors):
    """Of no cluster: the driver is a script."""

    def __init__(self, script: str) -> None:
        super().__init__("tcp://nowhere:1", "http://nowhere:1")
        self._script = script
        self.drivers: list[subprocess.Popen[bytes]] = []

    def popen_driver(self, argv: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
        self.drivers.append(subprocess.Popen([sys.executable, "-c", self._script], **popen))
        return self.drivers[-1]


class Recorder:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.began, self.closed = list[str](), list[tuple[str, PathFacts]]()
        self.said = ""

    def started(self, trial: ScheduleTrial, lane: int) -> None:
        self.began.append(trial.trial_id)

    def close(self, trial_id: str, facts: PathFacts) -> None:
        self.closed.append((trial_id, facts))

    def extend(self, rows: Any) -> None: ...

    def row(self, row: Any) -> None: ...

    def host(self, row: Any) -> None: ...

    def log(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.said += text + "\n"


@pytest.fixture(scope="module")
def prepared() -> PreparedSchedules:
    return prepare_schedules(
        Experiment(task="cjs", cluster="tcp://nowhere:1", policies="fair,fifo_half", jobs=1, executors=1, workload="tpch_own")
    )


def test_ctrl_c_ends_the_driver_and_no_other_trial_begins(prepared: PreparedSchedules) -> None:
    executors, recorder = Executors(PATIENT), Recorder()
    run = ClusterRun(prepared, executors, Controller(), {})  # type: ignore[arg-type]
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.run(recorder)  # type: ignore[arg-type]
    threading.Event().wait(0.3)
    assert [driver.poll() is not None for driver in executors.drivers] == [True], "one, and it has ended"
    assert (recorder.began, recorder.closed) == (["t0000"], [])


def test_a_trial_that_lost_executors_is_invalid_and_says_whom_unless_that_was_meant(prepared: PreparedSchedules) -> None:
    trial = prepared.trials[0]
    facts = {"arrived_s": 0.0, "done_s": 1.0, "jct_s": 1.0, "stages": 1, "tasks": 1, "work_s": 1.0}
    sums = {"avg_jct_s": 1.0, "p50_jct_s": 1.0, "p95_jct_s": 1.0, "makespan_s": 1.0, "busy_share": 1.0, "jobs": 1, "unfinished": 0}
    rows = [
        ExecutorRow(trial_id="t0000", executor=0, at_s=0.5, what="lost", reason="its connection broke"),
        JobRow(trial_id="t0000", job=0, name="q1", **facts),  # type: ignore[arg-type]
        ScheduleEndRow(trial_id="t0000", end_reason=COMPLETE, executors_lost=1, **sums),  # type: ignore[arg-type]
    ]
    row = schedule_row(trial, rows, PathFacts(), prepared.experiment, 1, NO_STRAIN)
    assert not row.valid and "(executor 0: its connection broke)" in row.invalid_reason
    assert schedule_row(trial, rows, PathFacts(), prepared.experiment, 1, NO_STRAIN, losses_meant=True).valid


def test_a_thread_that_lives_on_after_ctrl_c_counts_as_alive() -> None:
    go_on = threading.Event()
    ended = in_thread(go_on.wait)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ended.wait(10.0)
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(1.0)
