"""The driver's process on a real Dask cluster on loopback, without network or root: it schedules, and survives what befalls workers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import polars
import pytest
from distributed import Client, Worker
from distributed.comm.core import CommClosedError

from controllers.api import CjsSession
from controllers.config import ControllerConfig
from testbed.cjs_cluster import TUNED
from testbed.clock import now_s
from testbed.execution.config import HUNG, DriverConfig, ExecutorPlace
from testbed.execution.dask_cluster import DaskCluster, ExecutorGone, _Reached, clock_offset_s
from testbed.execution.executor import NAME, Bundle
from testbed.records import ExecutorRow, JobRow, Row, ScheduleBeginRow, ScheduleEndRow, TaskRow, TransferRow
from tests.unit.loopback import running
from traces.tpch import load_profiles
from traces.workload import Workload, draw_workload

EXECUTORS = 3
NAMES = [f"w{number}" for number in range(EXECUTORS)]
SCALE = 100.0


class Cluster:
    """A Dask scheduler and workers that are replaced when they die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._scheduler = self._start(["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "s.json"])
        while not (folder / "s.json").is_file():
            time.sleep(0.05)
        self.address: str = msgspec.json.decode((folder / "s.json").read_bytes())["address"]
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        options = ["--name", name, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        self.workers[name] = self._start(["worker", self.address, *options, "--local-directory", str(self._folder)])

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{argv[0]}", *argv[1:]]
        with (self._folder / "log").open("ab") as log:
            environment = {**TUNED, "PYTHONPATH": str(Path.cwd())}
            return subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log)

    def stop(self) -> None:
        for process in (*self.workers.values(), self._scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("dask"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def controller_url() -> Iterator[str]:
    with running("controllers.server", ControllerConfig(host="127.0.0.1", task="cjs", policies=("fair",))) as process:
        yield f"http://127.0.0.1:{process.line()['port']}"


@pytest.fixture(scope="module")
def jobs() -> Workload:
    return draw_workload(3, 10.0, 2, load_profiles())


@contextlib.contextmanager
def driving(cluster: Cluster, controller_url: str, jobs: Workload, scale: float = SCALE) -> Iterator["subprocess.Popen[bytes]"]:
    config = DriverConfig(
        trial_id="t0",
        scheduler=cluster.address,
        executors=tuple(ExecutorPlace(name=name) for name in NAMES),
        controller_url=controller_url,
        policy="fair",
        seed=1,
        session=CjsSession("t0", EXECUTORS),
        workload=jobs,
        time_scale=scale,
        bytes_scale=0.01 / scale,
        deadline_s=1.0,
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "testbed.execution.process"], env=TUNED, **pipes) as process:  # type: ignore[call-overload]
        try:
            process.stdin.write(msgspec.json.encode(config))
            process.stdin.close()
            yield process
        finally:
            process.kill()


def rows_of(process: subprocess.Popen[bytes], on_row=lambda row: None) -> list[Row]:
    rows = []
    for line in process.stdout:
        if line.strip():
            rows.append(msgspec.json.decode(line, type=Row))
            on_row(rows[-1])
    assert process.wait() == 0
    return rows


def check_whole(rows: list[Row], jobs: Workload) -> ScheduleEndRow:
    end = rows[-1]
    assert isinstance(end, ScheduleEndRow)
    assert (end.end_reason, end.unfinished) == ("complete", 0)
    assert sorted(row.job for row in rows if isinstance(row, JobRow)) == list(range(len(jobs.jobs)))
    assert len({(row.job, row.stage, row.task) for row in rows if isinstance(row, TaskRow) and row.outcome == "done"}) == jobs.tasks
    return end


def test_jobs_run_on_dask_workers_and_what_they_exchange_travels(cluster, controller_url, jobs):
    with driving(cluster, controller_url, jobs) as process:
        rows = rows_of(process)
    end = check_whole(rows, jobs)
    assert isinstance(rows[0], ScheduleBeginRow)
    assert end.tasks == jobs.tasks
    assert end.shuffled_bytes == sum(row.size_bytes for row in rows if isinstance(row, TransferRow)) > 0
    tasks = [row for row in rows if isinstance(row, TaskRow)]
    assert {row.executor for row in tasks} == set(range(EXECUTORS))
    assert all(row.end_s - row.start_s >= row.profiled_s - 1e-3 for row in tasks)


def test_a_driver_that_is_killed_leaves_the_cluster_to_the_next(cluster, controller_url, jobs):
    with driving(cluster, controller_url, jobs, scale=5.0) as process:
        begin(process)
        process.send_signal(signal.SIGKILL)
    with driving(cluster, controller_url, jobs) as process:
        check_whole(rows_of(process), jobs)


def test_a_driver_that_is_killed_or_ended_leaves_no_worker_occupied(cluster, controller_url, jobs):
    for number in (signal.SIGKILL, signal.SIGTERM):
        with driving(cluster, controller_url, jobs, scale=5.0) as process:
            begin(process)
            process.send_signal(number)
            process.wait(timeout=10)
        with Client(cluster.address, timeout="10s", set_as_default=False) as foreign:
            for address in foreign.scheduler_info()["workers"]:
                assert foreign.submit(os.getpid, workers=[address], pure=False).result(timeout=10), number


def begin(process: subprocess.Popen[bytes]) -> None:
    """Wait until a trial is under way."""
    while not (line := process.stdout.readline()).strip():  # type: ignore[union-attr]
        assert line, "the driver has ended"
    time.sleep(1.0)


async def test_what_a_worker_was_asked_fails_as_its_line_breaks():
    """Its other connections may take minutes to break, as behind a link that is cut."""
    cut, aborted = asyncio.Event(), asyncio.Event()

    class Peer:
        comms = (SimpleNamespace(abort=aborted.set),)

        async def cjs_stay(self) -> None:
            await cut.wait()
            raise CommClosedError

        async def cjs_run(self, **_: Any) -> None:
            await aborted.wait()
            raise CommClosedError

    async def identity(**_: Any) -> dict[str, Any]:
        return {"workers": {}}

    cluster = DaskCluster("", [ExecutorPlace(name="w0")], 1, "t0")
    future = SimpleNamespace(release=lambda: None)
    cluster._client = SimpleNamespace(scheduler=SimpleNamespace(identity=identity), submit=lambda *_, **__: future)  # type: ignore[assignment]
    reached = cluster._reached[0] = _Reached("tcp://127.0.0.1:1", "", "", "", 0.0)
    reached.rpc = Peer()  # type: ignore[assignment]
    lost: list[int] = []
    minding = asyncio.create_task(cluster._mind(0, lambda executor, reason: lost.append(executor), lost.append))
    running = asyncio.create_task(cluster.run(0, Bundle(1, 0, 0, 0.0, (1.0,), 0.0, ())))
    await asyncio.sleep(0)
    cut.set()
    with pytest.raises(ExecutorGone):
        await asyncio.wait_for(running, 2.0)
    assert lost == [0]
    minding.cancel()


async def test_the_offset_of_a_clock_is_that_of_the_quickest_answer():
    class Peer:
        waits_s: ClassVar = [0.0, 0.05, 0.0, 0.0, 0.1]

        async def cjs_ping(self) -> float:
            await asyncio.sleep(self.waits_s.pop())  # there and not back, as a connection's set-up
            return now_s() + 7.0

    assert await clock_offset_s(Peer()) == pytest.approx(7.0, abs=0.01)


def test_an_executor_whose_line_broke_is_back_though_its_process_is_the_same(cluster, controller_url, jobs):
    def cut(dask_worker: Worker) -> None:
        dask_worker.plugins[NAME]._line.comm.abort()

    def strike(row: Row) -> None:
        if isinstance(row, ScheduleBeginRow):
            time.sleep(1.0)
            with Client(cluster.address, timeout="10s", set_as_default=False) as foreign:
                (address,) = [address for address, worker in foreign.scheduler_info()["workers"].items() if worker["name"] == "w0"]
                foreign.run(cut, workers=[address])

    with driving(cluster, controller_url, jobs, scale=40.0) as process:
        rows = rows_of(process, strike)
    check_whole(rows, jobs)
    assert [(row.executor, row.what) for row in rows if isinstance(row, ExecutorRow)] == [(0, "lost"), (0, "joined")]


def test_workers_that_are_killed_or_hang_lose_no_job(cluster, controller_url, jobs):
    def strike(row: Row) -> None:
        if isinstance(row, ScheduleBeginRow):
            threading.Timer(0.8, cluster.workers["w0"].kill).start()
            threading.Timer(1.4, cluster.start, ["w0"]).start()
            threading.Timer(2.5, os.kill, [cluster.workers["w1"].pid, signal.SIGSTOP]).start()
        elif isinstance(row, ExecutorRow) and row.reason == HUNG:
            cluster.workers[NAMES[row.executor]].kill()
            cluster.start(NAMES[row.executor])

    with driving(cluster, controller_url, jobs, scale=40.0) as process:
        rows = rows_of(process, strike)
    end = check_whole(rows, jobs)
    lost = [(row.executor, row.reason == HUNG) for row in rows if isinstance(row, ExecutorRow) and row.what == "lost"]
    assert lost == [(0, False), (1, True)]
    assert {row.executor for row in rows if isinstance(row, ExecutorRow) and row.what == "joined"} >= {0}
    assert end.executors_lost == 2
    assert end.tasks_run_again > 0


def test_a_run_uses_somebody_s_cluster_and_leaves_it_as_it_was(cluster, tmp_path):
    command = [sys.executable, "-m", "testbed.cli", "--task", "cjs", "--cluster", cluster.address]
    command += ["--jobs", "2", "--executors", str(EXECUTORS), "--time-scale", "40"]
    options = ["--policies", "fair,fifo_half", "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=100, check=False)
    latest = tmp_path / "latest"
    summary = msgspec.json.decode((latest / "summary.json").read_bytes())
    assert summary["mode"] == "cluster", (done.stdout, done.stderr)
    trials = polars.read_parquet(latest / "trials.parquet")
    assert trials["end_reason"].to_list() == ["complete"] * 2, (done.stdout, done.stderr)
    assert trials["fidelity"].is_null().all() and (trials["simulated_jct_s"] > 0).all()
    assert polars.read_parquet(latest / "jobs.parquet").height == 4
    assert "executors over time" in (latest / "report.html").read_text()
    assert all(worker.poll() is None for worker in cluster.workers.values()), "its workers are not ours to end"
    with Client(cluster.address, timeout="10s", set_as_default=False) as foreign:
        plugins = foreign.run(lambda dask_worker: sorted(dask_worker.plugins) + sorted(dask_worker.handlers))
    assert len(plugins) == EXECUTORS and not any("cjs" in name for names in plugins.values() for name in names)
