"""The paired grid: every policy meets the same traces, offsets and seeds."""

import inspect
from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import UserError
from testbed.shapers.capacity import RATE_SCALE, RateCapacity
from testbed.shapers.encoding import encode
from testbed.spec import Experiment
from testbed.trial import BROWSER_LANES, DEFAULT_LANES, in_turn, lanes, partner, plan, spread
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
        assert [cell.policy for cell in cells] == in_turn(names, cells[0].group)
        assert len({(cell.trace, cell.offset_s, cell.seed) for cell in cells}) == 1
        assert len({cell.loss_seed for cell in cells}) == len({cell.policy_seed for cell in cells}) == 1
    groups = len({trial.group for trial in grid})
    assert len({trial.loss_seed for trial in grid}) == groups, "losses of one trace say nothing of another's"
    assert len({trial.policy_seed for trial in grid} | {trial.loss_seed for trial in grid}) == 2 * groups, "nor do a policy's draws"


def test_the_help_names_the_lanes_that_there_are() -> None:
    told = " ".join(inspect.getsource(Experiment).split())
    assert f"as many traces as fit in {DEFAULT_LANES} lanes, with a browser in {BROWSER_LANES}." in told


def named(*names: str) -> list[RateTrace]:
    return [RateTrace(name, (0.0, 10.0 + i), (1e6,)) for i, name in enumerate(names)]


@given(st.permutations(range(7)), st.integers(1, 7), st.booleans())
def test_a_trial_has_its_traces_uplink_whatever_their_order(order: list[int], trials: int, endings: bool) -> None:
    down = named(*(f"site.{i}" + ".down" * endings for i in range(7)))
    up = named(*(f"site.{i}" + ".up" * endings for i in order))
    grid = plan(Experiment(trials=trials, offset_s=12.0), ["a", "b"], down, up)
    assert len(grid) == 2 * trials
    for trial in grid:
        assert trial.uplink and trial.uplink.name.removesuffix(".up") == trial.trace.name.removesuffix(".down")


def test_an_offset_beyond_the_downlinks_end_is_not_reduced_for_a_longer_uplink() -> None:
    """The uplink starts at 12 s too, not at 2 s: the pair was recorded at the same time. Links and simulator wrap each trace by itself."""
    down, up = RateTrace("down", (0.0, 10.0), (1e6,)), RateTrace("up", (0.0, 5.0, 20.0), (1e6, 2e6))
    (trial,) = plan(Experiment(offset_s=12.0), ["p"], [down], [up])
    request = encode(0, trial.trace, trial.uplink, trial.offset_s, 1)
    assert (trial.offset_s, request.offset_ns) == (12.0, 12 * 10**9)
    capacity = RateCapacity(request.up.times, request.up.rates, 0, request.offset_ns)
    assert capacity.at(10**9) == 2e6 * RATE_SCALE * 10**9


def test_one_uplink_serves_all_trials_and_none_none() -> None:
    up = named("other.up")
    assert {trial.uplink for trial in plan(Experiment(trials="all"), ["p"], TRACES, up)} == set(up)
    assert {trial.uplink for trial in plan(Experiment(trials="all"), ["p"], TRACES)} == {None}


@pytest.mark.parametrize(
    ("uplinks", "said"),
    [
        (("B.up", "C.up"), "trace A.down: of the 2 traces of --uplink it pairs with none, wanted one called A.*"),
        (("A.up", "A.log", "C.up"), "it pairs with A.up, A.log, wanted one called A.*"),
    ],
)
def test_a_trace_without_its_uplink_is_refused(uplinks: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(Experiment(), ["p"], named("A.down"), named(*uplinks))
    assert said in str(caught.value)


def test_the_same_name_pairs_before_the_same_stem() -> None:
    """FCC's names have dots that end no stem: www.amazon.com_720_0."""
    names = ("x_www.amazon.com_720_0", "x_www.amazon.com_780_0")
    uplinks = named(*names)
    assert [partner(trace, uplinks) for trace in named(*names)] == uplinks


def test_traces_are_spread_over_the_set() -> None:
    assert [trace.name for trace in spread(TRACES, 3)] == ["trace0", "trace2", "trace4"]
    assert spread(TRACES, "all") == tuple(TRACES) == spread(TRACES, 99)


@pytest.mark.parametrize(
    ("parallel", "policies", "trials", "wanted"),
    [(None, 4, 12, 12), (None, 4, 400, 12), (None, 5, 400, 10), (None, 1, 3, 3), (None, 20, 40, 12), (5, 4, 12, 5), (32, 4, 12, 12)],
)
def test_lanes_hold_whole_groups_unless_told(parallel: int | None, policies: int, trials: int, wanted: int) -> None:
    assert lanes(Experiment(parallel=parallel), policies, trials) == wanted


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_no_policy_always_plays_first_nor_always_after_the_same(count):
    names = [str(i) for i in range(count)]
    orders = [in_turn(names, group) for group in range(count * (1 + count % 2))]
    assert all(sorted(order) == names for order in orders)
    at = Counter((name, place) for order in orders for place, name in enumerate(order))
    assert len(at) == count**2 and len(set(at.values())) == 1
    after = Counter(pair for order in orders for pair in pairwise(order))
    assert len(after) == count * (count - 1) and len(set(after.values())) <= 1


def test_the_first_group_begins_with_the_first_policy():
    assert in_turn(["netllm", "robust_mpc", "bola", "bba"], 0) == ["netllm", "robust_mpc", "bba", "bola"]
