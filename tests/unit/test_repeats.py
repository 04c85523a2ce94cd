"""Trials whose link failed are played once more at the end of a run: which, how often, and what counts of them."""

import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from fake_run import FakeRun
from rich.console import Console

from controllers.api import Manifest
from testbed.abr import PreparedPlaybacks, job
from testbed.cjs_cluster import path_facts
from testbed.emulation import Emulation, emulated
from testbed.errors import UserError
from testbed.events import Run, read_run
from testbed.lane import LanePlayer, WaitingTrials
from testbed.link import LinkReport, Punctuality, RateError
from testbed.live import LiveView
from testbed.policycards import PolicyCard
from testbed.recorder import Recorder, twins
from testbed.records import PlaybackEndRow
from testbed.report.summary import summarise
from testbed.results import ResultFolder
from testbed.spec import Experiment
from testbed.stats import compare, last_attempts
from testbed.trial import plan
from testbed.twin import simulate
from traces.trace import RateTrace

VIDEO = Manifest("toy", 4.0, (300_000, 750_000), ((150_000, 375_000),) * 4)
TRACES = [RateTrace(f"steady {mbps}", (0.0, 60.0), (mbps * 1e6,)) for mbps in (2.0, 1.0)]
POLICIES = ("fixed+level=0", "fixed+level=1")
LATE, OFF = {"punctuality": {"down": Punctuality(1000, p99_s=0.007)}}, {"rate_errors": {"down": RateError(4.0, 100.0, 60.0)}}


def report(trial_id: str, **changes) -> LinkReport:
    """A link's that passes, but for the changes."""
    good = {
        "started_at": 1.0,
        "windows": (),
        "lateness": (),
        "punctuality": {"down": Punctuality(97, p50_s=1e-5, p99_s=1e-4, max_s=1e-3)},
        "packets_in": 100,
        "packets_out": 97,
        "packets_inside": 0,
        "drops": {"queue": 3},
        "uncounted_losses": 0,
        "rate_errors": {"down": RateError(0.1, 100.0, 60.0)},
        "trace_wraps": 0,
        "realtime": True,
        "notes": ("a note",),
    }
    return LinkReport(trial_id=trial_id, **{**good, **changes})


class Link:
    """Reports what the test wants of a trial."""

    def __init__(self, faults: dict[str, dict]) -> None:
        self.faults = faults
        self.loaded: list[tuple] = []

    def load(self, trace, offset_s, trial_id, **others) -> None:
        self.loaded.append((trace.name, offset_s, trial_id))

    def stop(self) -> LinkReport:
        trial_id = self.loaded[-1][2]
        return report(trial_id, **self.faults.get(trial_id, {}))


class FakeLane(LanePlayer):
    """Plays in the simulator; players of the trials in `dying` die."""

    def __init__(self, link: Link, prepared: PreparedPlaybacks, dying: tuple[str, ...] = ()) -> None:
        super().__init__(SimpleNamespace(index=0, link=link), prepared, SimpleNamespace(restarts=0), Path())
        self.prepared, self.dying = prepared, dying

    def _origin_serves(self, recorder: Recorder) -> bool:
        return True

    def _playback(self, trial, recorder: Recorder) -> tuple[int, str]:
        rows = list(simulate(job(self.prepared, trial)))
        for row in rows:
            if trial.trial_id not in self.dying or not isinstance(row, PlaybackEndRow):
                recorder.row(row)
        return 4, "the player ended with code -9" if trial.trial_id in self.dying else ""


