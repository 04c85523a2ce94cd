"""The summary's contract and the page: what it must say, and what it must never say."""

import dataclasses
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from fake_run import POLICIES, FakeRun, make_trace, play
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import stats
from testbed.events import Run, read_run
from testbed.records import OptimumRow, RunHeader, TraceRow, TrialRow
from testbed.report.build import build
from testbed.report.page import Page, render
from testbed.report.paper import export
from testbed.report.sessions import ARRIVED_BYTES, _rates
from testbed.report.summary import summarise
from testbed.report.timeline import buffer_points, capacity
from testbed.results import ResultFolder

FIDELITY = (
    "verdict",
    "lateness_ms_p99",
    "rate_error_pct_100ms",
    "uncounted_losses",
    "late_packets",
    "drops",
    "steal_pct",
    "cpu_pressure_pct",
    "repeated",
)
VOID = {"meta", "link", "path", "rect", "circle", "br"}


def folder_of(base: Path, fake: FakeRun, change=lambda event: event) -> Path:
    """A folder of a made-up run whose events went through `change`."""
    events = [change(event) for event in fake.events()]
    folder = ResultFolder.create(base, events[0], datetime(2026, 11, 23, tzinfo=UTC))
    folder.extend(events[1:])
    folder.close()
    return folder.path


def run_of(base: Path, fake: FakeRun, change=lambda event: event) -> Run:
    return read_run(folder_of(base, fake, change))


def page_of(base: Path, fake: FakeRun, change=lambda event: event) -> str:
    run = run_of(base, fake, change)
    return render(run, summarise(run))


