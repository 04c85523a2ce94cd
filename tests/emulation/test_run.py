"""The main job on real Mininet, as a user runs it: results, faults, and that nothing is left behind however it ends."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
from conftest import descendants, interfaces, network

from testbed.controller import Controller
from testbed.errors import TestbedError

pytestmark = [pytest.mark.emulation, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes network namespaces")]

CLI = [sys.executable, "-m", "testbed.cli"]
MINE = """
from controllers.api import AbrPolicy

class Mine(AbrPolicy):
    def decide(self, observation):
        return 3
"""
FAULTY = """
import time
from controllers.api import AbrPolicy

class Faulty(AbrPolicy):
    '''Right, late, outside the ladder, raising, in turn.'''
    def decide(self, observation):
        match observation.chunk_index % 4:
            case 1: return 1
            case 2: time.sleep(1.2)
            case 3: return 99
            case 0: raise RuntimeError("no idea")
        return 2
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """3 Mbit/s for five minutes."""
    path = tmp_path / "steady.txt"
    path.write_text("".join(f"{second} 3.0\n" for second in range(0, 301, 5)))
    return path


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """Its chunks take a quarter of a second to play, and as long on that trace, whatever their level: four decisions a second."""
    path = tmp_path / "movie.json"
    sizes = [700_000, 725_000, 750_000]
    path.write_text(json.dumps({"segment_duration_ms": 250, "bitrates_kbps": [300, 750, 1200], "segment_sizes_bits": [sizes] * 49}))
    return path


MARK = "TEST_RUN_MARK"
"""In the environment of each process that a test starts, with a value of its own: other runs on this machine are none of its business."""


def ours() -> dict[int, str]:
    """Processes of this test's runs, with their command lines."""
    return descendants(os.environ[MARK])


def pinned() -> set[str]:
    """Namespaces that would outlive their processes, being mounted somewhere."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[3] for line in lines if " - nsfs " in line}


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of the test's runs is left, and with them went their namespaces; nor is an interface in the root namespace."""
    monkeypatch.setenv(MARK, secrets.token_hex(16))
    before = interfaces(), pinned(), {}
    yield
    deadline_s = time.monotonic() + 5
    while (interfaces(), pinned(), ours()) != before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert (interfaces(), pinned(), ours()) == before


