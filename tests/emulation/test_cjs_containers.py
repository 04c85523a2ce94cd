"""Executors in Docker containers on a real engine: jobs are done, the memory limit holds, and nothing stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import descendants, interfaces, schedules_begun, start_schedules

from testbed.bench.cjs_faults import CjsFaultsSettings, injected
from testbed.docker import docker, engine_fault
from testbed.netns.owned import TOKEN_VARIABLE
from testbed.setup import native

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not native.built(), reason="the relay in C is not built here: scripts/setup does it where there is a C compiler"),
    pytest.mark.skipif(not shutil.which("dockerd"), reason="there is no Docker engine here: scripts/setup ci installs one"),
]
SMALL = ["--jobs", "2", "--executors", "3", "--time-scale", "20", "--repeats", "0", "--policies", "fair", "--containers", "always"]
START_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    """An engine of our own, without network and with all it keeps in a folder that goes; or the one that runs here."""
    if not engine_fault():
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))  # short: a socket's path has 108 characters at most
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = f"unix://{folder}/socket"
    quiet = ["--iptables=false", "--bridge=none", "--storage-driver=vfs"]
    places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", f"--host=unix://{folder}/socket"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["dockerd", *quiet, *places], stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_S
        while (fault := engine_fault()) and time.monotonic() < deadline_s and process.poll() is None:
            time.sleep(0.2)
        if fault:
            last = ((folder / "log").read_text().strip().splitlines() or ["it said nothing"])[-1]
            pytest.skip(f"a Docker engine does not start here: {last[:300]}")
        yield
    finally:
        process.terminate()
        process.wait(30)
        if before is None:
            del os.environ["DOCKER_HOST"]
        shutil.rmtree(folder, ignore_errors=True)


def left() -> tuple[list[str], dict[int, str]]:
    """Containers and processes of ours."""
    return docker("ps", "--all", "--filter", "label=netllm-testbed", "--format", "{{.Names}}").split(), descendants(TOKEN_VARIABLE)


def test_jobs_run_in_containers(tmp_path: Path, steps: Path) -> None:
    before = interfaces()
    out, errors = start_schedules(tmp_path, steps, *SMALL).communicate(timeout=200)
    summary = json.loads((tmp_path / "results" / "latest" / "summary.json").read_text())
    assert [policy["trials"] for policy in summary["policies"].values()] == [1], (out, errors)
    events = (tmp_path / "results" / "latest" / "events.jsonl").read_text()
    assert "Docker containers" in events and '"end_reason":"complete"' in events, (out, errors)
    assert left() == ([], {}) and interfaces() == before


@pytest.mark.timeout(400)
def test_an_executor_that_is_killed_or_takes_too_much_memory_loses_no_job() -> None:
    struck = "none,executor killed,container out of memory,none again"
    settings = CjsFaultsSettings(jobs=1, executors=4, time_scale=6.0, containers="always", faults=struck)
    outcomes = {one.fault: one for one in injected(settings)}
    assert {one.row.end_reason for one in outcomes.values()} == {"complete"}
    assert len({one.tasks_done for one in outcomes.values()}) == 1
    assert [one.row.executors_lost for one in outcomes.values()] == [0, 1, 1, 0]
    assert "e1 ran out of memory and was replaced" in outcomes["container out of memory"].said
    assert [one.wrong for one in outcomes.values()] == [()] * 4
    assert left() == ([], {})


def test_a_run_that_is_killed_leaves_containers_that_clean_finds(tmp_path: Path, steps: Path) -> None:
    before = interfaces()
    process = start_schedules(tmp_path, steps, *SMALL)
    schedules_begun(tmp_path, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(left()[0]) >= 3, "the engine keeps what nobody ends"
    subprocess.run([sys.executable, "-m", "testbed.cli", "clean"], check=True, timeout=60, capture_output=True)
    assert left() == ([], {}) and interfaces() == before
