"""A simulated experiment from the command line: the same records as an emulated one, and run again from anywhere."""

import json
from pathlib import Path

import polars
import pytest

from players.media import load_manifest
from testbed.cli import main
from testbed.errors import TestbedError

MINE = """
from controllers.api import AbrPolicy

class Mine(AbrPolicy):
    label = "Mine"
    def decide(self, observation):
        return observation.video.highest_level_below(0.8 * observation.history[-1].throughput_bps)
"""


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a policy and a trace, which is where they work."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.py").write_text(MINE)
    (work / "step.txt").write_text("".join(f"{second} {1 + second // 150}\n" for second in range(0, 301, 5)))
    monkeypatch.chdir(work)
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "numba"))  # compiled once for all tests
    return work


def trials(results: Path) -> polars.DataFrame:
    return polars.read_parquet(results / "latest" / "trials.parquet")


def test_records_of_a_simulated_run(folder: Path) -> None:
    assert main(["--simulate", "--trace", "step.txt", "--policies", "mine.py,bba", "--seeds", "1,2", "--offset-s", "400"]) == 0
    summary = json.loads((folder / "results" / "latest" / "summary.json").read_text())
    assert (summary["mode"], summary["trace"]["source"], summary["trace"]["traces"]) == ("simulation", "path", 1)
    assert {name: policy["trials"] for name, policy in summary["policies"].items()} == {"mine": 2, "bba": 2}
    assert summary["policies"]["mine"]["decisions"] == 94
    assert summary["policies"]["mine"]["policy_ms"] == summary["policies"]["mine"]["decision_ms"]
    rows = trials(folder / "results")
    assert set(rows["offset_s"]) == {400.0}
    assert rows["valid"].all()
    assert rows.filter(polars.col("policy") == "mine")["qoe"].n_unique() == 1


def test_the_offline_optimum_is_above_all_and_found_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--simulate", "--trace", "step.txt", "--policies", "mine.py,bba", "--offset-s", "7"]
    assert main(command) == 0
    first = json.loads((folder / "results" / "latest" / "summary.json").read_text())
    rows = trials(folder / "results")
    assert rows["optimum_qoe"].n_unique() == 1 and (rows["qoe"] <= rows["optimum_qoe"] + 1e-9).all()
    assert first["optimum"]["mean"] == rows["optimum_qoe"][0] and first["optimum"]["n"] == 1
    assert all(0 < policy["share_of_optimum"] < 1 for policy in first["policies"].values())
    assert "Gap to the offline optimum" in (folder / "results" / "latest" / "report.html").read_text()
    said = capsys.readouterr().out
    assert "finding the offline optimum of 1 trace" in said and "knows the whole trace" in said
    (entry,) = (tmp_path / "cache" / "optimum").iterdir()
    made_ns = entry.stat().st_mtime_ns
    assert main(command) == 0
    assert json.loads((folder / "results" / "latest" / "summary.json").read_text())["optimum"] == first["optimum"]
    assert entry.stat().st_mtime_ns == made_ns


@pytest.mark.parametrize(
    ("error", "code", "note"),
    [
        (TestbedError("no worker"), 0, "1 of 1 traces have no offline optimum: no worker."),
        (KeyboardInterrupt(), 130, "The run ended early (interrupted): the numbers are of the 1 trials that ended."),
    ],
)
def test_trials_stand_without_the_optimum(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, note: str
) -> None:
    def fail(jobs: object, on_row: object, silence_s: object) -> None:
        raise error

    monkeypatch.setattr("testbed.optima.simulate", fail)
    assert main(["--simulate", "--trace", "step.txt", "--policies", "bba"]) == code
    summary = json.loads((folder / "results" / "latest" / "summary.json").read_text())
    assert (summary["policies"]["bba"]["trials"], summary["policies"]["bba"]["invalid"], summary["optimum"]) == (1, 0, None)
    assert note in summary["notes"]
    assert not (tmp_path / "cache").exists() and trials(folder / "results")["valid"].all()


