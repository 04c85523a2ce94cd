"""`run.py --task vp --simulate`, from the command line to the report: the predictions' error is that of `testbed.sim.vp`."""

import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from controllers.loader import load
from testbed import twin_vp, vp
from testbed.cli import main
from testbed.errors import UserError
from testbed.experiment import run
from testbed.sim.vp import measure
from testbed.spec import Experiment
from traces.viewport_splits import load_split
from traces.windows import RULES, cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three viewers of the test split."""
    try:
        load_split("test", fetch=False)
    except UserError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("results")
    experiment = Experiment(task="vp", policies="static,velocity", trials=3, simulate=True, out=str(out))
    run(experiment, Console(quiet=True))
    return out / "latest"


def test_the_error_of_each_viewer_is_that_of_the_suite(folder: Path) -> None:
    trials = pl.read_parquet(folder / "trials.parquet")
    assert trials["valid"].all() and len(trials) == 6
    for name in ("static", "velocity"):
        for viewer, mae_deg, decisions in trials.filter(policy=name).select("viewer", "mae_deg", "decisions").iter_rows():
            windows = cut([each for each in load_split("test") if each.user == viewer], RULES["figures"])
            assert mae_deg == pytest.approx(measure(load(name, "vp")(), windows).mae_deg.mean())
            assert decisions == len(windows)


def test_the_summary_and_the_report_say_so(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["task"], summary["metric"], summary["unit"], summary["mode"]) == ("vp", "mae_deg", "degrees", "simulation")
    static = summary["policies"]["static"]
    assert static["trials"] == 3 and static["invalid"] == 0 and static["mean"] == pytest.approx(static["components"]["mae_deg"])
    (pair,) = summary["comparisons"]
    assert {pair["a"], pair["b"]} == {"static", "velocity"}
    page = (folder / "report.html").read_text()
    assert "Viewport prediction" in page and "Distribution over predictions" in page and "viewers" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--horizon", "7"], "horizon"),
        (["--history", "0.3"], "history"),
        (["--policies", "statik"], "policy 'statik' is unknown"),
        (["--policies", "bba"], "policy 'bba' is unknown"),
    ],
)
def test_mistakes_are_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--task", "vp", "--simulate", "--out", str(tmp_path / "x"), *arguments]) == 2
    told = capsys.readouterr().err
    if "is not on this machine" in told:
        raise UserError(told)  # which skips the test where there are no data at all
    assert said in told


def test_policies_that_are_not_trained_are_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"mlp", "linear_l1", "static"} <= set(vp.default_policies())
    monkeypatch.setattr(vp, "NEEDS", {"netllm": "nowhere", "track": "nowhere"})
    assert vp.default_policies() == ["mlp", "linear_l1", "static"]


def test_a_policy_that_fails_ends_its_own_trial() -> None:
    job = twin_vp.ViewerJob(trial_id="t0", policy="static", seed=1, split="test", viewer=83, rule="figures", history_s=2.0, horizon_s=4.0)
    assert job.ended_early("it raised").end_reason == "it raised"