class Outline(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_summary_is_the_contract(tmp_path):
    summary = summarise(run_of(tmp_path, FakeRun(traces=4)))
    assert (summary["version"], summary["task"], summary["metric"], summary["unit"], summary["mode"]) == (
        1,
        "abr",
        "qoe_lin",
        "per chunk",
        "emulation",
    )
    assert summary["trace"] == {"name": "fcc", "split": "test", "source": "store", "traces": 4, "sha256": "ab" * 32}
    assert summary["host"]["kernel"] and summary["host"]["python"]
    assert list(summary["policies"]) == ["netllm", "robust_mpc", "bola", "bba"]
    row = summary["policies"]["netllm"]
    assert {"trials", "invalid", "mean", "ci95", "components", "decision_ms", "decisions", "fallbacks"} <= set(row)
    assert (row["trials"], row["invalid"], row["decisions"], row["fallbacks"]) == (4, 0, 4 * 47, 0)
    assert set(row["components"]) == {"bitrate_mbps", "rebuffer_s", "switch_mbps", "startup_s"}
    parts = row["components"]
    assert row["mean"] == pytest.approx(parts["bitrate_mbps"] - 4.3 * parts["rebuffer_s"] - parts["switch_mbps"])
    assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
    assert 0 < row["decision_ms"]["p50"] <= row["decision_ms"]["p99"] <= row["decision_ms"]["max"]
    assert set(summary["fidelity"]) == set(FIDELITY)
    assert summary["fidelity"]["verdict"] == "pass" and summary["fidelity"]["uncounted_losses"] == 0
    assert summary["fidelity"]["late_packets"] == 2 * 16 and summary["fidelity"]["repeated"] == 0
    assert summary["fidelity"]["drops"] == {"queue": 88 * 16, "codel": 0, "loss": 12 * 16, "malformed": 0, "transmit": 0}
    assert 0 < summary["fidelity"]["steal_pct"] < 5 < summary["fidelity"]["cpu_pressure_pct"] < 50
    json.dumps(summary, allow_nan=False)


def test_main_policy_is_compared_with_each_other_strongest_first(tmp_path):
    summary = summarise(run_of(tmp_path, FakeRun(traces=4, policies=("bba", "netllm", "bola", "robust_mpc"))))
    pairs = summary["comparisons"]
    assert {pair["a"] for pair in pairs} == {"netllm"} and len(pairs) == 3
    means = [summary["policies"][pair["b"]]["mean"] for pair in pairs]
    assert means == sorted(means, reverse=True)
    assert [pair["p_holm"] for pair in pairs] == stats.holm([pair["p"] for pair in pairs]) and None not in [pair["p"] for pair in pairs]
    for pair in pairs:
        assert pair["mean_difference"] == pytest.approx(summary["policies"]["netllm"]["mean"] - summary["policies"][pair["b"]]["mean"])
        assert pair["wins"] + pair["losses"] + pair["ties"] == pair["traces"] == 4


def test_without_netllm_the_first_policy_is_compared(tmp_path):
    assert {p["a"] for p in summarise(run_of(tmp_path, FakeRun(policies=("bola", "bba", "rate"))))["comparisons"]} == {"bola"}


def test_what_simulation_does_not_know_is_null(tmp_path):
    summary = summarise(run_of(tmp_path, FakeRun(traces=2, mode="simulation")))
    assert summary["fidelity"] == dict.fromkeys(FIDELITY)
    assert summary["policies"]["bba"]["ci95"] is None and summary["comparisons"][0]["ci95"] is None
    assert summary["policies"]["bba"]["simulation"] is None


def test_invalid_trials_are_counted_shown_and_never_averaged(tmp_path):
    def spoil(event):
        if isinstance(event, TrialRow) and not event.valid:
            return msgspec.structs.replace(event, qoe=-1e6, bitrate_mbps=1e6, fallbacks=40)
        return event

    run = run_of(tmp_path, FakeRun(traces=5, invalid_every=5), spoil)
    summary = summarise(run)
    assert [row["trials"] for row in summary["policies"].values()] == [5] * 4
    assert sum(row["invalid"] for row in summary["policies"].values()) == 4
    assert summary["fidelity"]["verdict"] == "fail" and summary["fidelity"]["lateness_ms_p99"] == 7.31
    for name, row in summary["policies"].items():
        valid = [t.qoe for t in run.trials if t.policy == name and t.valid]
        assert row["mean"] == pytest.approx(np.mean(valid)) and row["components"]["bitrate_mbps"] < 10 and row["fallbacks"] == 0
    text = outline(render(run, summary)).text
    assert "Invalid trials" in text and "p99 lateness 7.31 ms, wanted at most 5 ms" in text
    assert "16 of 20" in text and "Link fidelity: fail" in text
    assert "compare them by the paired differences" in text


def test_trial_without_a_verdict_counts_by_its_validity(tmp_path):
    def forget(event):
        return msgspec.structs.replace(event, fidelity=None) if isinstance(event, TrialRow) else event

    assert summarise(run_of(tmp_path, FakeRun(traces=2), forget))["fidelity"]["verdict"] == "pass"
    assert summarise(run_of(tmp_path, FakeRun(traces=2, invalid_every=8), forget))["fidelity"]["verdict"] == "fail"


def test_agreement_with_the_simulator_is_within_ten_per_cent_or_a_tenth(tmp_path):
    def twin(event):
        if isinstance(event, TrialRow):
            gap = {"netllm": 0.09, "bba": 5.0}[event.policy]
            return msgspec.structs.replace(event, simulated_qoe=event.qoe + gap, replayed_qoe=event.qoe - 0.01, parts_at_chunk=7)
        return event

    run = run_of(tmp_path, FakeRun(traces=3, policies=("netllm", "bba")), twin)
    summary = summarise(run)
    assert summary["policies"]["netllm"]["simulation"]["within"] and summary["policies"]["netllm"]["simulation"][
        "difference"
    ] == pytest.approx(-0.09)
    assert not summary["policies"]["bba"]["simulation"]["within"]
    text = outline(render(run, summary)).text
    assert "1 of 2 policies" in text and "Outside the limits: 3 of 6 trials" in text
    assert "They are inside when the simulator plays the very levels" in text
    row = summary["policies"]["bba"]["simulation"]
    assert row["same_levels_mean"] == pytest.approx(summary["policies"]["bba"]["mean"] - 0.01)


def test_policies_are_measured_by_the_offline_optimum(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=6, optimum=True, invalid_every=7))
    summary = summarise(run)
    best = {sha256: row.qoe for (sha256, _), row in run.optima.items()}
    assert summary["optimum"]["mean"] == pytest.approx(np.mean(list(best.values())))
    assert (summary["optimum"]["n"], summary["optimum"]["grid_s"]) == (6, 0.2)
    assert set(summary["optimum"]["components"]) == set(summary["policies"]["bba"]["components"])
    for name, row in summary["policies"].items():
        valid = [t for t in run.trials if t.policy == name and t.valid]
        of_traces = [best[t.trace_sha256] for t in valid]
        assert row["share_of_optimum"] == pytest.approx(row["mean"] / np.mean(of_traces))
        assert row["gap_to_optimum"]["mean"] == pytest.approx(np.mean(of_traces) - row["mean"])
        low, high = row["gap_to_optimum"]["ci95"]
        assert low <= row["gap_to_optimum"]["mean"] <= high and row["gap_to_optimum"]["traces"] == len(valid)