def played(folder: Path, faults: dict[str, dict], repeats: int = 1, dying: tuple[str, ...] = ()) -> tuple[Run, Recorder, Link, str]:
    """An emulated run of four trials in one lane, whose link has faults in some of them."""
    experiment = Experiment(policies=",".join(POLICIES), trials=2, chunks=4, repeats=repeats)
    trials = plan(experiment, POLICIES, TRACES)
    cards = tuple(PolicyCard(name, name, "#777777", "", name) for name in POLICIES)
    prepared = PreparedPlaybacks(experiment, cards, (), trials, (), VIDEO)
    said, link = Console(file=io.StringIO(), width=200), Link(faults)
    header = msgspec.structs.replace(FakeRun().header(), policies={name: {} for name in POLICIES})
    results = ResultFolder.create(folder, header, datetime(2026, 11, 23, tzinfo=UTC))
    with LiveView(len(trials), experiment.chunks, said) as view:
        recorder = Recorder(prepared, results, view)
        controller = SimpleNamespace(watch=lambda: "")
        Emulation(trials, [FakeLane(link, prepared, dying)], controller, {}, folder).run(recorder)
        results.extend(twins(prepared, recorder.played))
    results.finish()
    return read_run(results.path), recorder, link, said.file.getvalue()


@pytest.mark.parametrize("fault", [LATE, OFF, {"uncounted_losses": 2}, {"punctuality": {"up": Punctuality(1000, late=99)}}])
def test_a_trial_whose_link_failed_is_played_again_at_the_end_and_counts_then(tmp_path: Path, fault: dict) -> None:
    run, recorder, link, said = played(tmp_path, {"t0001": fault})
    assert [trial.trial_id for trial in run.trials] == ["t0000", "t0001", "t0002", "t0003", "t0001r1"]
    first, again = run.trials[1], run.trials[4]
    assert (first.valid, first.attempt, first.fidelity) == (False, 1, "fail")
    assert (again.valid, again.attempt, again.fidelity) == (True, 2, "pass")
    same = ("policy", "trace", "trace_sha256", "offset_s", "seed", "qoe")
    assert [getattr(first, name) for name in same] == [getattr(again, name) for name in same]
    assert link.loaded[-1] == ("steady 2.0", 0.0, "t0001r1")
    assert recorder.closed == 4
    assert set(run.tables["chunks"]["trial_id"]) == {trial.trial_id for trial in run.trials}
    summary = summarise(run)
    policy = summary["policies"]["fixed+level=1"]
    other = next(trial for trial in run.trials[2:4] if trial.policy == first.policy)
    assert (policy["trials"], policy["invalid"], policy["mean"]) == (2, 0, pytest.approx((other.qoe + again.qoe) / 2))
    assert (summary["fidelity"]["verdict"], summary["fidelity"]["repeated"]) == ("pass", 1)
    assert "to be played again: " + first.invalid_reason in said and "invalid" not in said
    assert any(note.startswith("1 trial was played again") and first.invalid_reason in note for note in summary["notes"])


def test_pairs_are_whole_again_and_only_what_counts_has_a_twin(tmp_path: Path) -> None:
    run, recorder, *_ = played(tmp_path, {"t0001": LATE, "t0002": OFF})
    pair = compare(*POLICIES, run.trials)
    assert len(pair.differences) == 2
    assert {trial.trial_id for trial in last_attempts(run.trials)} == {"t0000", "t0001r1", "t0002r1", "t0003"} == set(recorder.played)
    assert {trial.trial_id for trial in run.trials if trial.simulated_qoe is not None} == set(recorder.played)
    assert all(trial.simulated_qoe == pytest.approx(trial.replayed_qoe) for trial in last_attempts(run.trials))


@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_a_link_that_always_fails_is_given_up_after_so_many_repeats(tmp_path: Path, repeats: int) -> None:
    ids = ["t0001", *(f"t0001r{n}" for n in range(1, 9))]
    run, recorder, *_ = played(tmp_path, dict.fromkeys(ids, LATE), repeats)
    attempts = [trial for trial in run.trials if trial.trial_id.startswith("t0001")]
    assert [trial.trial_id for trial in attempts] == ids[: repeats + 1]
    assert [trial.attempt for trial in attempts] == list(range(1, repeats + 2))
    assert recorder.closed == 4
    summary = summarise(run)
    assert (summary["policies"]["fixed+level=1"]["trials"], summary["policies"]["fixed+level=1"]["invalid"]) == (2, 1)
    assert (summary["fidelity"]["verdict"], summary["fidelity"]["repeated"]) == ("fail", repeats)


