"""Scheduling sessions to learn on: no training takes a workload of another, of validation, or of an evaluation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controllers.learning.cjs_sessions import LANE, LANES, TRAINING_SEEDS, WORKLOADS, validation_sessions, workloads
from netllm.cjs import experience
from netllm.cjs.adapt import CjsAdaptSettings, adapt
from netllm.cjs.experience import CjsCollectSettings
from netllm.cjs.suite.settings import NAMED
from testbed.errors import UserError

trainings = st.one_of(
    st.tuples(st.just("collected"), st.integers(0, TRAINING_SEEDS - 1), st.integers(0, 9), st.integers(1, WORKLOADS)),
    st.tuples(st.just("decima"), st.integers(0, TRAINING_SEEDS - 1), st.integers(0, LANES - 1), st.just(LANE)),
)


@given(trainings, trainings)
def test_no_two_trainings_share_a_workload_and_none_has_one_of_validation_or_of_an_evaluation(one, other):
    seeds, others = workloads(*one), workloads(*other)
    assert one[:3] == other[:3] or seeds[-1] < others[0] or others[-1] < seeds[0]
    judged = {job.seed for job in validation_sessions(((10, 20, 10_000),))} | {seed for each in NAMED.values() for seed in each.seeds}
    assert not judged & set(seeds)


def test_what_ships_learnt_from_the_workloads_that_its_seeds_give():
    """320 collected from seed 4, and Decima's seed 1; those of rounds were others, before they had a place of their own."""
    assert [job.seed for job in experience.jobs(CjsCollectSettings(320, seed=4))] == list(range(1_040_000, 1_040_320))
    assert [workloads("decima", 1, lane)[0] for lane in (0, 1, 24)] == [1_510_000, 1_510_400, 1_519_600]
    assert validation_sessions()[0].seed == 2_000_000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("collected", 50), "training seed 50 has no workloads to learn from, wanted 0 to 49"),
        (("decima", 50), "training seed 50 has no workloads"),
        (("decima", 1, 25), "lane 25 of training seed 1 has no workloads to learn from, wanted at most 25 sessions"),
        (("collected", 1, 0, 10_001), "10001 workloads are wanted of training seed 1, which has 10000"),
    ],
)
def test_seeds_that_would_take_from_another_training_are_refused(asked, message):
    with pytest.raises(UserError, match=message):
        workloads(*asked)


def test_a_run_is_refused_before_it_begins_not_in_a_round(tmp_path):
    asked = CjsAdaptSettings(out=tmp_path / "out", experience=(tmp_path / "some.parquet",), collect=CjsCollectSettings(seed=50))
    with pytest.raises(UserError, match="training seed 50"):
        adapt(asked, Console(quiet=True))
    assert not asked.out.exists()