def test_a_run_without_optimum_says_nothing_of_it(tmp_path):
    summary = summarise(run_of(tmp_path, FakeRun()))
    assert summary["optimum"] is None
    assert {(row["share_of_optimum"], row["gap_to_optimum"]) for row in summary["policies"].values()} == {(None, None)}
    assert "ptimum" not in outline(page_of(tmp_path, FakeRun())).text


@pytest.mark.parametrize(
    ("mode", "why"),
    [("emulation", "it is the simulated path's, from which an emulated one"), ("simulation", "it is a lower bound")],
)
def test_a_trial_above_its_optimum_is_told(tmp_path, mode, why):
    def place(event):
        if isinstance(event, OptimumRow):
            return msgspec.structs.replace(event, qoe=1.0)
        over = getattr(event, "trial_id", "") == "t0001"
        return msgspec.structs.replace(event, qoe=1.25 if over else 0.5) if isinstance(event, TrialRow) else event

    run = run_of(tmp_path, FakeRun(traces=3, policies=("netllm", "bba"), mode=mode, optimum=True), place)
    summary = summarise(run)
    assert [row["gap_to_optimum"]["trials_above"] for row in summary["policies"].values()] == [0, 1]
    assert f"1 of 6 trials scores above the offline optimum, by up to 0.250: {why}" in " ".join(summary["notes"])
    text = outline(render(run, summary)).text
    assert ("an emulated trial differs from it a little and may even exceed it" in text) == (mode == "emulation")


def test_an_optimum_that_could_not_be_computed_is_a_note(tmp_path):
    def fail(event):
        if isinstance(event, OptimumRow):
            return msgspec.structs.replace(event, qoe=None, reason="the search raised MemoryError")
        return event

    run = run_of(tmp_path, FakeRun(traces=2, optimum=True), fail)
    summary = summarise(run)
    assert summary["optimum"] is None and not any(row["invalid"] for row in summary["policies"].values())
    assert "2 of 2 traces have no offline optimum: the search raised MemoryError." in summary["notes"]
    assert "of optimum" not in outline(render(run, summary)).text


def test_a_share_of_an_optimum_that_is_not_above_zero_says_nothing(tmp_path):
    def sink(event):
        return msgspec.structs.replace(event, qoe=-1.0) if isinstance(event, OptimumRow) else event

    row = summarise(run_of(tmp_path, FakeRun(optimum=True), sink))["policies"]["bba"]
    assert row["share_of_optimum"] is None and row["gap_to_optimum"]["mean"] is not None


