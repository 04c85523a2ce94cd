"""A trial's row: what the chunks add up to, and what makes a trial invalid."""

import msgspec
import pytest

from controllers.api import AbrSession, Manifest
from testbed.abr import PathFacts, most_bytes, trial_row
from testbed.records import PlaybackEndRow, Row
from testbed.twin import SimulationJob, simulate
from testbed.trial import Trial
from traces.trace import OpportunityTrace, RateTrace

VIDEO = Manifest("toy", 4.0, (300_000, 750_000), ((150_000, 375_000),) * 6)
TRACE = RateTrace("steady", (0.0, 30.0), (2e6,))
TRIAL = Trial("t0000", 0, "fixed+level=1", TRACE, 0.0, 1)
SESSION = AbrSession("t0000", VIDEO, 6)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A real simulated trial."""
    return list(simulate(SimulationJob(trial_id="t0000", policy="fixed+level=1", session=SESSION, seed=1, offset_s=0.0, rate_trace=TRACE)))


def test_the_row_adds_up(rows: list[Row]) -> None:
    row = trial_row(TRIAL, SESSION, rows, PathFacts(), "simulation")
    assert row.valid, row.invalid_reason
    assert (row.chunks, row.decisions, row.fallbacks, row.end_reason) == (6, 5, 0, "complete")
    assert row.bitrate_mbps == pytest.approx(0.75)
    assert row.switch_mbps == pytest.approx(0.45 / 5)
    assert row.rebuffer_s == 0
    assert row.qoe == pytest.approx(0.75 - 0.45 / 5)
    assert row.startup_s == pytest.approx(150_000 * 8 / (2e6 * 0.95) + 0.08)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda rows: [row for row in rows if not isinstance(row, PlaybackEndRow)], "the player died"),
        (lambda rows: [r for r in rows if getattr(r, "index", None) != 3], "5 chunks were played, wanted 6"),
        (lambda rows: [r for r in rows if getattr(r, "chunk_index", None) != 3], "4 decisions were taken, wanted 5"),
        (lambda rows: [msgspec.structs.replace(r, size_bytes=7) if getattr(r, "index", 0) == 2 else r for r in rows], "differs from the manifest"),
        (lambda rows: [msgspec.structs.replace(r, played_s=r.played_s + 1) if isinstance(r, PlaybackEndRow) else r for r in rows], "the wall time"),
        (
            lambda rows: [msgspec.structs.replace(r, end_reason="stalled_too_long") if isinstance(r, PlaybackEndRow) else r for r in rows],
            "ended early: stalled_too_long",
        ),
    ],
)
def test_a_broken_invariant_makes_the_trial_invalid(rows: list[Row], broken, reason: str) -> None:
    row = trial_row(TRIAL, SESSION, broken(rows), PathFacts(), "simulation")
    assert not row.valid
    assert reason in row.invalid_reason


def test_more_bytes_than_the_trace_allows_is_invalid_in_emulation(rows: list[Row]) -> None:
    slow = Trial("t0000", 0, "fixed", RateTrace("slow", (0.0, 30.0), (1e5,)), 0.0, 1)
    assert "more than the trace allows" in trial_row(slow, SESSION, rows, PathFacts(), "emulation").invalid_reason


def test_a_failed_link_verdict_makes_the_trial_invalid(rows: list[Row]) -> None:
    row = trial_row(TRIAL, SESSION, rows, PathFacts(fidelity="fail", reasons=("lateness p99 is 3 ms",)), "emulation")
    assert (row.valid, row.invalid_reason, row.fidelity) == (False, "lateness p99 is 3 ms", "fail")


def test_most_bytes_counts_from_the_offset_and_wraps() -> None:
    trace = RateTrace("step", (0.0, 10.0, 20.0), (8e6, 0.0))
    trial = Trial("t", 0, "p", trace, 5.0, 1)
    assert most_bytes(trial, 5.0) == pytest.approx(5e6)
    assert most_bytes(trial, 15.0) == pytest.approx(5e6)
    assert most_bytes(trial, 20.0) == pytest.approx(10e6)
    opportunities = Trial("t", 0, "p", OpportunityTrace("o", (0.5, 1.0)), 0.5, 1)
    assert most_bytes(opportunities, 1.0) == 3000
