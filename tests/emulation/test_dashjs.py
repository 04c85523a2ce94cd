"""dash.js in Chromium on emulated links, as a user runs it: twelve chunks, the same records, beside one of its own rules."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars
import pytest
from test_run import events, nothing_left, ours, sound, start, trace, trials_of, wait_for

from testbed.netns.owned import STATE_DIR
from testbed.setup import dashjs, encode

__all__ = ["nothing_left", "trace"]
pytestmark = [
    pytest.mark.emulation,
    pytest.mark.browser,
    pytest.mark.skipif(not (dashjs.fetched() and encode.made()), reason="needs dash.js and the film: scripts/setup browser"),
]
CHUNKS = 12


def test_twelve_chunks_on_an_emulated_link(tmp_path: Path, trace: Path) -> None:
    arguments = ["--player", "dashjs", "--policies", "bba,dashjs_dynamic", "--chunks", str(CHUNKS), "--trials", "1", "--show"]
    process = start(tmp_path, trace, *arguments)
    out, errors = process.communicate(timeout=110)
    assert process.returncode == 0, (out, errors)
    folder = tmp_path / "results" / "latest"
    trials = trials_of(tmp_path)
    assert trials["policy"].to_list() == ["bba", "dashjs_dynamic"]
    assert [sound(trials, row) for row in range(2)] == [True, True], trials["invalid_reason"].to_list()
    assert trials["chunks"].to_list() == [CHUNKS] * 2 and trials["decisions"].to_list() == [CHUNKS - 1] * 2
    assert trials["fallbacks"].to_list() == [0, 0]
    assert trials["simulated_qoe"].is_null().to_list() == [False, True] and trials["replayed_qoe"].null_count() == 0
    chunks = polars.read_parquet(folder / "chunks.parquet")
    links = polars.read_parquet(folder / "links.parquet")
    for trial_id in trials["trial_id"]:
        media = chunks.filter(polars.col("trial_id") == trial_id)["size_bytes"].sum()
        carried = links.filter((polars.col("trial_id") == trial_id) & (polars.col("direction") == "down"))["delivered_bytes"].sum()
        assert media < carried < 1.1 * media, "headers, and neither page nor decisions, on top"
        assert (folder / "browser" / f"{trial_id}.png").read_bytes().startswith(b"\x89PNG")
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert sum(request["started"] for request in requests) == 2
    assert "dash.js dynamic" in (folder / "report.html").read_text()
    assert "live: http://127.0.0.1:" in out


def test_a_browser_killed_mid_trial_costs_that_trial_only(tmp_path: Path, trace: Path) -> None:
    arguments = ["--player", "dashjs", "--policies", "fixed+level=0", "--chunks", "4", "--trials", "1", "--seeds", "1,2", "--parallel", "1"]
    process = start(tmp_path, trace, *arguments)
    wait_for(process, tmp_path, "chunk", 1)
    for pid, command in ours().items():
        if "chromium" in command and "--type=" not in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (out, errors)
    trials = trials_of(tmp_path)
    assert trials["end_reason"].to_list() == ["browser_crashed", "complete"]
    assert not trials["valid"][0] and "browser_crashed" in trials["invalid_reason"][0] and sound(trials, 1)
    assert events(tmp_path)[-1]["reason"] == "complete"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_early_leaves_no_profile_of_its_browser(tmp_path: Path, trace: Path, number: int) -> None:
    before = set(Path("/tmp").glob("*hromium*")) | set(Path("/tmp").glob("netllm-browser-*"))
    process = start(tmp_path, trace, "--player", "dashjs", "--policies", "bba", "--chunks", "48", "--trials", "1")
    wait_for(process, tmp_path, "chunk", 2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        subprocess.run([sys.executable, "-m", "testbed.cli", "clean"], check=True, timeout=60, capture_output=True)
    else:
        assert process.returncode == 130, (out, errors)
        ends = [event for event in events(tmp_path) if event["event"] == "playback_end"]
        assert [end["end_reason"] for end in ends] == ["interrupted"]
    left = (set(Path("/tmp").glob("*hromium*")) | set(Path("/tmp").glob("netllm-browser-*"))) - before
    assert left == set() and [path.name for path in STATE_DIR.iterdir()] == ["lock"]


@pytest.mark.parametrize("arguments", [["--simulate"], []], ids=["simulated", "headless"])
def test_a_rule_of_the_browser_needs_the_browser(tmp_path: Path, trace: Path, arguments: list[str]) -> None:
    process = start(tmp_path, trace, "--policies", "dashjs_bola", *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "decides inside the browser, wanted --player dashjs" in errors and errors.count("\n") == 1
