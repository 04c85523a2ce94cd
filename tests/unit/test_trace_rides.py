"""Windows of one ride are found whatever cut and resampled them, and nothing else is."""

import numpy as np
import pytest

from traces.rides import each_second_mbps, find_known, find_match, find_rides
from traces.store import resolve
from traces.trace import RateTrace


def ride(seed: int, seconds: int = 400) -> np.ndarray:
    """Mbit/s of each second: a level that wanders, and noise."""
    rng = np.random.default_rng(seed)
    return 3 * np.exp(0.1 * rng.normal(size=seconds).cumsum() + 0.1 * rng.normal(size=seconds))


def resampled(values: np.ndarray, step_s: float, name: str) -> RateTrace:
    """The same minutes in steps of another length, each the mean of what it spans, to three digits."""
    passed = np.concatenate([[0.0], np.cumsum(values)])
    edges_s = np.arange(0, len(values), step_s)
    rates = np.diff(np.interp(edges_s, np.arange(len(passed)), passed)) / step_s
    return RateTrace(name, tuple(edges_s.tolist()), tuple((1e6 * np.round(rates, 3)).tolist()))


@pytest.mark.parametrize("step_s", [0.7, 1.0, 1.3, 2.1])
@pytest.mark.parametrize("begin, end", [(0, 400), (150, 390), (230, 400)])
def test_a_window_is_found_in_its_ride(step_s, begin, end):
    whole = ride(1)
    ((pair, match),) = find_rides([resampled(whole, 1.1, "whole")], [resampled(whole[begin:end], step_s, "window")]).items()
    assert pair == ("whole", "window")
    assert match.correlation > 0.87 and abs(match.overlap_s - (end - begin)) <= 4 and match.means == pytest.approx(1, abs=0.05)


def test_windows_that_overlap_match_and_others_do_not():
    whole = ride(2, 600)
    first, second = whole[:320], whole[180:500]
    assert find_match(first, second).overlap_s == 140
    assert find_match(first, whole[220:540]) is None, "100 s in common are too few"
    assert find_match(first, whole[330:]) is None
    assert find_match(first, second[::-1]) is None
    assert find_match(first, 2 * second) is None, "a scaled one carries other bytes"
    assert find_match(first, np.full(300, 3.0)) is None


@pytest.mark.parametrize("seed", range(20))
def test_other_rides_do_not_match(seed):
    assert find_match(ride(100 + seed), ride(200 + seed)) is None


def test_of_norway_apart_no_ride_is_learnt_from_and_of_test_28_are():
    train, test, apart = (resolve(f"norway/{split}").traces for split in ("train", "test", "apart"))
    backwards = []
    for trace in train:
        edges_s = np.array(trace.edges_s)
        backwards.append(RateTrace(trace.name, tuple((edges_s[-1] - edges_s[::-1]).tolist()), trace.rates_bps[::-1]))
    assert len({name for _, name in find_rides(train, test)}) == 28
    assert not find_rides(backwards, test)
    assert not find_rides(train, apart)
    assert {trace.name for trace in apart} == {trace.name for trace in test} - find_known(train, test) and len(apart) == 31
    assert all(len(each_second_mbps(trace)) >= 120 for trace in apart)
