"""Schedules on an emulated cluster from the command line: real workers, real bytes, links that keep their promise, faults, nothing left."""

import json
import os
import signal
import time
from pathlib import Path

import polars
import pytest
from conftest import descendants, interfaces, schedules_begun, start_schedules

from testbed.bench.cjs_faults import CjsFaultsSettings, injected
from testbed.netns.owned import TOKEN_VARIABLE
from testbed.setup import native

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not native.built(), reason="the relay in C is not built here: scripts/setup does it where there is a C compiler"),
]
SMALL = ["--jobs", "3", "--executors", "4", "--time-scale", "40", "--repeats", "0", "--policies", "fair,fifo_half"]


def ours() -> dict[int, str]:
    return descendants(TOKEN_VARIABLE)


def test_the_same_jobs_under_two_policies_over_links_that_follow_a_trace(tmp_path: Path, steps: Path) -> None:
    before = interfaces()
    out, errors = start_schedules(tmp_path, steps, *SMALL).communicate(timeout=150)
    latest = tmp_path / "results" / "latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert summary["task"], (out, errors)
    assert (summary["mode"], summary["metric"], summary["trace"]["source"]) == ("emulation", "avg_jct_s", "path")
    tables = {path.stem: polars.read_parquet(path) for path in latest.glob("*.parquet")}
    trials = tables["trials"]
    assert trials["end_reason"].to_list() == ["complete"] * 2, (out, errors)
    assert tables["jobs"].group_by("trial_id").len()["len"].to_list() == [3, 3]
    done = tables["tasks"].filter(polars.col("outcome") == "done").select("trial_id", "job", "stage", "task")
    assert done.is_unique().all() and done.filter(polars.col("trial_id") == "t0000").height == done.height / 2
    shuffled = tables["transfers"].group_by("trial_id").agg(polars.col("size_bytes").sum())["size_bytes"]
    carried = tables["links"].filter(polars.col("direction") == "received").group_by("trial_id").agg(polars.col("delivered_bytes").sum())
    assert (shuffled > 0).all()
    assert carried["delivered_bytes"].min() > 0.9 * shuffled.min(), "what executors exchange goes over the emulated links"
    assert set(tables["links"]["link"]) == {"e0", "e1", "e2", "e3"}
    report = (latest / "report.html").read_text()
    assert "Jobs in the system" in report and "executors over time" in report
    assert ("Decision latency" in report) == trials["valid"].any(), "latencies are those of valid trials"
    assert (trials["simulated_jct_s"] > 0).all()
    assert interfaces() == before and not ours()


@pytest.mark.timeout(600)
def test_faults_lose_no_job_and_leave_the_next_trial_alone() -> None:
    struck = "none,executor killed,executor hangs,link cut for 5 s,controller killed,driver killed,none again"
    settings = CjsFaultsSettings(jobs=1, executors=4, time_scale=6.0, containers="never", faults=struck)
    outcomes = {one.fault: one for one in injected(settings)}
    tasks = outcomes["none"].tasks_done
    for fault, outcome in outcomes.items():
        if fault != "driver killed":
            assert (outcome.row.end_reason, outcome.jobs_done, outcome.tasks_done) == ("complete", 1, tasks), fault
    assert [outcomes[fault].row.executors_lost for fault in ("none", "executor killed", "executor hangs", "none again")] == [0, 1, 1, 0]
    assert outcomes["executor killed"].row.tasks_run_again > 0
    assert outcomes["controller killed"].row.controller_restarts == 1
    assert "the driver ended" in outcomes["driver killed"].row.invalid_reason
    assert not ours()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path, steps: Path, number: int) -> None:
    before = interfaces()
    process = start_schedules(tmp_path, steps, *SMALL)
    schedules_begun(tmp_path, process)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    deadline_s = time.monotonic() + 10
    while ours() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not ours()
    assert interfaces() == before
    if number == signal.SIGINT:
        assert process.returncode == 130
        summary = json.loads((tmp_path / "results" / "latest" / "summary.json").read_text())
        assert summary["unfinished"] == 1