def test_page_draws_the_optimum_in_table_and_figures(tmp_path):
    fake = FakeRun(traces=6, policies=("netllm", "bba"), optimum=True)
    page = page_of(tmp_path, fake)
    text = outline(page).text
    for said in ("Share", "Offline optimum", "Gap to the offline optimum", "knows the whole trace", "lower bound", "0.2 s"):
        assert said in text
    assert page.count('class="bound"') == 3  # a strip for each policy, and the optimum's own
    assert page.count('class="ln upper"') == 1 and page.count('class="ln upper thin"') == 12  # the distribution; each trial
    assert export(read_run(tmp_path / "latest"), tmp_path, "svg")
    assert ">offline</" in (tmp_path / "qoe_mean.svg").read_text() and "Offline optimum" in (tmp_path / "qoe_cdf.svg").read_text()


def test_modelled_traces_are_said_to_be_in_every_table(tmp_path):
    page = outline(page_of(tmp_path, FakeRun(traces=5, source="model"))).text
    assert page.lower().count("modelled, not measured") >= 8
    assert "modelled" not in outline(page_of(tmp_path, FakeRun(traces=5))).text.lower()
    assert summarise(run_of(tmp_path, FakeRun(source="model+store")))["notes"]


def test_page_is_well_formed_accessible_and_asks_for_nothing_outside(tmp_path):
    page = page_of(tmp_path, FakeRun(traces=6, policies=tuple(POLICIES), fallback_share=0.05, invalid_every=7))
    seen = outline(page).seen
    for tag, attributes in seen:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", page)
    tags = [tag for tag, _ in seen]
    assert tags.count("h1") == 1 and tags.count("main") == 1 and "lang" in next(a for t, a in seen if t == "html")
    assert tags.count("table") == tags.count("thead") >= 7
    assert sum(a.get("class") == "fig timeline" for t, a in seen if t == "svg") == 36
    assert [("open" in a) for t, a in seen if t == "details" and a.get("class") == "trace"] == [True] + [False] * 5


def test_one_trial_is_enough_for_a_page(tmp_path):
    text = outline(page_of(tmp_path, FakeRun(traces=1, policies=("bba",)))).text
    assert "Distribution over chunks" in text and "on one trace" in text


def test_nothing_but_a_header_is_enough_for_a_page(tmp_path):
    assert "No valid trial" in outline(page_of(tmp_path, FakeRun(traces=0, ended=False))).text


def test_trial_that_died_before_its_first_chunk_is_drawn_as_such(tmp_path):
    def die(event):
        if isinstance(event, TrialRow) and event.policy == "bba":
            gone = dict.fromkeys(("qoe", "bitrate_mbps", "rebuffer_s", "switch_mbps", "startup_s", "wall_s"))
            return msgspec.structs.replace(event, valid=False, invalid_reason="the player died", chunks=0, decisions=0, **gone)
        return msgspec.structs.replace(event, trial_id="other") if getattr(event, "trial_id", "") == "t0001" else event

    text = outline(page_of(tmp_path, FakeRun(traces=1, policies=("netllm", "bba")), die)).text
    assert "invalid: the player died" in text


def test_hostile_names_stay_text(tmp_path):
    evil = '<script>alert("x")</script>'
    described = {"label": evil, "colour": "red;}body{display:none", "citation": '" onmouseover="alert(1)'}

    def poison(event):
        if isinstance(event, RunHeader):
            return msgspec.structs.replace(event, policies={"bba": described}, command=evil, notes=[evil], experiment_toml=evil)
        return msgspec.structs.replace(event, trace=evil) if isinstance(event, TrialRow) else event

    page = page_of(tmp_path, FakeRun(traces=1, policies=("bba",), invalid_every=1), poison)
    assert evil not in page and described["colour"] not in page and "color-mix(in srgb,#777777," in page
    assert all("onmouseover" not in attributes for _, attributes in outline(page).seen)
    assert page.count("<script>") == 1


def test_a_hundred_traces_stay_small_and_say_what_is_drawn(tmp_path):
    page = page_of(tmp_path, FakeRun(traces=100, policies=tuple(POLICIES), link_rows=False))
    assert len(page) < 15e6
    drawn = page.count("fig timeline")
    assert 60 <= drawn <= 96
    assert f"{drawn} of 600 trials are drawn" in outline(page).text


