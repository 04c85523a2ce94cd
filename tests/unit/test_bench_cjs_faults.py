"""When a fault strikes: at the end of a task that tells the executor has something to lose, once."""

import threading

import pytest

from testbed.bench import cjs_faults
from testbed.bench.cjs_faults import STRIKE_S, STRUCK, Witness
from testbed.records import ScheduleBeginRow, TaskRow


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
    assert strikes(ended(STRUCK), 201.0 + STRIKE_S)
    assert not strikes(ended(STRUCK), 202.0 + STRIKE_S), "a second time"
    assert len(witness.rows) == 6
