"""What a report says of links and host: figures that add up, and sentences that blame nobody wrongly."""

import dataclasses
import re
from itertools import accumulate

import msgspec
import numpy as np
import polars as pl
import pytest
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import outline, run_of

from testbed.records import HostRow, LatenessRow, LinkRow, TrialRow
from testbed.report import linkfigures
from testbed.report.linkfigures import Windows
from testbed.report.links import LinkPage, late_pct, nearness
from testbed.report.page import render
from testbed.report.summary import summarise
from testbed.stats import last_attempts


def page_text(run) -> str:
    return outline(render(run, summarise(run))).text


def test_a_repeated_trial_is_shown_twice_and_counts_once(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=4, invalid_every=7, repeated=True))
    summary = summarise(run)
    assert (summary["fidelity"]["verdict"], summary["fidelity"]["repeated"]) == ("pass", 2)
    assert [row["trials"] for row in summary["policies"].values()] == [4] * 4
    assert not any(row["invalid"] for row in summary["policies"].values())
    assert summary["fidelity"]["lateness_ms_p99"] < 1 and summary["fidelity"]["late_packets"] == 2 * 16
    text = page_text(run)
    for said in (
        "Every link passed its verdict, in 16 trials. 2 attempts before them failed and were played again.",
        "It never looks at QoE, so playing such a trial again chooses no result.",
        "played again: t0006r1, valid",
        "Played again 2 trials",
        "attempt 2",
        "2 trials were played again because the link failed (t0006: link: p99 lateness 7.31 ms",
        "again means last, beside fewer other trials",
        "All 18 attempts, failed ones first",
    ):
        assert said in text, said


def test_a_trial_that_stayed_invalid_is_left_out_and_its_link_blamed(tmp_path):
    text = page_text(run_of(tmp_path, FakeRun(traces=4, invalid_every=7)))
    assert "The links of 2 of 16 trials failed their verdict" in text and "Link fidelity: fail" in text
    assert "left out" in text and "played again:" not in text


def test_where_the_host_took_time_and_links_failed_the_way_out_is_told(tmp_path):
    def told(run):
        return [note for note in summarise(run)["notes"] if "virtual machine" in note]

    failed = run_of(tmp_path / "failed", FakeRun(traces=4, invalid_every=7))
    awake = msgspec.structs.replace(failed.header, host=failed.header.host | {"awake": True})
    ((halted,), (kept,)) = told(failed), told(dataclasses.replace(failed, header=awake))
    assert halted.startswith("The host of this virtual machine took ") and halted.endswith("(--awake).")
    assert kept.endswith("--repeats 6 plays a failed trial more often than once.")
    simulated = msgspec.structs.replace(failed.header, mode="simulation")
    assert not told(run_of(tmp_path / "sound", FakeRun(traces=4))) and not told(dataclasses.replace(failed, header=simulated))


def test_drops_and_notes_are_told(tmp_path):
    text = page_text(run_of(tmp_path, FakeRun(traces=1, invalid_every=4)))
    assert "Of 160,000 packets 159,600 came out. Dropped: 352 by the full queue, 0 by CoDel, 48 at random" in text
    assert "The last 3 windows of 100 ms were not recorded (said of 1 of 4 trials)." in text


def test_a_note_of_every_trial_is_said_once(tmp_path):
    def noted(event):
        return msgspec.structs.replace(event, link_notes="one relay for all") if isinstance(event, TrialRow) else event

    text = page_text(run_of(tmp_path, FakeRun(traces=2), noted))
    assert text.lower().count("one relay for all") == 1


def test_a_run_from_before_the_monitor_has_a_page(tmp_path):
    def older(event):
        if isinstance(event, HostRow):
            return LatenessRow(trial_id="t0000", direction="up", upper_ms=[0.1], counts=[0])
        new = (
            "attempt",
            "began_at_s",
            "ended_at_s",
            "drops",
            "packets_in",
            "packets_out",
            "late_packets",
            "late_share",
            "link_notes",
            "steal_share",
        )
        defaults = dict(zip(TrialRow.__struct_fields__[-len(TrialRow.__struct_defaults__) :], TrialRow.__struct_defaults__, strict=True))
        return msgspec.structs.replace(event, **{n: defaults[n] for n in new}) if isinstance(event, TrialRow) else event

    run = run_of(tmp_path, FakeRun(traces=2), older)
    summary = summarise(run)
    assert summary["fidelity"]["verdict"] == "pass" and summary["fidelity"]["steal_pct"] is None and summary["fidelity"]["drops"] is None
    text = page_text(run)
    assert "The host over the run" not in text and "came out" not in text and "Lateness of packets" in text


def test_what_an_uplink_did_is_drawn_beside_the_downlink_and_not_mixed_with_it(tmp_path):
    without, both = (run_of(tmp_path / str(up), FakeRun(traces=1, uplink=up)) for up in (False, True))
    use = [LinkPage(run, summarise(run))._use() for run in (without, both)]
    assert use[0] == {trial_id: pytest.approx(shares) for trial_id, shares in use[1].items()}  # sums of floats, in any order
    pages = [render(run, summarise(run)) for run in (without, both)]
    assert [page.count("way back, Mbit/s") for page in pages] == [0, 4]
    assert [page.count("client to server") > 0 for page in pages] == [False, True]