def test_experiment_toml_runs_again_from_another_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    movie = {"segment_duration_ms": 1500, "bitrates_kbps": [400, 3000], "segment_sizes_bits": [[600_000, 4_500_000]] * 8}
    (folder / "movie.json").write_text(json.dumps(movie))
    assert main(["--simulate", "--trace", "step.txt", "--policies", "mine.py,fixed+level=1", "--chunks", "7", "--video", "movie.json"]) == 0
    video = json.loads((folder / "results" / "latest" / "summary.json").read_text())["video"]
    assert video == {"name": "movie", "sha256": load_manifest("movie.json").sha256}
    monkeypatch.chdir(tmp_path)
    assert main(["--spec", str(folder / "results" / "latest" / "experiment.toml"), "--out", "again"]) == 0
    columns = ["policy", "trace_sha256", "offset_s", "seed", "qoe", "chunks"]
    assert trials(tmp_path / "again").select(columns).equals(trials(folder / "results").select(columns))
    assert json.loads((tmp_path / "again" / "latest" / "summary.json").read_text())["video"] == video


def test_a_trace_named_twice_counts_once(folder: Path) -> None:
    assert main(["--simulate", "--trace", "step.txt", "--trace", "./step.txt", "--policies", "bba"]) == 0
    assert trials(folder / "results").height == 1
    trace = json.loads((folder / "results" / "latest" / "summary.json").read_text())["trace"]
    assert (trace["name"], trace["split"]) == ("step.txt", "")


def test_a_folder_that_policies_can_not_name_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its `experiment.toml` could not be run again."""
    (folder / "mine, too").mkdir()
    (folder / "mine, too" / "mine.py").write_text(MINE)
    monkeypatch.chdir(folder / "mine, too")
    assert main(["--simulate", "--trace", "../step.txt", "--policies", "mine.py"]) == 2
    assert "policy 'mine' is" in (said := capsys.readouterr().err) and "has a comma" in said and said.count("\n") == 1
    assert not Path("results").exists()


def test_a_decision_that_no_player_waits_for_is_told(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\n" + MINE.replace("        return", "        time.sleep(0.03)\n        return"))
    assert main(["--simulate", "--trace", "step.txt", "--policies", "slow.py,bba", "--chunks", "4", "--deadline-ms", "20"]) == 0
    notes = json.loads((folder / "results" / "latest" / "summary.json").read_text())["notes"]
    assert "3 of 3 decisions of slow took longer than the deadline, 20 ms: in real time they would be fallbacks." in notes
    assert not any("of bba" in note for note in notes)


def test_who_plays_what_it_learnt_from_is_named(folder: Path) -> None:
    assert main(["--simulate", "--trace", "fcc/valid", "--policies", "pensieve,bba", "--trials", "1", "--chunks", "4"]) == 0
    notes = json.loads((folder / "results" / "latest" / "summary.json").read_text())["notes"]
    assert "learnt from fcc/valid, or chosen on it, which flatters (not weights of your own): pensieve" in notes


def test_a_folder_of_traces_may_hold_a_readme_and_its_folders_are_named(folder: Path) -> None:
    (folder / "mine" / "deeper").mkdir(parents=True)
    (folder / "mine" / "README.md").write_text("# Mine\n")
    (folder / "mine" / "a.csv").write_text("time_s,rate_mbps\n100,2\n200,1\n")
    (folder / "mine" / "deeper" / "b.csv").write_text("time_s,rate_mbps\n100,2\n")
    assert main(["--simulate", "--trace", "mine", "--policies", "bba,rate", "--chunks", "4"]) == 0
    summary = json.loads((folder / "results" / "latest" / "summary.json").read_text())
    assert summary["trace"]["traces"] == 1
    assert "mine: the files in it are read, not its folders (deeper)" in summary["notes"]


def test_brackets_in_names_of_folders_are_told_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The terminal's markup is in brackets, too."""
    (folder / "day[/1]" / "deeper").mkdir(parents=True)
    (folder / "day[/1]" / "step.txt").write_text((folder / "step.txt").read_text())
    assert main(["--simulate", "--trace", "day[/1]", "--policies", "bba", "--chunks", "4", "--out", "found[/1]"]) == 0
    made = (folder / "found[/1]" / "latest").resolve().relative_to(folder)
    said = capsys.readouterr().out
    assert f"results: {made}  (report: {made}/report.html)" in said
    assert "note: day[/1]: the files in it are read, not its folders (deeper)" in said
    assert main(["report", str(made)]) == 0
    assert f"report: {made}/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["doctor", "list", "clean", "report"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as end:  # tyro's own
        assert end.code == 0
    assert "run.py" in capsys.readouterr().out
