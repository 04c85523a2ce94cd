"""The offline optimum of each trace of a run, computed when no trial is played any more, by the twins' worker processes as the user."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from testbed.abr import PreparedPlaybacks, job
from testbed.errors import TestbedError, UserError
from testbed.records import ChunkRow, OptimumRow, PlaybackEndRow, Row
from testbed.sim.abr import OPTIMUM_GRID_S
from testbed.simulation import simulate
from testbed.trial import Trial
from testbed.units import mbps_from_bps

SILENCE_S = 600.0
"""It is our own code, compiled the first time: only a machine that has no time for it lets it be silent for so long."""


def optima(prepared: PreparedPlaybacks, on_row: Callable[[OptimumRow], None]) -> None:
    """One row for each trace and offset of the run goes to `on_row` (called from several threads) as it is made.

    What can't be computed is a row that says why.
    """
    cells = {trial.trial_id: trial for trial in one_a_cell(prepared.trials)}
    found: dict[str, list[ChunkRow]] = defaultdict(list)
    told: set[str] = set()

    def tell(row: OptimumRow, cell: str) -> None:
        told.add(cell)
        on_row(row)

    def take(row: Row) -> None:
        if isinstance(row, PlaybackEndRow):
            tell(_without(cells[row.trial_id], row.end_reason), row.trial_id)
        elif isinstance(row, ChunkRow):
            chunks = found[row.trial_id]
            chunks.append(row)
            if len(chunks) == prepared.experiment.chunks:
                tell(optimum_row(cells[row.trial_id], chunks), row.trial_id)

    try:
        simulate([job(prepared, trial, optimum_grid_s=OPTIMUM_GRID_S) for trial in cells.values()], take, SILENCE_S)
    except (TestbedError, UserError, OSError) as error:
        for cell in cells.keys() - told:
            tell(_without(cells[cell], str(error)), cell)


def one_a_cell(trials: Sequence[Trial]) -> list[Trial]:
    """A trial for each trace and offset, the first: to the optimum, policies and seeds are the same."""
    return list({(trial.trace.sha256, trial.offset_s): trial for trial in reversed(trials)}.values())[::-1]


def optimum_row(trial: Trial, chunks: Sequence[ChunkRow]) -> OptimumRow:
    """The best playback of the trial's trace; means are over chunks 1 .. N-1, as in `TrialRow`."""
    rated = chunks[1:]
    bitrates_mbps = [mbps_from_bps(chunk.bitrate_bps) for chunk in chunks]
    return OptimumRow(
        trace=trial.trace.name,
        trace_sha256=trial.trace.sha256,
        offset_s=trial.offset_s,
        grid_s=OPTIMUM_GRID_S,
        qoe=_mean([chunk.qoe for chunk in rated]),
        bitrate_mbps=_mean(bitrates_mbps[1:]),
        rebuffer_s=_mean([chunk.rebuffer_s for chunk in rated]),
        switch_mbps=_mean([abs(b - a) for a, b in pairwise(bitrates_mbps)]),
        startup_s=chunks[0].rebuffer_s,
        wall_s=chunks[-1].end_s,
        bitrates_bps=[chunk.bitrate_bps for chunk in chunks],
        request_s=[chunk.request_s for chunk in chunks],
        chunk_qoe=[chunk.qoe for chunk in chunks],
    )


def _without(trial: Trial, reason: str) -> OptimumRow:
    return OptimumRow(
        trace=trial.trace.name, trace_sha256=trial.trace.sha256, offset_s=trial.offset_s, grid_s=OPTIMUM_GRID_S, qoe=None, reason=reason
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
