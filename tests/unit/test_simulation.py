"""Worker processes of the simulator twin, with policies that answer, print, read, raise, hang and die."""

import io
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from testbed import twin
from testbed.errors import TestbedError, UserError
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, Row
from testbed.simulation import _lines, dealt, simulate
from testbed.twin import SimulationJob
from testbed.twin import simulate as rows_of
from tests.abr_cases import session, steady

CHUNKS = 4
PATIENCE_S = 60.0


def jobs(policy: str, count: int = 1, first: int = 0) -> list[SimulationJob]:
    return [
        SimulationJob(trial_id=f"t{first + i}", policy=policy, session=session(CHUNKS), seed=i, offset_s=0.0, rate_trace=steady(2.0))
        for i in range(count)
    ]


def policy(folder: Path, decide: str, top: str = "", name: str = "mine") -> str:
    """A user's file; its path."""
    path = folder / f"{name}.py"
    lines = (
        "import os, sys, threading",
        "import numpy as np",
        "from controllers.api import AbrPolicy",
        top,
        "class Mine(AbrPolicy):",
        "    def decide(self, observation):",
        f"        {decide}",
    )
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(work: list[SimulationJob], silence_s: float = PATIENCE_S) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    simulate(work, lambda row: rows.setdefault(row.trial_id, []).append(row), silence_s)
    return rows


def ends(rows: dict[str, list[Row]]) -> dict[str, str]:
    return {trial: end.end_reason for trial, its in sorted(rows.items()) for end in its if isinstance(end, PlaybackEndRow)}


@pytest.mark.parametrize(("answer", "level"), [("np.int64(2)", 2), ("True", 1), ("np.uint8(0)", 0)])
def test_every_kind_of_integer_is_a_level(tmp_path: Path, answer: str, level: int) -> None:
    (work,) = jobs(policy(tmp_path, f"return {answer}"))
    rows = run([work])["t0"]
    assert [row for row in rows if isinstance(row, ChunkRow)] == [row for row in rows_of(work) if isinstance(row, ChunkRow)]
    for kind in (ChunkRow, DecisionRow):
        levels = [row.level for row in rows if isinstance(row, kind)][-3:]
        assert (levels, {type(each) for each in levels}) == ([level] * 3, {int})
    assert {type(row.level) for row in rows_of(work) if isinstance(row, ChunkRow | DecisionRow)} == {int}


@pytest.mark.parametrize(
    ("decide", "reason"),
    [
        ("return 1.0", "policy answered 1.0, wanted a level of 0 to 5"),
        ("return None", "policy answered None, wanted a level of 0 to 5"),
        ("return np.True_", f"policy answered {np.True_!r}, wanted a level of 0 to 5"),
        ("return 6", "policy answered 6, wanted a level of 0 to 5"),
        ("raise OSError('a\\n  b' + 'x' * 9999)", f"policy raised OSError: a b{'x' * 497} (mine.py:7)"),
        ("sys.exit(0)", "policy raised SystemExit: 0 (mine.py:7)"),
    ],
)
def test_a_policy_that_fails_ends_its_trial_alone(tmp_path: Path, decide: str, reason: str) -> None:
    seen = ends(run([*jobs(policy(tmp_path, decide)), *jobs("bba", first=1)]))
    assert seen["t0"].startswith(reason)
    assert seen["t1"] == "complete"


def test_what_a_policy_prints_and_reads_is_no_message(tmp_path: Path) -> None:
    top = "print('hello'); os.write(1, b'{}'); assert sys.stdin.read() == '' and os.read(0, 1) == b''"
    rows = run(jobs(policy(tmp_path, "print('x' * 300_000, flush=True); return 1", top), 3))
    assert set(ends(rows).values()) == {"complete"}
    assert len(rows) == 3


def test_a_policy_that_hangs_ends_its_trials_and_no_other(tmp_path: Path) -> None:
    hanging = policy(tmp_path, "return 1 if self.rng.integers(9) < 0 else threading.Event().wait()")
    seen = ends(run([*jobs("bba"), *jobs(hanging, 2, first=1), *jobs("rate", 2, first=3)], silence_s=3.0))
    assert seen == {
        "t0": "complete",
        "t1": "policy did not answer for 3 s",
        "t2": "policy did not answer for 3 s in trial t1, and was not asked again",
        "t3": "complete",
        "t4": "complete",
    }


def test_a_policy_that_crashes_ends_its_trials_and_no_other(tmp_path: Path) -> None:
    crashing = policy(tmp_path, "return os.kill(os.getpid(), 11)")
    seen = ends(run([*jobs("bba"), *jobs(crashing, 2, first=1), *jobs("rate", 2, first=3)]))
    assert seen == {
        "t0": "complete",
        "t1": "policy ended its process (SIGSEGV)",
        "t2": "policy ended its process (SIGSEGV) in trial t1, and was not asked again",
        "t3": "complete",
        "t4": "complete",
    }


