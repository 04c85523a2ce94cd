"""The paired grid: every policy meets the same traces, offsets and seeds."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.spec import Experiment
from testbed.trial import lanes, plan, spread
from traces.trace import RateTrace

TRACES = [RateTrace(f"trace{i}", (0.0, 10.0), (1e6 + i,)) for i in range(7)]


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.floats(0, 99))
def test_the_grid_is_paired(trials: int, seeds: int, policies: int, offset_s: float) -> None:
    experiment = Experiment(trials=trials, seeds=tuple(range(seeds)), offset_s=offset_s)
    names = [f"policy{i}" for i in range(policies)]
    grid = plan(experiment, names, TRACES)
    assert len({trial.trial_id for trial in grid}) == len(grid) == min(trials, 7) * seeds * policies
    for _, members in groupby(grid, key=lambda trial: trial.group):
        cells = list(members)
        assert [cell.policy for cell in cells] == names
        assert len({(cell.trace, cell.offset_s, cell.seed) for cell in cells}) == 1
        assert 0 <= cells[0].offset_s < cells[0].trace.duration_s


def test_traces_are_spread_over_the_set() -> None:
    assert [trace.name for trace in spread(TRACES, 3)] == ["trace0", "trace2", "trace4"]
    assert spread(TRACES, "all") == tuple(TRACES) == spread(TRACES, 99)


@pytest.mark.parametrize(
    ("parallel", "policies", "trials", "wanted"),
    [(None, 4, 12, 12), (None, 4, 400, 12), (None, 5, 400, 10), (None, 1, 3, 3), (None, 20, 40, 12), (5, 4, 12, 5), (32, 4, 12, 12)],
)
def test_lanes_hold_whole_groups_unless_told(parallel: int | None, policies: int, trials: int, wanted: int) -> None:
    assert lanes(Experiment(parallel=parallel), policies, trials) == wanted
