"""dash.js's own rules as policies: named and shown like others, served by nobody, refused where no browser plays."""

import dataclasses
from pathlib import Path

import pytest

from players.dash.stock import STOCK
from testbed import recorder
from testbed.errors import UserError
from testbed.recorder import Played, twins
from testbed.spec import Experiment
from testbed.tasks import prepare
from testbed.trial import BROWSER_LANES, DEFAULT_LANES, lanes


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    trace = tmp_path / "steady.txt"
    trace.write_text("0 3.0\n60 3.0\n")
    policies = "bba,dashjs_bola,fixed+level=1"
    return Experiment(trace=(str(trace),), policies=policies, player="dashjs", video="synthetic", chunks=3, trials=1)


def test_they_stand_in_the_order_asked_for_with_labels_of_their_own(experiment):
    prepared = prepare(experiment)
    assert [card.name for card in prepared.policies] == ["bba", "dashjs_bola", "fixed+level=1"]
    assert prepared.policies[1].label == STOCK["dashjs_bola"].label
    assert prepared.experiment.policies == "bba,dashjs_bola,fixed+level=1", "the experiment can be run again"


@pytest.mark.parametrize("changes", [{"player": "headless"}, {"simulate": True}])
def test_without_a_browser_they_are_refused(experiment, changes):
    with pytest.raises(UserError, match="'dashjs_bola' with .* wanted --player dashjs"):
        prepare(dataclasses.replace(experiment, **changes))


def test_only_what_they_played_is_simulated(experiment, monkeypatch):
    prepared = prepare(experiment)
    asked = []
    monkeypatch.setattr(recorder, "simulate", lambda jobs, on_row: asked.extend((job.trial_id, job.levels) for job in jobs))
    monkeypatch.setattr(recorder, "_mean_qoe", lambda chunks: 1.0)
    played = {trial.trial_id: Played(trial, (0, 1, 2)) for trial in prepared.trials}
    found = {row.trial_id: row for row in twins(prepared, played)}
    own = next(trial.trial_id for trial in prepared.trials if trial.policy == "dashjs_bola")
    assert (found[own].qoe, found[own].replayed_qoe, found[own].parts_at_chunk) == (None, 1.0, None)
    assert (own, ()) not in asked and (own, (0, 1, 2)) in asked


def test_browsers_get_fewer_lanes(experiment):
    assert lanes(experiment, 4, 12) == BROWSER_LANES < DEFAULT_LANES
    assert lanes(dataclasses.replace(experiment, parallel=9), 4, 12) == 9


def test_there_is_no_live_page_of_a_simulation():
    with pytest.raises(UserError, match="--show is True, wanted false with --simulate"):
        Experiment(simulate=True, show=True)