def test_each_decision_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on one decision, not on a trial. So is the start of a policy."""
    monkeypatch.setattr(twin, "SIGN_OF_LIFE_S", 0.0)
    said = io.BytesIO()
    list(rows_of(*jobs("bba"), twin._Writer(said).alive))
    assert said.getvalue() == b"\n" * CHUNKS


def test_the_start_of_each_trial_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it comes after the last sign of life."""
    monkeypatch.setattr(twin, "SIGN_OF_LIFE_S", PATIENCE_S)
    said = io.BytesIO()
    writer = twin._Writer(said)
    for _ in range(2):
        writer.alive()
        writer.alive()
        writer.begin()
    assert said.getvalue() == b"\n\n"


def test_a_policy_that_loads_for_longer_than_it_may_decide_is_no_hung_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "import time\ntime.sleep(2.5)"
    assert ends(run(jobs(policy(tmp_path, "return 1", slow), 2), silence_s=2.0)) == {"t0": "complete", "t1": "complete"}
    monkeypatch.setattr("testbed.simulation.LOAD_S", 1.0)
    assert ends(run(jobs(policy(tmp_path, "return 1", slow)), silence_s=0.5)) == {"t0": "policy did not answer for 1 s"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_worker_gets_its_share_of_every_policy(count: int) -> None:
    """A policy that takes a hundred times as long as the others is not left to one worker."""
    policies = ("netllm", "robust_mpc", "bola", "bba")
    work = [job for i in range(6) for name in policies for job in jobs(name, first=i)]
    hands = dealt(work, count)
    for name in policies:
        assert [len([job for job in hand if job.policy == name]) for hand in hands] == [6 // count] * count
    order = {id(job): i for i, job in enumerate(work)}
    assert all([order[id(job)] for job in hand] == sorted(order[id(job)] for job in hand) for hand in hands)
    assert sorted(order[id(job)] for hand in hands for job in hand) == list(range(len(work)))
    assert [len(hand) for hand in dealt([job for name in policies for job in jobs(name)], 2)] == [2, 2]


def test_lines_come_whole_and_silence_ends_them() -> None:
    reader, writer = os.pipe()
    for piece in (b"\n\na", b"b\nc\n", b"\nrest"):
        os.write(writer, piece)
    lines = _lines(reader, lambda: 0.0)
    assert [next(lines) for _ in range(5)] == [b"", b"", b"ab", b"c", b""]
    with pytest.raises(TimeoutError, match="0 s"):
        next(lines)
    lines = _lines(reader, lambda: 0.0)
    os.write(writer, b"last\n")
    os.close(writer)
    assert list(lines) == [b"last"]
    os.close(reader)


def test_a_thread_that_a_policy_starts_does_not_hold_the_worker(tmp_path: Path) -> None:
    top = "threading.Thread(target=threading.Event().wait).start()"
    assert ends(run(jobs(policy(tmp_path, "return 1", top)))) == {"t0": "complete"}


def test_a_file_is_imported_once_for_all_trials_of_a_worker(tmp_path: Path) -> None:
    run(jobs(policy(tmp_path, "return 1", f"open({str(tmp_path / 'imports')!r}, 'a').write('x')"), 5))
    assert (tmp_path / "imports").read_text() == "x"


@pytest.mark.parametrize("count", [3, 16])
@pytest.mark.parametrize(
    ("decide", "wanted"),
    [
        ("os._exit(0)", "the simulation worker ended with code 0 in trial t"),
        ("[os.write(fd, b'x\\n') for fd in range(3, 9) if os.path.exists(f'/proc/self/fd/{fd}')]", "the simulation worker wrote b'x'"),
    ],
)
def test_rows_are_never_lost_in_silence(tmp_path: Path, decide: str, wanted: str, count: int) -> None:
    with pytest.raises(TestbedError, match=wanted):
        run(jobs(policy(tmp_path, decide), count))


def test_a_row_that_can_not_be_taken_ends_the_simulation() -> None:
    def full(row: Row) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        simulate(jobs("bba", 200), full)


def test_a_policy_that_can_not_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(jobs(policy(tmp_path, "return 1", "print('noise', file=sys.stderr); raise ValueError('a\\n b')")))
    assert str(caught.value) == f"{tmp_path}/mine.py:4: importing it raised ValueError: a b, wanted a Python file with an AbrPolicy"


def test_a_kill_of_the_parent_leaves_no_worker(tmp_path: Path) -> None:
    """Also with more workers than one, which threads start."""
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    hanging = policy(tmp_path, "threading.Event().wait()", f"open({str(fifo)!r}, 'w').write(f'{{os.getpid()}}\\n')")
    code = f"from tests.unit.test_simulation import jobs, run; run(jobs({json.dumps(hanging)}, 16))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    workers: list[int] = []
    try:
        while len(workers) < min(2, len(os.sched_getaffinity(0))):
            workers += [int(line) for line in fifo.read_text().split()]
        handles = [os.pidfd_open(pid) for pid in workers]
    finally:
        parent.kill()
        parent.wait()
    for handle in handles:
        assert select.select([handle], [], [], 10)[0], "the worker outlived its parent"
        os.close(handle)