def start(folder: Path, trace: Path, *arguments: str) -> subprocess.Popen[str]:
    """The main job on `trace`, results in `folder`/results. Nothing is played twice, so that timing doesn't change the number of trials."""
    command = [*CLI, "--trace", str(trace), "--out", str(folder / "results"), "--repeats", "0", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def events(folder: Path) -> list[dict]:
    """Events of the newest run, as far as they are written."""
    path = folder / "results" / "latest" / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def wait_for(process: subprocess.Popen[str], folder: Path, kind: str, count: int = 1) -> None:
    """Wait until the run wrote `count` events of a kind."""
    deadline_s = time.monotonic() + 60
    while sum(event["event"] == kind for event in events(folder)) < count:
        if process.poll() is not None or time.monotonic() > deadline_s:
            pytest.fail(f"no {count} {kind} events; the run said: {process.communicate()}")
        time.sleep(0.05)


def processes(module: str) -> list[int]:
    """Pids of the run's `python -m module`."""
    return sorted(pid for pid, command in ours().items() if command.endswith(f"-m {module}") and "setpriv" not in command)


def controller_of(process: subprocess.Popen[str]) -> int:
    """The pid of the run's decision service."""
    found = processes("controllers.server")
    assert len(found) == 1, (found, process.poll())
    return found[0]


def another_controller(process: subprocess.Popen[str], before: int) -> int:
    """The pid of the decision service that took the place of `before`."""
    deadline_s = time.monotonic() + 10
    while not (found := [pid for pid in processes("controllers.server") if pid != before]):
        assert process.poll() is None and time.monotonic() < deadline_s, process.poll()
        time.sleep(0.01)
    return found[0]


def trials_of(folder: Path) -> polars.DataFrame:
    """The newest run's table of trials, in the order of the plan."""
    return polars.read_parquet(folder / "results" / "latest" / "trials.parquet").sort("trial_id")


def sound(trials: polars.DataFrame, row: int) -> bool:
    """Nothing but this machine's timing (the link's verdict on lateness) speaks against a trial."""
    reasons = [reason for reason in trials["invalid_reason"][row].split("; ") if reason]
    timing = ["late", "over 100 ms"]
    if (trials["worst_steal_share"][row] or 0) > 0:  # the host stopped the emulator, and the kernel saw it; else it stopped by itself
        timing.append("stood still")
    return trials["end_reason"][row] == "complete" and all(any(word in reason for word in timing) for reason in reasons)


def test_a_run_leaves_what_the_contract_says(tmp_path: Path, trace: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    process = start(tmp_path, trace, "--policies", f"bba,{mine}", "--chunks", "5", "--trials", "1", "--seeds", "1,2")
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (out, errors)
    folder = tmp_path / "results" / "latest"
    tables = {f"{name}.parquet" for name in ("trials", "chunks", "decisions", "links", "stalls", "host")}
    assert tables | {"experiment.toml", "events.jsonl", "report.html", "summary.json"} <= {path.name for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["version"], summary["task"], summary["mode"], summary["metric"]) == (1, "abr", "emulation", "qoe_lin")
    assert summary["trace"]["source"] == "path"
    assert set(summary["policies"]) == {"bba", "mine"}
    for policy in summary["policies"].values():
        assert policy["trials"] == 2
        assert policy["decisions"] <= 8 and policy["fallbacks"] == 0
    trials = polars.read_parquet(folder / "trials.parquet")
    assert trials.height == 4
    assert set(trials["end_reason"]) == {"complete"}
    assert set(trials["congestion_control"]) == {"cubic"}
    assert trials["uncounted_losses"].sum() == 0
    assert trials["simulated_qoe"].null_count() == 0
    assert (trials["optimum_qoe"].null_count(), trials["optimum_qoe"].n_unique()) == (0, 1)
    assert (trials.unnest("drops")["queue"] + trials["packets_out"] <= trials["packets_in"]).all()
    host = polars.read_parquet(folder / "host.parquet").sort("at_s")
    assert host["at_s"][0] - host["window_s"][0] < trials["began_at_s"].min() and host["at_s"][-1] > trials["began_at_s"].max()
    assert host["window_s"].sum() == pytest.approx(host["at_s"][-1] - host["at_s"][0] + host["window_s"][0])  # without a gap
    assert trials["steal_share"].null_count() == 0
    chunks = polars.read_parquet(folder / "chunks.parquet")
    assert chunks.height == 20
    assert set(chunks.filter(polars.col("index") > 0).join(trials, on="trial_id").filter(polars.col("policy") == "mine")["level"]) == {3}
    links = polars.read_parquet(folder / "links.parquet").join(trials.select("trial_id", "policy"), on="trial_id")
    assert links.filter(polars.col("delivered_bytes") > polars.col("allowed_bytes") + 1500).height == 0
    for sent, carried in zip(
        chunks.group_by("trial_id").agg(polars.col("size_bytes").sum()).sort("trial_id")["size_bytes"],
        links.group_by("trial_id").agg(polars.col("delivered_bytes").sum()).sort("trial_id")["delivered_bytes"],
        strict=True,
    ):
        assert sent < carried < 1.1 * sent  # headers, and nothing else, on top


def test_faulty_decisions_fall_back_and_say_why(tmp_path: Path, trace: Path, movie: Path) -> None:
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY)
    process = start(tmp_path, trace, "--policies", str(faulty), "--chunks", "9", "--deadline-ms", "500", "--video", str(movie))
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (out, errors)
    decisions = polars.read_parquet(tmp_path / "results" / "latest" / "decisions.parquet").sort("chunk_index")
    assert decisions["reason"].to_list() == ["", "late", "invalid", "error"] * 2
    assert decisions["source"].to_list() == ["policy", "fallback", "fallback", "fallback"] * 2
    trials = trials_of(tmp_path)
    assert trials["fallbacks"].to_list() == [6] and sound(trials, 0)
    summary = json.loads((tmp_path / "results" / "latest" / "summary.json").read_text())
    assert summary["policies"]["faulty"]["fallbacks"] == (6 if trials["valid"][0] else 0)  # of valid trials only


def test_a_killed_controller_is_restarted_and_the_players_go_on(tmp_path: Path, trace: Path, movie: Path) -> None:
    process = start(tmp_path, trace, "--policies", "fixed+level=2,bba", "--chunks", "48", "--video", str(movie))
    wait_for(process, tmp_path, "decision", 4)
    os.kill(controller_of(process), signal.SIGKILL)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (out, errors)
    trials = polars.read_parquet(tmp_path / "results" / "latest" / "trials.parquet")
    assert set(trials["end_reason"]) == {"complete"}
    assert trials["controller_restarts"].to_list() == [1, 1]
    decisions = polars.read_parquet(tmp_path / "results" / "latest" / "decisions.parquet")
    fallbacks = decisions.filter(polars.col("source") == "fallback")
    assert set(fallbacks["reason"]) <= {"unreachable", "error", "late"}
    assert fallbacks.height >= 1
    last = decisions.filter(polars.col("chunk_index") == 47)
    assert last["source"].to_list() == ["policy", "policy"]


def test_a_controller_killed_again_while_it_restarts_does_not_end_the_run(tmp_path: Path, trace: Path) -> None:
    process = start(tmp_path, trace, "--policies", "fixed+level=1", "--chunks", "8")
    wait_for(process, tmp_path, "decision", 2)
    pid = controller_of(process)
    os.kill(pid, signal.SIGKILL)
    for _ in range(5):
        pid = another_controller(process, pid)
        time.sleep(0.25)  # it imports: none of them gets ready
        os.kill(pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (out, errors)
    assert out.count("and was restarted") == 6
    assert trials_of(tmp_path)["end_reason"].to_list() == ["complete"]
    assert sound(trials_of(tmp_path), 0)
    assert trials_of(tmp_path)["controller_restarts"].to_list() == [6]
    decisions = polars.read_parquet(tmp_path / "results" / "latest" / "decisions.parquet")
    assert decisions.filter(polars.col("source") == "fallback").height >= 1
    assert decisions.filter(polars.col("chunk_index") == 7)["source"].to_list() == ["policy"]


def test_a_controller_that_hangs_while_it_loads_is_given_up_in_time(tmp_path: Path) -> None:
    policy = tmp_path / "slow.py"
    policy.write_text("import pathlib, time\nif pathlib.Path(__file__ + '.hang').exists(): time.sleep(600)\n" + MINE)
    with network(tmp_path / "state") as net:
        controller = Controller(net.popen_controller, [str(policy)], None, tmp_path, load_s=2)
        controller.launch()
        controller.wait_ready()
        (tmp_path / "slow.py.hang").touch()
        os.kill(processes("controllers.server")[0], signal.SIGKILL)
        notes: list[str] = []
        deadline_s = time.monotonic() + 20
        while len(notes) < 2 and time.monotonic() < deadline_s:
            begin_s = time.monotonic()
            notes += filter(None, [controller.watch()])
            assert time.monotonic() - begin_s < 1  # the players' lanes are watched from the same loop
            time.sleep(0.05)
        controller.stop()
        controller.launch()
        with pytest.raises(TestbedError, match="was not ready after 2 s"):
            controller.wait_ready()
        controller.stop()
    assert len(notes) == 2 and notes[0].endswith("and was restarted"), notes
    assert notes[1] == "the controller was not ready after 2 s and was restarted"


def test_a_lane_goes_on_when_its_origin_is_killed(tmp_path: Path, trace: Path) -> None:
    arguments = ["--policies", "fixed+level=0", "--chunks", "5", "--trials", "1", "--seeds", "1,2", "--parallel", "1"]
    process = start(tmp_path, trace, *arguments)
    wait_for(process, tmp_path, "chunk", 1)
    os.kill(processes("players.origin")[0], signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (out, errors)
    assert "the origin of lane 0 ended with code -9 and was restarted" in " ".join(out.split())
    trials = trials_of(tmp_path)
    assert trials["end_reason"].to_list() == ["origin_unreachable", "complete"]
    assert not trials["valid"][0]
    assert sound(trials, 1)


def test_a_player_that_is_stopped_or_killed_costs_its_trial_only(tmp_path: Path, trace: Path) -> None:
    arguments = ["--policies", "fixed+level=0", "--chunks", "5", "--trials", "1", "--seeds", "1,2,3", "--parallel", "1"]
    process = start(tmp_path, trace, *arguments)
    wait_for(process, tmp_path, "chunk", 1)
    os.kill(processes("players.headless")[0], signal.SIGSTOP)
    wait_for(process, tmp_path, "trial", 1)
    wait_for(process, tmp_path, "chunk", sum(event["event"] == "chunk" for event in events(tmp_path)) + 1)
    os.kill(processes("players.headless")[0], signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (out, errors)
    trials = trials_of(tmp_path)
    assert trials["end_reason"].to_list() == ["player_died", "player_died", "complete"]
    assert trials["valid"].to_list()[:2] == [False, False]
    assert sound(trials, 2)
    assert "the player was stopped by a signal" in trials["invalid_reason"][0]
    assert "the player ended with code -9" in trials["invalid_reason"][1]


def test_a_trial_is_played_again_when_its_link_stood_still(tmp_path: Path, trace: Path) -> None:
    process = start(tmp_path, trace, "--policies", "fixed+level=1", "--chunks", "6", "--trials", "1", "--repeats", "1")
    wait_for(process, tmp_path, "chunk", 2)
    relays = [pid for pid, command in ours().items() if "relay" in command]
    assert relays, ours()
    for number in 4 * (signal.SIGSTOP, signal.SIGCONT):
        for pid in relays:
            os.kill(pid, number)
        time.sleep(0.3)  # so long nothing leaves the link, and so long it does
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (out, errors)
    trials = trials_of(tmp_path)
    assert trials["trial_id"].to_list() == ["t0000", "t0000r1"] and trials["attempt"].to_list() == [1, 2]
    assert not trials["valid"][0] and "late" in trials["invalid_reason"][0] and trials["fidelity"][0] == "fail"
    assert trials["late_packets"][0] > 10 and trials["lateness_ms_max"][0] > 250
    assert trials["simulated_qoe"].is_null().to_list() == [True, False]
    assert sound(trials, 1)
    summary = json.loads((tmp_path / "results" / "latest" / "summary.json").read_text())
    assert summary["fidelity"]["repeated"] == 1 and summary["policies"]["fixed+level=1"]["trials"] == 1
    assert "1 trial was played again because the link failed" in " ".join(out.split())


def test_a_player_that_dies_before_its_config_is_replaced(tmp_path: Path, trace: Path) -> None:
    process = start(tmp_path, trace, "--policies", "bba", "--chunks", "2", "--trials", "1")
    deadline_s = time.monotonic() + 30
    while not (found := processes("players.headless")):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    os.kill(found[0], signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (out, errors)
    assert trials_of(tmp_path)["end_reason"].to_list() == ["complete"]
    assert sound(trials_of(tmp_path), 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_undoes_everything_and_keeps_its_results(tmp_path: Path, trace: Path, number: int, code: int) -> None:
    process = start(tmp_path, trace, "--policies", "bba,bola", "--chunks", "48")
    wait_for(process, tmp_path, "chunk", 4)
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == code, (out, errors)
    assert "Traceback" not in errors
    assert events(tmp_path)[-1]["event"] == "end"
    assert events(tmp_path)[-1]["reason"] == "interrupted"
    assert (tmp_path / "results" / "latest" / "report.html").stat().st_size > 0


def test_after_kill_9_clean_removes_the_rest_and_the_report_can_be_made(tmp_path: Path, trace: Path) -> None:
    process = start(tmp_path, trace, "--policies", "bba,bola", "--chunks", "48")
    wait_for(process, tmp_path, "chunk", 4)
    process.kill()
    process.communicate()
    assert subprocess.run([*CLI, "clean"], capture_output=True, text=True, check=False).returncode == 0
    again = subprocess.run([*CLI, "clean"], capture_output=True, text=True, check=False)
    assert "nothing to remove" in again.stdout
    made = subprocess.run([*CLI, "report", str(tmp_path / "results" / "latest")], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "results" / "latest" / "summary.json").exists()


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path, trace: Path) -> None:
    process = start(tmp_path, trace, "--policies", "bba", "--chunks", "48")
    wait_for(process, tmp_path, "chunk")
    (tmp_path / "second").mkdir()
    second = start(tmp_path / "second", trace, "--policies", "bba", "--chunks", "2")
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 2
    assert "another run is under way" in errors and errors.count("\n") == 1
    assert not (tmp_path / "second" / "results").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_without_root_it_is_refused_in_one_sentence(tmp_path: Path, trace: Path) -> None:
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *CLI, "--trace", str(trace), "--policies", "bba"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2, process.stderr
    assert "needs root" in process.stderr and process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--cc", "nonsense"], "congestion control 'nonsense' is not available"),
        (["--link", "kernel"], "netem"),
    ],
)
def test_what_the_host_cannot_give_is_one_sentence(tmp_path: Path, trace: Path, arguments: list[str], wanted: str) -> None:
    from testbed.shapers.kernel import netem_available

    if "kernel" in arguments and netem_available():
        pytest.skip("this host has netem")
    process = start(tmp_path, trace, "--policies", "bba", "--chunks", "2", *arguments)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert wanted in errors and errors.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_viewports_are_predicted_live(tmp_path: Path, trace: Path) -> None:
    """Two policies in two lanes: one holds the head's last position, one thinks of the opposite direction and so sees the lowest level."""
    behind = tmp_path / "behind.py"
    behind.write_text(
        "from controllers.api import VpPolicy\nimport numpy as np\n\n\nclass Behind(VpPolicy):\n    def decide(self, observation):\n"
        "        last = observation.history_deg[-1] + np.array([0.0, 0.0, 180.0])\n"
        "        return np.repeat(last[None], observation.session.horizon, axis=0)\n"
    )
    process = start(tmp_path, trace, "--task", "vp", "--policies", f"static,{behind}", "--chunks", "8", "--trials", "1")
    out, errors = process.communicate(timeout=100)
    if "viewports is not on this machine" in errors:
        pytest.skip(errors)
    assert process.returncode == 0, (out, errors)
    folder = tmp_path / "results" / "latest"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["task"], summary["mode"], summary["metric"], summary["unit"]) == ("vp", "emulation", "viewport_qoe", "per second")
    trials = trials_of(folder.parent.parent)
    assert all(sound(trials, row) for row in range(2)), trials["invalid_reason"].to_list()
    assert trials["viewer"].n_unique() == 1 and trials["fallbacks"].sum() == 0 and trials["decisions"].to_list() == [8, 8]
    static, opposite = (trials.filter(policy=name).to_dicts()[0] for name in ("static", "behind"))
    assert static["quality_mbps"] > 2 * opposite["quality_mbps"] > 0
    assert static["wasted_share"] < opposite["wasted_share"] and static["mae_deg"] < opposite["mae_deg"]
    segments, heads = (polars.read_parquet(folder / f"{name}.parquet") for name in ("segments", "heads"))
    assert (segments.height, heads.height) == (16, 80)
    carried = (
        polars.read_parquet(folder / "links.parquet").filter(direction="down").group_by("trial_id").agg(polars.col("delivered_bytes").sum())
    )
    for trial_id, size_bytes in segments.group_by("trial_id").agg(polars.col("size_bytes").sum()).iter_rows():
        delivered = carried.filter(trial_id=trial_id)["delivered_bytes"].item()
        assert size_bytes < delivered < 1.1 * size_bytes + 60_000  # headers, and the manifest
    page = (folder / "report.html").read_text()
    assert "Viewports over time" in page and page.count("predicted and actual viewport") == 2
