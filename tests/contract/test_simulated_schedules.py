"""`--task cjs --simulate` from the command line: the same records as on a cluster, and run again from them."""

import json
from pathlib import Path

import polars
import pytest

from testbed.cli import main
from testbed.errors import UserError
from testbed.report.build import build
from traces import tpch
from traces.tpch import load_profiles

MINE = """
from controllers.api import DECLINE, CjsPolicy

class Never(CjsPolicy):
    label = "Never"
    def decide(self, observation):
        return DECLINE
"""
RUN = ["--task", "cjs", "--simulate", "--jobs", "3", "--executors", "5", "--seeds", "2,3"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    try:
        load_profiles()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_the_simulator_never_reads_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--policies", "fair,fifo_half", "--trace", "no_such_set", "--cc", "bogus", "--awake"]) == 0
    said = "the simulator leaves out --trace no_such_set, --cc bogus"
    out = capsys.readouterr().out
    assert f"note: {said}" in out and "workloads" in out
    latest = folder / "results" / "latest"
    assert said in json.loads((latest / "summary.json").read_text())["notes"]
    report = (latest / "report.html").read_text()
    assert "Round-trip time" not in report and "unknown" not in report and "Traces and their hashes" not in report


def test_records_of_simulated_schedules(folder: Path) -> None:
    assert main([*RUN, "--policies", "fair,fifo_half"]) == 0
    latest = folder / "results" / "latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert (summary["task"], summary["metric"], summary["unit"], summary["mode"]) == ("cjs", "avg_jct_s", "s", "simulation")
    assert summary["trace"]["traces"] == 2, "each seed draws a workload"
    fair = summary["policies"]["fair"]
    assert set(fair["components"]) == {"p50_jct_s", "p95_jct_s", "makespan_s", "busy_share", "shuffled_mb"}
    assert 0 < fair["components"]["busy_share"] <= 1
    tables = {path.stem: polars.read_parquet(path) for path in latest.glob("*.parquet")}
    assert tables["jobs"].height == 12 and tables["jobs"]["jct_s"].min() > 0
    jct_s = tables["jobs"].filter(polars.col("trial_id") == "t0000")["jct_s"].mean()
    assert jct_s == pytest.approx(tables["trials"].filter(polars.col("trial_id") == "t0000")["avg_jct_s"][0])
    work = tables["tasks"].group_by("trial_id").len()["len"].to_list()
    assert sorted(work) == sorted(2 * list(set(work))), "both policies run the same tasks"
    report = (latest / "report.html").read_text()
    assert "Distribution over jobs" in report and "Jobs in the system" in report and report.count("executors over time") == 4
    before = (latest / "summary.json").read_bytes()
    build(latest.resolve())
    assert (latest / "summary.json").read_bytes() == before
    assert main(["--spec", str(latest / "experiment.toml"), "--seeds", "2"]) == 0
    again = json.loads((latest / "summary.json").read_text())
    assert again["policies"]["fair"]["trials"] == 1


def test_without_decimas_profiles_our_own_stand_in_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tpch, "obtain", lambda name, root: (None, "no network"))
    tpch._load.cache_clear()
    latest = tmp_path / "results" / "latest"
    assert main([*RUN, "--policies", "fair,fifo_half"]) == 0
    stood_in = json.loads((latest / "summary.json").read_text())
    assert "stands in for Decima's" in " ".join(stood_in["notes"])
    trials = polars.read_parquet(latest / "trials.parquet")
    assert set(trials["trace"]) == {"tpch_own, 3 jobs, seed 2", "tpch_own, 3 jobs, seed 3"} and trials["valid"].all()
    assert 'workload = "tpch_own"' in (latest / "experiment.toml").read_text()
    assert main([*RUN, "--policies", "fair,fifo_half", "--workload", "tpch_own"]) == 0
    asked_for = json.loads((latest / "summary.json").read_text())
    assert asked_for["policies"]["fair"]["mean"] == stood_in["policies"]["fair"]["mean"]
    assert "stands in" not in " ".join(asked_for["notes"])
    tpch._load.cache_clear()


def test_a_policy_that_declines_for_ever_is_named_and_no_average(folder: Path) -> None:
    (folder / "never.py").write_text(MINE)
    assert main([*RUN, "--policies", "never.py"]) == 1  # not one policy finished
    trials = polars.read_parquet(folder / "results" / "latest" / "trials.parquet")
    assert trials["end_reason"].to_list() == ["starved"] * 2 and not trials["valid"].any()
    assert json.loads((folder / "results" / "latest" / "summary.json").read_text())["policies"]["never"]["mean"] is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "cjs", "--executors", "0"], "--executors is 0"),
        (["--task", "cjs", "--time-scale", "0"], "--time-scale is 0"),
        (["--task", "cjs", "--interarrival", "-1"], "--interarrival is -1"),
        (["--cluster", "tcp://127.0.0.1:1"], "--cluster is"),
        (["--task", "cjs", "--simulate", "--policies", "bba"], "policy 'bba' is unknown"),
    ],
)
def test_what_can_not_be_meant_is_one_sentence(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "valid", "said"),
    [
        ("CjsAction(stage, np.int64(1))", True, ""),
        ("CjsAction(stage, 1.0)", False, "policy answered CjsAction(stage="),
        ("CjsAction(stage, 99)", False, "wanted DECLINE, or a schedulable stage of"),
        ("None", False, "policy answered None, wanted DECLINE"),
    ],
)
def test_what_a_scheduler_may_answer(folder: Path, answer: str, valid: bool, said: str) -> None:
    """numpy's integers are numbers; anything else ends its own trial."""
    mine = "import numpy as np\nfrom controllers.api import CjsAction, CjsPolicy\n\nclass Mine(CjsPolicy):\n    label = 'Mine'\n"
    mine += f"    def decide(self, seen):\n        stage = np.flatnonzero(seen.schedulable)[0]\n        return {answer}\n"
    (folder / "mine.py").write_text(mine)
    assert main([*RUN, "--policies", "mine.py,fair"]) == 0
    rows = polars.read_parquet(folder / "results" / "latest" / "trials.parquet")
    assert rows.filter(polars.col("policy") == "fair")["valid"].all()
    own = rows.filter(polars.col("policy") == "mine")
    assert own["valid"].to_list() == [valid] * 2 and all(said in reason for reason in own["invalid_reason"])
