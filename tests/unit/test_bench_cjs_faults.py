"""When a fault strikes: at the end of a task that tells the executor has something to lose, once."""

import threading
from typing import Any

import pytest

from testbed.bench import cjs_faults
from testbed.bench.cjs_faults import STRIKE_S, STRUCK, Fault, Witness, wrongs
from testbed.records import ScheduleBeginRow, ScheduleRow, TaskRow
from testbed.verdict import PathFacts


def ended(executor: int) -> TaskRow:
    return TaskRow(trial_id="t0000", job=0, stage=0, task=0, executor=executor, start_s=0.0, end_s=1.0, profiled_s=1.0)


def test_it_strikes_once_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, struck = 100.0, threading.Semaphore(0)
    monkeypatch.setattr(cjs_faults, "now_s", lambda: now_s)
    witness = Witness(struck.release)

    def strikes(row: TaskRow, at_s: float) -> bool:
        nonlocal now_s
        now_s = at_s
        witness.row(row)
        return struck.acquire(timeout=0.2)

    assert not strikes(ended(STRUCK), 200.0), "no trial has begun"
    now_s = 200.0
    witness.row(ScheduleBeginRow(trial_id="t0000", began_at_s=200.0))
    assert not strikes(ended(STRUCK), 200.0 + STRIKE_S / 2), "too early"
    assert not strikes(ended(STRUCK + 1), 200.0 + STRIKE_S), "another executor's"
    assert not witness.struck
    assert strikes(ended(STRUCK), 201.0 + STRIKE_S)
    assert witness.struck
    assert not strikes(ended(STRUCK), 202.0 + STRIKE_S), "a second time"
    assert len(witness.rows) == 6


def trial(**changes: Any) -> ScheduleRow:
    """One that went as it should."""
    of_all: dict[str, Any] = {
        "trial_id": "t0000",
        "policy": "fair",
        "trace": "tpch",
        "trace_sha256": "0",
        "offset_s": 0.0,
        "seed": 1,
        "mode": "emulation",
        "lane": 0,
        "end_reason": "complete",
        "valid": True,
        "invalid_reason": "",
        "decisions": 9,
        "fallbacks": 0,
        "controller_restarts": 0,
        "wall_s": 10.0,
        "congestion_control": "cubic",
        "trace_wraps": 0,
        "lateness_ms_p99": 0.1,
        "rate_error_pct_100ms": 0.0,
        "uncounted_losses": 0,
        "jobs": 4,
        "avg_jct_s": 1.0,
        "p50_jct_s": 1.0,
        "p95_jct_s": 1.0,
        "makespan_s": 1.0,
        "busy_share": 0.5,
        "shuffled_mb": 1.0,
        "tasks": 99,
        "unfinished": 0,
    }
    return ScheduleRow(**of_all | changes)


KILLED, NONE = Fault(lambda: None, lost=1), Fault(lambda: None)
LINK = PathFacts(reasons=("link of e1: late",))


@pytest.mark.parametrize(
    ("fault", "struck", "row", "path", "done", "wrong"),
    [
        (NONE, True, trial(), PathFacts(), (4, 99), ""),
        (NONE, False, trial(), PathFacts(), (4, 99), "it did not strike"),
        (KILLED, True, trial(executors_lost=1), PathFacts(), (4, 99), ""),
        (KILLED, True, trial(), PathFacts(), (4, 99), "0 executors lost, wanted 1"),
        (Fault(lambda: None, restarts=1), True, trial(), PathFacts(), (4, 99), "0 restarts, wanted 1"),
        (NONE, True, trial(unfinished=1), PathFacts(), (3, 99), "3 jobs done, wanted 4"),
        (NONE, True, trial(), PathFacts(), (4, 98), "98 tasks ended, wanted 99"),
        (NONE, True, trial(), PathFacts(fault="the driver died"), (4, 99), "the driver died"),
        (NONE, True, trial(end_reason="starved"), PathFacts(), (4, 99), "it ended early, starved"),
        (NONE, True, trial(valid=False, invalid_reason=LINK.reasons[0]), LINK, (4, 99), ""),
        (Fault(lambda: None, ends_trial=True), True, trial(), PathFacts(), (4, 99), "the trial went on"),
        (Fault(lambda: None, ends_trial=True), True, trial(), PathFacts(fault="it died"), (1, 9), ""),
    ],
)
def test_what_should_have_been_otherwise(fault: Fault, struck: bool, row: ScheduleRow, path: PathFacts, done: tuple[int, int], wrong: str):
    assert "; ".join(wrongs(fault, struck, row, path, *done, tasks=99)) == wrong
