"""The grid of live viewings: paired, and with viewings that last as long as the video."""

import pytest

from testbed.errors import UserError
from testbed.spec import Experiment
from testbed.vp import _grid
from tests.vp_cases import viewing
from traces.trace import RateTrace

TRACES = [RateTrace(f"steady {mbps}", (0.0, 60.0), (mbps * 1e6,)) for mbps in (2.0, 1.0)]


def grid(lengths: list[int], chunks: int, trials: int = 2):
    """On viewings of so many samples each, five a second; a chunk takes five."""
    viewings = [viewing(user=user, samples=samples) for user, samples in enumerate(lengths)]
    experiment = Experiment(task="vp", trace=("fcc",), chunks=chunks, trials=trials, seeds=(1,))
    return _grid(experiment, ["a", "b"], TRACES, (), viewings)


def test_policies_meet_the_same_viewing_and_none_is_too_short():
    cells = grid([99, 100, 99, 130, 60], chunks=20)
    assert [(cell.group, cell.policy) for cell in cells] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    users = [cell.viewing.user for cell in cells]
    assert users[0] == users[1] != users[2] == users[3]
    assert set(users) == {1, 3}


def test_more_chunks_than_any_viewing_lasts_are_refused():
    with pytest.raises(UserError, match=r"--chunks is 30, wanted fewer: that takes 150 samples, the longest viewing has 130"):
        grid([99, 130], chunks=30)