def test_worst_links_come_first(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=4, invalid_every=7))
    page = LinkPage(run, summarise(run))
    order = [item["trial"] for item in page.listed()]
    assert [t.fidelity for t in order] == ["fail"] * 2 + ["pass"] * 14
    assert [nearness(t) for t in order] == sorted(map(nearness, order), reverse=True)
    assert [p["trial"].trial_id for p in page.pictures()] == [t.trial_id for t in order[:4]]
    assert late_pct(order[0]) == pytest.approx(0.78)


def histogram(counts: list[int], trial_id: str = "t") -> LatenessRow:
    return LatenessRow(trial_id=trial_id, direction="down", upper_ms=[0.001 * 2**i for i in range(len(counts))], counts=counts)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any), st.lists(st.integers(0, 99), min_size=1, max_size=20))
def test_shares_of_the_histogram_add_up(passed, failed):
    drawn = linkfigures.lateness({"hist": [histogram(passed), histogram(passed)], "hist-failed": [histogram(failed)]}, {"x": 1.0}, "t")
    for css, counts in (("hist", passed), ("hist-failed", failed)):
        shares = [float(s) for s in re.findall(rf'<rect class="{css}"[^>]*&#10;([\d.e+-]+) % of packets', drawn)]
        assert len(shares) == sum(n > 0 for n in counts)
        assert not shares or sum(shares) == pytest.approx(100, rel=0.01)


columns = st.integers(1, 5000).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, 2**32 - 1)).map(
        lambda pair: np.random.default_rng(pair[1]).uniform(0, 1e4, (5, pair[0]))
    )
)


@settings(max_examples=50, deadline=None)
@given(columns)
def test_windows_put_together_keep_their_bytes(numbers):
    windows = Windows(0.0, 0.1, *numbers)
    drawn = windows.drawable()
    assert len(drawn.allowed) <= linkfigures.MOST_COLUMNS
    assert drawn.edges_s[-1] >= windows.edges_s[-1] - 1e-6
    for name in ("allowed", "delivered", "dropped", "lost"):
        assert getattr(drawn, name).sum() == pytest.approx(getattr(windows, name).sum())
    assert drawn.queue.max() == windows.queue.max()
    near = windows.close_up()
    assert len(near.allowed) == min(linkfigures.CLOSE_UP_WINDOWS, len(windows.allowed))
    assert (near.dropped + near.lost).max() == (windows.dropped + windows.lost).max()
    assert linkfigures.capacity_use(near, "near").startswith("<svg")


def test_a_close_up_without_drops_shows_the_fullest_queue():
    nothing, queue = np.zeros(3000), np.zeros(3000)
    queue[2000] = 7.0
    near = Windows(0.0, 0.1, nothing, nothing, nothing, nothing, queue).close_up()
    assert near.begin_s <= 200.0 <= near.edges_s[-1] and near.queue.max() == 7.0


samples = st.lists(st.tuples(st.floats(0.05, 30), st.floats(0, 1)), min_size=1, max_size=2500)


@settings(max_examples=50, deadline=None)
@given(samples)
def test_the_hosts_columns_keep_means_and_worst(parts):
    """Whatever the samples' lengths: a busy host samples late."""
    ends_s = list(accumulate(width for width, _ in parts))
    rows = [
        HostRow(at_s=50.0 + end_s, window_s=width_s, busy_share=share, steal_share=0.0, cpu_pressure_share=None)
        for end_s, (width_s, share) in zip(ends_s, parts, strict=True)
    ]
    found = linkfigures._Columns(rows, 50.0, ends_s[-1])
    means, widths_s = found.means("busy_share"), np.diff(found.edges_s)
    assert float(means @ widths_s) == pytest.approx(100 * sum(w * s for w, s in parts), abs=1e-6)
    assert found.worst("busy_share").max() == max(share for _, share in parts)
    assert (means <= 100 * found.worst("busy_share") + 1e-6).all()
    assert not found.known("cpu_pressure_share")


def test_a_failed_trial_is_marked_across_the_host(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=4, invalid_every=7, repeated=True))
    drawn = str(LinkPage(run, summarise(run)).host())
    assert (drawn.count("lane-fail"), drawn.count("failed-band"), drawn.count("lane-pass")) == (2, 2, 16)


def test_of_a_trials_attempts_the_last_counts(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=4, invalid_every=7, repeated=True))
    kept = {t.trial_id for t in last_attempts(run.trials)}
    assert len(kept) == 16 and {"t0006r1", "t0013r1"} < kept and not {"t0006", "t0013"} & kept
    assert {t.trial_id for t in last_attempts(reversed(run.trials))} == kept


def test_windows_of_both_directions_are_in_one_table(tmp_path):
    links = run_of(tmp_path, FakeRun(traces=1, policies=("bba",), uplink=True)).tables["links"]
    assert set(links["direction"]) == {"down", "up"}
    assert links["lost_bytes"].sum() == 0 and links.schema["lost_bytes"] == pl.Float64
    assert LinkRow.__struct_fields__ == tuple(links.columns)
