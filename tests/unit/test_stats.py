"""Statistics over traces: what must hold for any numbers, and for numbers known beforehand."""

import math

import numpy as np
import pytest
import scipy.stats
from fake_run import FakeRun
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import stats
from testbed.records import TrialRow

numbers = st.lists(st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3)), min_size=3, max_size=12)
quick = settings(max_examples=25, deadline=None)


def trial(policy: str, trace: str, qoe: float | None, seed: int = 1, offset_s: float = 0.0, valid: bool = True) -> TrialRow:
    model = next(e for e in FakeRun(traces=1, policies=("bba",), chunks=3, link_rows=False).events() if isinstance(e, TrialRow))
    changes = {"policy": policy, "trace": trace, "trace_sha256": trace, "qoe": qoe, "seed": seed, "offset_s": offset_s, "valid": valid}
    return TrialRow(**{name: getattr(model, name) for name in model.__struct_fields__} | changes)


@quick
@given(numbers)
def test_interval_holds_the_mean_in_its_middle_and_is_the_same_again(values):
    found = stats.estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    low, high = found.ci95
    assert low <= high
    assert (low + high) / 2 == pytest.approx(found.mean, abs=1e-9)
    assert stats.estimate(values) == found


@quick
@given(numbers, st.randoms(use_true_random=False))
def test_interval_does_not_depend_on_the_order_in_which_trials_ended(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert stats.estimate(shuffled).ci95 == stats.estimate(values).ci95


@quick
@given(numbers, st.floats(-5, 5))
def test_interval_follows_the_metrics_unit_and_zero(values, shift):
    here, there = stats.estimate(values), stats.estimate([1000 * v + shift for v in values])
    assert there.ci95 == pytest.approx([1000 * end + shift for end in here.ci95], abs=1e-4)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_no_interval_of_fewer_than_three(values):
    found = stats.estimate(values)
    assert found.ci95 is None and math.isnan(found.half_width)
    assert found.mean == (np.mean(values) if values else None)


def test_equal_values_have_an_interval_of_no_width():
    assert stats.estimate([1.25] * 7).ci95 == (1.25, 1.25)


def test_interval_is_students():
    assert stats.estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert stats.estimate([1.0, 2.0, 3.0]).ci95 == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)


@pytest.mark.parametrize("n", [3, 5, 12, 40])
@pytest.mark.parametrize("draw", ["normal", "gumbel"])
def test_interval_covers_the_true_mean_as_often_as_it_says(n, draw):
    rng = np.random.default_rng(3)
    true_mean = 0.0 if draw == "normal" else np.euler_gamma
    ends = [stats.estimate(getattr(rng, draw)(size=n)).ci95 for _ in range(1000)]
    assert 0.92 <= np.mean([low <= true_mean <= high for low, high in ends]) <= 0.98


def test_each_its_own_cluster_is_no_cluster():
    values = [0.3, 1.7, -0.4, 2.2]
    found = stats.estimate(values, ["a", "b", "c", "d"])
    assert found.ci95 == pytest.approx(stats.estimate(values).ci95, rel=1e-12) and found.clusters is None


