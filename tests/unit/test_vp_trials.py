"""The grid of live viewings: paired, and with viewings that last as long as the video."""

from pathlib import Path

import pytest

from testbed import vp
from testbed.errors import UserError
from testbed.records_vp import PredictionRow, SegmentRow, ViewingEndRow
from testbed.spec import Experiment
from testbed.trial import Trial
from testbed.vp import _broken_invariants, _grid
from tests.vp_cases import viewing
from traces.trace import RateTrace

TRACES = [RateTrace(f"steady {mbps}", (0.0, 60.0), (mbps * 1e6,)) for mbps in (2.0, 1.0)]


def grid(lengths: list[int], chunks: int, trials: int = 2, offset_s: float = 0.0):
    """On viewings of so many samples each, five a second; a chunk takes five."""
    viewings = [viewing(user=user, samples=samples) for user, samples in enumerate(lengths)]
    experiment = Experiment(task="vp", trace=("fcc",), chunks=chunks, trials=trials, seeds=(1,), offset_s=offset_s)
    return _grid(experiment, ["a", "b"], TRACES, (), viewings)


def test_policies_meet_the_same_viewing_and_none_is_too_short():
    cells = grid([99, 100, 99, 130, 60], chunks=20)
    assert [(cell.group, cell.policy) for cell in cells] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    users = [cell.viewing.user for cell in cells]
    assert users[0] == users[1] != users[2] == users[3]
    assert set(users) == {1, 3}


def test_an_offset_goes_to_both_links_as_it_is():
    cells = grid([100], chunks=20, offset_s=72.0)
    assert {(cell.offset_s, cell.trace.duration_s) for cell in cells} == {(72.0, 60.0)}, "an uplink may be longer"


def test_more_chunks_than_any_viewing_lasts_are_refused():
    with pytest.raises(UserError, match=r"--chunks is 30, wanted fewer: that takes 150 samples, the longest viewing has 130"):
        grid([99, 130], chunks=30)


def test_a_trace_that_is_shorter_than_the_video_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trace = tmp_path / "short.txt"
    trace.write_text("0 2\n10 2\n")
    monkeypatch.setattr(vp, "load_split", lambda name: (viewing(samples=60),))
    told = [vp.prepare_viewings(Experiment(task="vp", trace=(str(trace),), policies="static", chunks=chunks)).notes for chunks in (10, 11)]
    assert told == [(), ("shorter than the 11 s of video, so they wrap: short.txt (10 s)",)]


def test_a_headset_that_got_no_core_makes_its_trial_invalid():
    times = {"request_s": 0.0, "end_s": 0.5, "start_s": 0.5, "rebuffer_s": 0.5, "quality_bps": 1e6, "blank_share": 0.0, "qoe": 0.0}
    segment = SegmentRow(trial_id="t", index=0, levels="0", size_bytes=1000, wasted_bytes=0, **times)
    asked = {"at_s": 0.0, "media_s": 0.0, "mae_deg": 1.0, "latency_s": 0.1, "policy_s": 0.1, "source": "policy", "reason": ""}
    prediction = PredictionRow(trial_id="t", segment=0, **asked)
    end = {"trial_id": "t", "end_reason": "complete", "startup_s": 0.5, "played_s": 1.0, "rebuffer_s": 0.0, "wall_s": 1.5}
    trial = Trial("t", 0, "a", TRACES[0], 0.0, 1)
    for waited_s, problems in ((0.5, 0), (0.51, 1)):
        row = ViewingEndRow(**end, waited_for_core_s=waited_s)
        assert len(_broken_invariants(trial, 1, [segment], [prediction], row)) == problems