def test_a_trial_whose_player_failed_is_not_played_again(tmp_path: Path) -> None:
    """Whatever its link did."""
    run, *_ = played(tmp_path, {"t0001": LATE}, dying=("t0001", "t0002"))
    assert [trial.trial_id for trial in run.trials] == ["t0000", "t0001", "t0002", "t0003"]
    assert [trial.valid for trial in run.trials] == [True, False, False, True]
    assert "the player ended with code -9" in run.trials[2].invalid_reason and "lateness" in run.trials[1].invalid_reason


def test_what_the_link_and_the_host_did_is_in_the_trials_row(tmp_path: Path) -> None:
    run, *_ = played(tmp_path, {})
    trial = run.trials[0]
    assert (trial.packets_in, trial.packets_out, trial.link_notes) == (100, 97, "a note")
    assert trial.drops is not None and (trial.drops.queue, trial.drops.loss) == (3, 0)
    assert (trial.lateness_ms_p50, trial.lateness_ms_max) == (pytest.approx(0.01), pytest.approx(1.0))
    assert trial.began_at_s is not None and trial.ended_at_s is not None and trial.began_at_s < trial.ended_at_s
    assert run.tables["trials"].unnest("drops")["queue"].to_list() == [3] * 4


def test_a_trials_row_has_what_its_link_measured(tmp_path: Path) -> None:
    measured = {"stalled_s": 0.03, "max_stall_s": 0.02, "punctuality": {"down": Punctuality(1000, late=5), "up": Punctuality(100, late=1)}}
    run, *_ = played(tmp_path, {"t0002": measured})
    row = run.trials[2]
    assert (row.stalled_ms, row.max_stall_ms, row.late_packets, row.late_share) == (30, 20, 6, 0.01)
    facts = path_facts({"e0": report("t"), "e1": report("t", **measured)}, "cubic")
    assert (facts.stalled_ms, facts.max_stall_ms, facts.late_packets, facts.late_share) == (30, 20, 6, 0.01)


def test_repeats_join_the_end_of_the_queue() -> None:
    """A lane that ends a trial goes on with what waits before it plays that trial again."""
    experiment = Experiment(policies=",".join(POLICIES), trials=2, chunks=4)
    trials = plan(experiment, POLICIES, TRACES)
    order = []

    class Lane(FakeLane):
        def _play(self, trial, recorder):
            order.append(trial.trial_id)
            return trials[0] if len(order) == 1 else None

    prepared = PreparedPlaybacks(experiment, (), (), trials, (), VIDEO)
    Lane(Link({}), prepared).play_all(WaitingTrials(trials), SimpleNamespace(started=lambda *_: None))
    assert order == ["t0000", "t0001", "t0002", "t0003", "t0000"]


def test_a_run_over_a_trace_that_is_too_long_for_a_link_never_begins(monkeypatch):
    monkeypatch.setattr("testbed.link.MOST_NUMBERS", 6)
    down, up = RateTrace("down", (0.0, 60.0), (1e6,)), RateTrace("up", (0.0, 10.0, 20.0, 60.0), (1e6, 2e6, 3e6))
    experiment = Experiment(policies=",".join(POLICIES))
    prepared = PreparedPlaybacks(experiment, (), (), plan(experiment, POLICIES, [down], [up]), (), VIDEO)
    with pytest.raises(UserError, match="trace up: has 7 times"), emulated(prepared):
        pass


def test_of_links_that_failed_together_the_worst_is_told():
    good, stood, late = report("t"), report("t", stalled_s=9.0), report("t", stalled_s=9.0, **LATE)
    facts = path_facts({"e0": good, "e1": stood, "e2": late}, "cubic")
    assert [reason.split(" is ")[0].split(" for ")[0] for reason in facts.reasons] == [
        "link of e2: lateness p99",
        "link of e2: the emulator stood still",
        "other links that failed: 1",
    ]
    assert facts.fidelity == "fail"
    assert path_facts({"e0": good}, "cubic").reasons == ()