def test_values_of_one_measurement_count_as_one():
    """Each said twice, and told so, they say what they said once; not told so, they seem to say more."""
    values = [0.3, 1.7, -0.4, 2.2, 0.9]
    twice = [each for each in values for _ in range(2)]
    told = stats.estimate(twice, [i // 2 for i in range(10)])
    assert told.ci95 == pytest.approx(stats.estimate(values).ci95) and (told.n, told.clusters) == (10, 5)
    assert stats.estimate(twice).half_width < 0.8 * told.half_width


def test_two_measurements_give_no_interval_however_many_traces():
    assert stats.estimate([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"]).ci95 is None


def test_interval_covers_the_true_mean_where_traces_of_a_measurement_are_alike():
    """Measurements of 1 to 6 traces, half of whose variance is the measurement's."""
    rng = np.random.default_rng(5)
    held = {True: 0, False: 0}
    for _ in range(600):
        cluster = np.repeat(np.arange(30), rng.integers(1, 7, size=30))
        values = rng.normal(size=30)[cluster] + rng.normal(size=len(cluster))
        for told in held:
            low, high = stats.estimate(values, cluster.tolist() if told else None).ci95
            held[told] += low <= 0 <= high
    assert 0.92 <= held[True] / 600 <= 0.98
    assert held[False] / 600 < 0.88


def test_fcc_files_of_a_household_and_norwegian_files_of_a_ride_are_one_measurement():
    names = ["test_fcc_trace_5294_http---a_0", "test_fcc_trace_5294_http---b_1", "test_fcc_trace_77_http---a_0", "mine.csv", "other.csv"]
    found = stats.over_traces({(name, name): value for name, value in zip(names, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)})
    assert (found.n, found.clusters) == (5, 4)


def test_a_bootstrap_of_three_covers_far_too_little():
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        values = (rng.normal(size=3),)
        low, high = scipy.stats.bootstrap(values, np.mean, n_resamples=999, method="BCa", rng=rng).confidence_interval
        held += low <= 0 <= high
    assert 0.5 <= held / 200 <= 0.8


def test_holm_steps_down():
    assert stats.holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None]
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_test_agrees_with_the_interval():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.3, 0.6, 1.2):
        values = rng.normal(shift, 1.0, 12)
        half = scipy.stats.t.ppf(0.975, 11) * scipy.stats.sem(values)
        assert (stats.p_value_of(stats.estimate(values)) < 0.05) == (abs(values.mean()) > half)
        assert stats.p_value_of(stats.estimate(values)) == pytest.approx(scipy.stats.ttest_1samp(values, 0.0).pvalue)
    assert stats.p_value_of(stats.estimate(np.zeros(5))) == 1.0
    assert stats.p_value_of(stats.estimate(np.ones(5))) == 0.0
    assert stats.p_value_of(stats.estimate([1.0, 2.0])) is None


def test_the_share_of_the_optimum_is_a_ratio_of_means_with_an_interval_that_covers():
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        bases = rng.uniform(0.5, 3.0, 40)
        values = 0.8 * bases + rng.normal(0, 0.2, 40)
        found = stats.ratio_of_means(values, bases)
        assert found.mean == pytest.approx(values.mean() / bases.mean())
        hits += found.ci95[0] <= 0.8 <= found.ci95[1]
    assert 270 <= hits <= 297
    assert stats.ratio_of_means(np.ones(4), -np.ones(4)).mean is None
    doubled = stats.ratio_of_means(np.tile(values, 2), np.tile(bases, 2), [*range(40)] * 2)  # twice the same measurements tell no more
    assert doubled.ci95 == pytest.approx(found.ci95) and doubled.clusters == 40


def test_the_test_counts_measurements_not_traces():
    values, homes = [0.5, 0.7, 0.4, 0.9, 0.2, 0.6], ["a", "a", "b", "b", "c", "c"]
    found = stats.estimate(values, homes)
    assert stats.p_value_of(stats.estimate(values)) < 0.01 < stats.p_value_of(found) < 0.05
    low = found.mean - found.half_width
    at_the_edge = stats.estimate([value - low for value in values], homes)
    assert stats.p_value_of(at_the_edge) == pytest.approx(0.05)


@pytest.mark.parametrize("seeds", [{"a": 2, "b": 2}, {"a": 2, "b": 3}, {"a": 1, "b": 2, "c": 2, "d": 2}, {"a": 1, "b": 1, "c": 3, "d": 3}])
def test_the_interval_of_an_ablation_covers_the_truth_over_traces_and_training_seeds(seeds):
    """Seeds move all traces alike: over traces alone, the difference of two equal trainings is not 0 in a fifth of the cases."""
    rng, held = np.random.default_rng(7), {True: 0, False: 0}
    for _ in range(500):
        means = {name: rng.normal(0, 0.03, count).tolist() for name, count in seeds.items()}
        over_traces = stats.estimate(np.mean(means["a"]) - np.mean(means["b"]) + rng.normal(0, 0.2, 50))
        found = stats.with_training_seeds(over_traces, "a", "b", means)
        for told, each in ((True, found), (False, over_traces)):
            held[told] += each.ci95[0] <= 0 <= each.ci95[1]
        assert (stats.p_value_of(found) >= 0.05) == (found.ci95[0] <= 0 <= found.ci95[1])
    assert 0.92 <= held[True] / 500 <= 0.98
    assert held[False] / 500 < 0.87


def test_training_seeds_by_hand():
    """Without spread over traces the interval is Welch's of the seeds; without spread over seeds it is that over traces."""
    a, b = [1.0, 1.2, 1.1], [0.7, 0.5]
    still = stats.Estimate(0.5, (0.5, 0.5), 40)
    found = stats.with_training_seeds(still, "a", "b", {"a": a, "b": b, "c": [9.0, 3.0]})
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert found.ci95 == pytest.approx(tuple(welch.confidence_interval())) and found.freedom == pytest.approx(welch.df)
    assert stats.p_value_of(found) == pytest.approx(welch.pvalue)
    alone = stats.with_training_seeds(still, "a", "b", {"a": a, "b": [0.6]})
    assert alone.half_width == pytest.approx(scipy.stats.t.ppf(0.975, 2) * np.std(a, ddof=1) * (1 + 1 / 3) ** 0.5)
    over_traces = stats.estimate([0.3, 1.7, -0.4, 2.2])
    assert stats.with_training_seeds(over_traces, "a", "b", {"a": [1.0, 1.0], "b": [1.0]}).ci95 == pytest.approx(over_traces.ci95)
    assert stats.with_training_seeds(over_traces, "a", "b", {"a": [1.0], "b": [2.0]}).ci95 is None, "nobody knows how far seeds lie apart"
    assert stats.with_training_seeds(stats.estimate([1.0]), "a", "b", {"a": a, "b": b}).ci95 is None


def test_seeds_are_averaged_before_traces():
    trials = [trial("a", "x", 1.0, seed=1), trial("a", "x", 3.0, seed=2), trial("a", "y", 10.0)]
    assert stats.per_trace(trials) == {("x", "x"): 2.0, ("y", "y"): 10.0}


def test_offsets_weigh_the_same_whatever_their_seeds():
    trials = [trial("a", "x", 0.0, seed=1), trial("a", "x", 2.0, seed=2), trial("a", "x", 5.0, offset_s=10.0)]
    assert stats.per_trace(trials) == {("x", "x"): 3.0}


def test_files_of_one_name_in_two_folders_are_two_traces():
    twin = trial("a", "x", 4.0)
    other = TrialRow(**{name: getattr(twin, name) for name in twin.__struct_fields__} | {"trace_sha256": "other"})
    assert len(stats.per_trace([twin, other])) == 2


grids = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz"), st.integers(1, 3), st.floats(-9, 9)), min_size=1, max_size=30)


@quick
@given(grids)
def test_comparison_turned_round_changes_its_sign(cells):
    trials = [trial(policy, trace, qoe, seed) for policy, trace, seed, qoe in cells]
    there, back = stats.compare("a", "b", trials), stats.compare("b", "a", trials)
    assert there.differences == {key: pytest.approx(-d) for key, d in back.differences.items()}
    assert (there.wins, there.losses, there.ties) == (back.losses, back.wins, back.ties)
    assert there.wins + there.losses + there.ties == there.estimate.n == len(there.differences)


@quick
@given(grids, st.floats(-99, 99))
def test_invalid_trials_change_nothing(cells, wild):
    trials = [trial(policy, trace, qoe, seed) for policy, trace, seed, qoe in cells]
    invalid = [trial("a", "u", wild, seed=9, valid=False), trial("b", "new", wild, valid=False), trial("a", "v", None, seed=8)]
    assert stats.compare("a", "b", [*trials, *invalid]) == stats.compare("a", "b", trials)


def test_difference_is_taken_only_where_both_have_a_valid_trial():
    trials = [trial("a", "x", 5.0), trial("b", "x", 4.0), trial("a", "hard", -50.0), trial("b", "hard", 1.0, valid=False)]
    pair = stats.compare("a", "b", trials)
    assert pair.differences == {("x", "x"): 1.0}
    assert (pair.wins, pair.losses, pair.ties) == (1, 0, 0)


def test_less_is_better_for_costs():
    trials = [trial("a", "x", 5.0), trial("b", "x", 4.0)]
    assert stats.compare("a", "b", trials, metric="avg_jct_s").losses == 1
    assert stats.strongest({"a": 5.0, "b": 4.0, "c": None}, "avg_jct_s") == "b"
    assert stats.strongest({"a": 5.0, "b": 4.0}) == "a"
    assert stats.strongest({"c": None}) is None


def test_rounding_is_a_tie():
    trials = [trial("a", "x", 0.1 + 0.2), trial("b", "x", 0.3)]
    assert stats.compare("a", "b", trials).ties == 1


@quick
@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.floats(0, 1))
def test_quantile_is_one_of_or_between_the_values(values, q):
    found = stats.quantile(values, q)
    assert (found is None) == (not values)
    if values:
        assert min(values) - 1e-6 <= found <= max(values) + 1e-6
        assert math.isclose(stats.quantile(values, 0), min(values)) and math.isclose(stats.quantile(values, 1), max(values))


def test_seeds_are_paired_too():
    of_a = [trial("a", "x", 0.0, seed=1), trial("a", "x", 2.0, seed=2)]
    of_b = [trial("b", "x", 0.0, seed=1), trial("b", "x", 9.0, seed=2, valid=False)]
    assert stats.compare("a", "b", of_a + of_b).differences == {("x", "x"): 0.0}