def test_same_events_give_the_same_page(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=3))
    assert render(run, summarise(run)) == render(run, summarise(run))


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.5, 0.6, 0.4, 0.55], "It is better than BBA by 0.51"),
        ([-0.5, -0.6, -0.4, -0.55], "It is worse than BBA by 0.51"),
        ([0.5, -0.6, 0.4, -0.35], "not clear"),
        ([0.5, 0.6], "too few for an interval"),
    ],
)
def test_finding_is_no_stronger_than_the_interval(tmp_path, differences, said):
    def place(event):
        if isinstance(event, TrialRow):
            index = int(event.trial_id[1:]) // 2
            return msgspec.structs.replace(event, qoe=1.0 + (differences[index] if event.policy == "netllm" else 0.0))
        return event

    run = run_of(tmp_path, FakeRun(traces=len(differences), policies=("netllm", "bba"), chunks=5), place)
    assert said in Page(run, summarise(run)).finding()


@pytest.mark.parametrize(
    "failure",
    [
        {"end_reason": "policy raised ValueError: no", "invalid_reason": "ended early: policy raised ValueError: no"},
        {"end_reason": "complete", "decisions": 4, "fallbacks": 4, "invalid_reason": "the policy took no decision, all 4 fell back"},
    ],
)
def test_who_fails_has_no_mean_and_beats_nobody(tmp_path, failure):
    """A policy that gave up wherever it went badly would win by what is left."""

    def spoil(event):
        if isinstance(event, TrialRow) and event.policy == "bba":
            went = {"valid": False, **failure} if event.trial_id < "t0006" else {"qoe": 9.0}
            return msgspec.structs.replace(event, **went)
        return event

    run = run_of(tmp_path, FakeRun(traces=5, policies=("netllm", "bba", "bola"), chunks=5, mode="simulation", optimum=True), spoil)
    summary = summarise(run)
    row = summary["policies"]["bba"]
    assert (row["trials"], row["invalid"], row["failed"]) == (5, 2, 2)
    assert row["mean"] is None and row["gap_to_optimum"] is None and row["components"]["bitrate_mbps"] is None
    assert [pair["b"] for pair in summary["comparisons"]] == ["bola"]
    assert any("bba has no mean, for it failed in 2 of 5 trials (t0001" in note for note in summary["notes"])
    assert "no mean" in render(run, summary)


def test_what_fails_by_its_link_is_no_failure_of_the_policy(tmp_path):
    summary = summarise(run_of(tmp_path, FakeRun(traces=5, invalid_every=4)))
    assert any(row["invalid"] for row in summary["policies"].values())
    assert not any(row["failed"] for row in summary["policies"].values())
    assert summary["comparisons"]


def test_axes_of_a_column_hold_every_interval(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=9, policies=tuple(POLICIES)))
    xs = [float(x) for x in re.findall(r'class="ci" d="M([\d.]+) ', render(run, summarise(run)))]
    assert len(xs) == 6 + 5 and all(8 < x < 480 for x in xs)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), offset_s=st.floats(0, 700), end_s=st.floats(0.5, 900))
