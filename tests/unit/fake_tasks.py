"""Made-up runs of the tasks that schedule and that predict viewports: rows by arithmetic, of each kind as many as a report needs."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fake_run import FakeRun, make_trace

from players.tiles import COLUMNS, ROWS
from testbed.records import (
    EndRow,
    Event,
    ExecutorRow,
    JobRow,
    RunHeader,
    ScheduleDecisionRow,
    ScheduleRow,
    TaskRow,
    TransferRow,
)
from testbed.records_vp import HeadRow, PredictionRow, SegmentRow, ViewingRow
from testbed.results import ResultFolder

POLICIES = ("netllm", "bola", "bba")
TRIALS, JOBS, EXECUTORS, SEGMENTS = 3, 4, 3, 6
ENDED = EndRow(ended_utc="2026-11-23T18:51:00+00:00", reason="complete")


def folder_of(base: Path, events: Sequence[Event]) -> Path:
    """A result folder with these events."""
    header, *rest = events
    assert isinstance(header, RunHeader)
    folder = ResultFolder.create(base, header, datetime(2026, 11, 23, tzinfo=UTC))
    folder.extend(rest)
    folder.close()
    return folder.path


def schedules(failing: str = "") -> Iterator[Event]:
    """A run on an emulated cluster; the policy `failing` raises in its last trial."""
    yield _header("cjs", "avg_jct_s", "s", executors=EXECUTORS, time_scale=10.0)
    for number, seed, policy in _grid():
        failed = policy == failing and seed == TRIALS
        common = _common(number, policy, f"tpch seed {seed}", f"{seed:064x}", seed, failed)
        trial_id, slower = common["trial_id"], 1.0 + POLICIES.index(policy) / 10
        for job in range(JOBS):
            start_s, end_s = 10.0 * job, 10.0 * job + 8 * slower
            yield TaskRow(
                trial_id=trial_id, job=job, stage=0, task=0, executor=job % EXECUTORS, start_s=start_s, end_s=end_s, profiled_s=8.0
            )
            yield JobRow(
                trial_id=trial_id,
                job=job,
                name=f"q{job}",
                arrived_s=start_s,
                done_s=end_s,
                jct_s=end_s - start_s,
                stages=1,
                tasks=1,
                work_s=8.0,
            )
            yield ScheduleDecisionRow(
                trial_id=trial_id,
                index=job,
                at_s=start_s,
                committable=1,
                active_jobs=1,
                job=job,
                stage=0,
                executors=1,
                latency_s=0.01,
                policy_s=0.008,
                source="policy",
                reason="",
            )
        yield ExecutorRow(trial_id=trial_id, executor=1, at_s=12.0, what="lost", reason="a test")
        yield TransferRow(trial_id=trial_id, sender=0, receiver=2, size_bytes=3_000_000)
        yield ScheduleRow(
            **common,
            avg_jct_s=8 * slower + seed / 10,
            p50_jct_s=8 * slower,
            p95_jct_s=8 * slower,
            makespan_s=30 + 8 * slower,
            busy_share=0.4,
            shuffled_mb=3.0,
            jobs=JOBS,
            tasks=JOBS,
            unfinished=0,
            time_scale=10.0,
        )
    yield ENDED


def viewings(failing: str = "") -> Iterator[Event]:
    """A run of live headsets; the policy `failing` raises in its last trial."""
    yield _header("vp", "viewport_qoe", "per second", horizon=4.0, history=2.0)
    traces = [make_trace(index, np.random.default_rng(index)) for index in range(TRIALS)]
    yield from traces
    for number, seed, policy in _grid():
        trace, failed = traces[seed - 1], policy == failing and seed == TRIALS
        common = _common(number, policy, trace.trace, trace.sha256, 1, failed)
        trial_id, off_deg = common["trial_id"], 5.0 + POLICIES.index(policy)
        for index in range(SEGMENTS):
            yield SegmentRow(
                trial_id=trial_id,
                index=index,
                levels="0123" * (ROWS * COLUMNS // 4),
                size_bytes=200_000,
                wasted_bytes=50_000,
                request_s=index,
                end_s=index + 0.5,
                start_s=index + 0.5,
                rebuffer_s=0.1 * (index == 3),
                quality_bps=2e6 + 1e5 * seed,
                blank_share=0.01,
                qoe=2.0 + seed / 10 - off_deg / 50 - index / 100,
            )
            yield PredictionRow(
                trial_id=trial_id,
                segment=index,
                at_s=index,
                media_s=index,
                mae_deg=off_deg + index / 10,
                latency_s=0.01,
                policy_s=0.008,
                source="policy",
                reason="",
            )
        for sample in range(5 * SEGMENTS):
            yield HeadRow(
                trial_id=trial_id,
                media_s=sample / 5,
                latitude_deg=sample / 2,
                longitude_deg=3.0 * sample,
                expected_latitude_deg=sample / 2 + off_deg,
                expected_longitude_deg=3.0 * sample - off_deg,
                quality_bps=2e6,
                blank_share=0.0,
            )
        yield ViewingRow(
            **common,
            viewer=seed,
            video=4,
            qoe=2.0 + seed / 10 - off_deg / 50,
            quality_mbps=2.0 + seed / 10,
            rebuffer_s=0.02,
            switch_mbps=0.1,
            blank_share=0.01,
            wasted_share=0.25,
            startup_s=0.5,
            mae_deg=off_deg,
            segments=SEGMENTS,
        )
    yield ENDED


def _header(task: str, metric: str, unit: str, **spec: Any) -> RunHeader:
    plain = FakeRun(policies=POLICIES, traces=TRIALS).header()
    return msgspec.structs.replace(plain, task=task, metric=metric, unit=unit, spec={**plain.spec, **spec})


def _grid() -> Iterator[tuple[int, int, str]]:
    """Number, seed or trace from 1 on, and policy of each trial."""
    cells = [(seed, policy) for seed in range(1, TRIALS + 1) for policy in POLICIES]
    return ((number, *cell) for number, cell in enumerate(cells))


def _common(number: int, policy: str, trace: str, sha256: str, seed: int, failed: bool) -> dict[str, Any]:
    """What the rows of all tasks' trials have."""
    reason = "policy raised ValueError: no"
    return {
        "trial_id": f"t{number:04d}",
        "policy": policy,
        "trace": trace,
        "trace_sha256": sha256,
        "offset_s": 0.0,
        "seed": seed,
        "mode": "emulation",
        "lane": 0,
        "end_reason": reason if failed else "complete",
        "valid": not failed,
        "invalid_reason": f"ended early: {reason}" if failed else "",
        "decisions": SEGMENTS,
        "fallbacks": 0,
        "controller_restarts": 0,
        "wall_s": 10.0,
        "congestion_control": "cubic",
        "trace_wraps": 0,
        "lateness_ms_p99": 0.5,
        "rate_error_pct_100ms": 0.1,
        "uncounted_losses": 0,
        "fidelity": "pass",
    }
