"""The optima of a run: one for each trace and offset, by worker processes, and a reason where there is none."""

import os
import subprocess
import sys

import pytest

from testbed import optima as module
from testbed.abr import PreparedPlaybacks
from testbed.cache import CHECKOUT
from testbed.errors import TestbedError
from testbed.optima import one_a_cell, optima
from testbed.policycards import PolicyCard
from testbed.records import OptimumRow
from testbed.sim.optimum import offline_optimum
from testbed.spec import Experiment
from testbed.trial import plan
from testbed.twin import ended_early
from tests.abr_cases import session, steady, varied, video

EXPERIMENT = Experiment(chunks=6, trials="all", seeds=(1, 2), offset_s=7.0, simulate=True)
TRACES = (varied(), steady(1.0), varied(0.5))


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    cards = tuple(PolicyCard(name, name, "#777777", "", name) for name in ("bba", "rate"))
    return PreparedPlaybacks(EXPERIMENT, cards, (), plan(EXPERIMENT, ["bba", "rate"], TRACES), (), video())


def rows(prepared) -> dict[str, OptimumRow]:
    found: list[OptimumRow] = []
    optima(prepared, found.append)
    assert len(found) == len(TRACES)
    return {row.trace_sha256: row for row in found}


def test_each_trace_has_one_and_a_second_run_reads_it(prepared, tmp_path):
    first = rows(prepared)
    for trace in TRACES:
        row = first[trace.sha256]
        assert row.qoe == pytest.approx(offline_optimum(trace, session(6), 7.0), abs=1e-9)
        assert row.qoe == pytest.approx(row.bitrate_mbps - 4.3 * row.rebuffer_s - row.switch_mbps)
        assert (row.trace, row.offset_s, row.grid_s, row.reason) == (trace.name, 7.0, 0.2, "")
        assert len(row.bitrates_bps) == len(row.request_s) == len(row.chunk_qoe) == 6 and row.wall_s > row.request_s[-1]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "optimum").iterdir()}
    assert len(kept) == 3 and rows(prepared) == first
    assert any((tmp_path / "cache" / "numba").iterdir())  # compiled code, where the user may write
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_may_be_root_compiles_nothing():
    """It would leave root's files in the checkout, and where nothing can be written the import fails."""
    code = "import sys, testbed.cli, testbed.experiment; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, check=False).returncode == 0


def test_policies_and_seeds_share_a_cell(prepared):
    assert [trial.trial_id for trial in one_a_cell(prepared.trials)] == ["t0000", "t0004", "t0008"]


def test_what_can_not_be_computed_says_why(prepared, monkeypatch):
    def simulate(jobs, on_row, silence_s):
        assert [job.policy for job in jobs] == [""] * 3 and {job.optimum_grid_s for job in jobs} == {0.2}
        on_row(ended_early(jobs[0].trial_id, "the search raised MemoryError"))
        raise TestbedError("the simulation worker ended with code -9")

    monkeypatch.setattr(module, "simulate", simulate)
    found = rows(prepared)
    assert [found[trace.sha256].reason for trace in TRACES] == [
        "the search raised MemoryError",
        "the simulation worker ended with code -9",
        "the simulation worker ended with code -9",
    ]
    assert {row.qoe for row in found.values()} == {None}
