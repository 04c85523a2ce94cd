"""A trial's row: what the chunks add up to, and what makes a trial invalid."""

from collections.abc import Callable

import msgspec
import pytest

from controllers.api import AbrSession, Manifest
from testbed.abr import trial_row
from testbed.records import ChunkRow, DecisionRow, PlaybackEndRow, Row
from testbed.sim.abr import AbrSimulator
from testbed.trial import Trial
from testbed.twin import SimulationJob, simulate
from testbed.verdict import PathFacts, most_bytes
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


def without(**values) -> Callable[[Row], list[Row]]:
    """Leaves out rows in which a field has a value."""
    ((name, value),) = values.items()
    return lambda row: [] if getattr(row, name, None) == value else [row]


def changed(kind: type, index: int | None = None, **values) -> Callable[[Row], list[Row]]:
    """Changes fields of the rows of a kind (of one index, if given)."""

    def change(row: Row) -> list[Row]:
        return [msgspec.structs.replace(row, **values) if isinstance(row, kind) and index in (None, getattr(row, "index", None)) else row]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: [] if isinstance(row, PlaybackEndRow) else [row], "the player died"),
        (without(index=3), "5 chunks were played, wanted 6"),
        (without(chunk_index=3), "4 decisions were taken, wanted 5"),
        (changed(ChunkRow, index=2, size_bytes=7), "differs from the manifest"),
        (changed(PlaybackEndRow, hiccup_s=0.6), "stood still for 0.60 s with media in the buffer"),
        (changed(PlaybackEndRow, waited_for_core_s=0.51), "late by 0.51 s for want of a core, wanted at most 0.5 s"),
        (changed(PlaybackEndRow, played_s=99.0), "the wall time"),
        (changed(ChunkRow, index=2, rebuffer_s=0.2), "the chunks' stalls are 0.200 s in all, those of the session 0.000 s"),
        (changed(PlaybackEndRow, end_reason="stalled_too_long", detail="no byte"), "ended early: stalled_too_long (no byte)"),
    ],
)
def test_a_broken_invariant_makes_the_trial_invalid(rows: list[Row], change: Callable[[Row], list[Row]], reason: str) -> None:
    row = trial_row(TRIAL, SESSION, [new for old in rows for new in change(old)], PathFacts(), "simulation")
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


def test_a_policy_that_never_decided_has_no_result(rows: list[Row]) -> None:
    fallen = [new for old in rows for new in changed(DecisionRow, source="fallback", reason="error")(old)]
    assert "took no decision" in trial_row(TRIAL, SESSION, fallen, PathFacts(), "emulation").invalid_reason


@pytest.mark.parametrize("offset_s", [1.0, 7.0])
def test_wraps_are_those_of_the_simulator(offset_s: float) -> None:
    short = RateTrace("short", (0.0, 3.0), (1e6,))
    trial = Trial("t0000", 0, "fixed+level=1", short, offset_s, 1)
    simulator = AbrSimulator(short, SESSION, offset_s)
    for level in (0, 1, 1, 1, 1, 1):
        simulator.step(level)
    job = SimulationJob(trial_id="t0000", policy="fixed+level=1", session=SESSION, seed=1, offset_s=offset_s, rate_trace=short)
    assert trial_row(trial, SESSION, list(simulate(job)), PathFacts(), "simulation").trace_wraps == simulator.wraps > 0