def test_capacity_drawn_is_the_trace_shifted_and_wrapped(seed, offset_s, end_s):
    trace = make_trace(seed, np.random.default_rng(seed))
    edges, rates = capacity(trace, offset_s % 320.0, end_s)
    assert edges[0] == 0 and edges[-1] == pytest.approx(end_s) and (np.diff(edges) > 0).all() and len(rates) == len(edges) - 1
    for left, right, rate in zip(edges, edges[1:], rates, strict=False):
        middle_s = ((left + right) / 2 + offset_s) % 320.0
        if right - left > 1e-3:
            assert rate == pytest.approx(trace.rates_bps[int(middle_s // 5)], rel=1e-6)


def test_a_period_of_a_millisecond_is_drawn_as_its_mean():
    row = TraceRow(trace="1", sha256="", edges_s=[0.0, 5e-4, 1e-3], rates_bps=[24e6, 0.0])
    edges, rates = capacity(row, 0.0003, 300.0)
    assert edges[0] == 0 and edges[-1] == 300 and len(rates) == len(edges) - 1 < 2000
    assert rates == pytest.approx([12e6] * len(rates), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), caution=st.floats(0.3, 2.0))
def test_buffer_drawn_drains_in_real_time_and_is_dry_only_in_stalls(seed, caution):
    chunks = list(play("t", make_trace(seed, np.random.default_rng(seed)), 30, caution, np.random.default_rng(seed)))
    points = buffer_points(chunks)
    assert points[-1] == (chunks[-1].end_s, chunks[-1].buffer_s)
    dry_s = 0.0
    for (s0, b0), (s1, b1) in pairwise(points):
        assert s1 >= s0 and b1 >= 0
        if b1 < b0:
            assert b0 - b1 == pytest.approx(s1 - s0, abs=1e-6)
        dry_s += (s1 - s0) if b0 == b1 == 0 else 0.0
    assert dry_s == pytest.approx(chunks[0].end_s + sum(c.rebuffer_s for c in chunks[1:]), abs=1e-6)


def test_delivered_rate_is_that_of_the_links_counters(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=1, policies=("bba",)))
    end_s = run.tables["chunks"]["end_s"].max()
    edges, rates = _rates(run.tables["links"], "down", ARRIVED_BYTES, end_s)
    assert edges[0] == 0 and end_s - 0.2 <= edges[-1] <= end_s and len(edges) == len(rates) + 1
    carried_bits = 8 * run.tables["links"].filter(pl.col("start_s") < end_s)["delivered_bytes"].sum()
    assert float(np.diff(edges) @ np.asarray(rates)) == pytest.approx(carried_bits, rel=0.01)
    assert _rates(run.tables["links"].clear(), "down", ARRIVED_BYTES, end_s) == ([], [])
    a_tenth_lost = run.tables["links"].with_columns(lost_bytes=pl.col("delivered_bytes") / 10)
    assert _rates(a_tenth_lost, "down", ARRIVED_BYTES, end_s)[1] == pytest.approx([0.9 * rate for rate in rates])


def test_figures_for_a_paper_embed_their_fonts(tmp_path):
    folder = folder_of(tmp_path, FakeRun(traces=4, source="model"))
    build(folder, figures="pdf")
    names = sorted(p.name for p in (folder / "figures").iterdir())
    assert names == ["decision_latency.pdf", "qoe_cdf.pdf", "qoe_difference.pdf", "qoe_mean.pdf"]
    for name in names:
        content = (folder / "figures" / name).read_bytes()
        assert content.startswith(b"%PDF") and b"/Type3" not in content and b"/CIDFontType2" in content


def test_a_dollar_in_a_label_is_a_dollar(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=4, policies=("netllm", "bba")))
    labels = {name: {**told, "label": "MPC $\\alpha_{$ and $5"} for name, told in run.header.policies.items()}
    run = dataclasses.replace(run, header=msgspec.structs.replace(run.header, policies=labels))
    assert len(export(run, tmp_path / "figures", "svg")) == 4


def test_figures_of_a_run_without_trials_are_left_out(tmp_path):
    run = run_of(tmp_path, FakeRun(traces=0))
    assert export(run, tmp_path / "figures", "svg") == []


def test_colours_and_order_are_the_policies_own(tmp_path):
    run = run_of(tmp_path, FakeRun())
    page = Page(run, summarise(run))
    assert [(look.label, look.colour) for look in page.looks.values()] == [
        (POLICIES[n]["label"], POLICIES[n]["colour"]) for n in page.looks
    ]
    assert stats.strongest({n: r["mean"] for n, r in page.summary["policies"].items()}) == page.table()["best"]
