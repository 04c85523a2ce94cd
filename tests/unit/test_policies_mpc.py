"""RobustMPC against a plain search written a second time, in the order of operations of the published code."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controllers.abr.robust_mpc import RobustMPC
from controllers.api import AbrObservation, AbrPolicy
from testbed.errors import UserError
from testbed.sim.abr import run_session
from tests.abr_cases import observation, session, varied


def plain_bound_bps(throughputs_bps: list[float], robust: bool) -> float:
    """As the published code keeps it: one prediction and one error a chunk, the first error 0."""
    predictions: list[float] = []
    errors: list[float] = []
    bound = 0.0
    for n in range(1, len(throughputs_bps) + 1):
        recent = throughputs_bps[max(0, n - 5) : n]
        errors.append(abs(predictions[-1] - recent[-1]) / recent[-1] if predictions else 0.0)
        predictions.append(len(recent) / sum(1 / bps for bps in recent))
        bound = predictions[-1] / (1 + max(errors[-5:])) if robust else predictions[-1]
    return bound


def plain_search(seen: AbrObservation, bound_bps: float, adjacent: bool, late: bool, horizon: int = 5) -> int:
    bitrates_bps, best, chosen = seen.video.bitrates_bps, float("-inf"), -1
    for plan in itertools.product(range(seen.video.levels), repeat=min(horizon, seen.chunks_left)):
        if adjacent and any(abs(b - a) > 1 for a, b in itertools.pairwise((seen.last_level, *plan))):
            continue
        buffer_s, stall_s, total_bps, switch_bps, last = seen.buffer_s, 0.0, 0, 0, seen.last_level
        for step, level in enumerate(plan):
            row = min(seen.chunk_index + step + late, len(seen.video.sizes_bytes) - 1)
            download_s = seen.video.sizes_bytes[row][level] / (bound_bps / 8)
            if buffer_s < download_s:
                stall_s += download_s - buffer_s
                buffer_s = 0.0
            else:
                buffer_s -= download_s
            buffer_s += seen.video.chunk_s
            total_bps += bitrates_bps[level]
            switch_bps += abs(bitrates_bps[level] - bitrates_bps[last])
            last = level
        qoe = total_bps / 1e6 - 4.3 * stall_s - switch_bps / 1e6
        if qoe >= best:
            best, chosen = qoe, plan[0]
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    throughputs_bps=st.lists(st.floats(5e4, 2e7), min_size=1, max_size=11),
    last=st.integers(0, 3),
    buffer_s=st.floats(0.0, 60.0),
    adjacent=st.booleans(),
    late=st.booleans(),
    robust=st.booleans(),
    chunks_left=st.integers(1, 7),
)
@example(throughputs_bps=[2e7], last=0, buffer_s=60.0, adjacent=False, late=False, robust=True, chunks_left=5)  # nothing but ties
def test_it_finds_what_a_plain_search_finds(
    throughputs_bps: list[float], last: int, buffer_s: float, adjacent: bool, late: bool, robust: bool, chunks_left: int
) -> None:
    playback = session(len(throughputs_bps) + chunks_left, levels=4)
    seen = observation(playback, throughputs_bps, [last] * len(throughputs_bps), buffer_s)
    policy = RobustMPC("adjacent" if adjacent else "all", "late" if late else "right", robust)
    policy.reset(playback, 1)
    measured_bps = [chunk.throughput_bps for chunk in seen.history]
    assert policy.decide(seen) == plain_search(seen, plain_bound_bps(measured_bps, robust), adjacent, late)


def test_of_equal_plans_the_last_wins() -> None:
    """With no stall in sight, a last step up gains what its change costs: the plan that steps up is last in order."""
    playback = session(2, levels=3)
    policy = RobustMPC()
    policy.reset(playback, 1)
    assert policy.decide(observation(playback, [1e9], [0], 40.0)) == 2


class _Spy(AbrPolicy):
    """RobustMPC next to the plain search, chunk by chunk."""

    def __init__(self) -> None:
        self.policy, self.agreed = RobustMPC(horizon=3), 0

    def reset(self, playback, seed) -> None:
        super().reset(playback, seed)
        self.policy.reset(playback, seed)

    def decide(self, seen: AbrObservation) -> int:
        level = self.policy.decide(seen)
        bound_bps = plain_bound_bps([chunk.throughput_bps for chunk in seen.history], True)
        self.agreed += level == plain_search(seen, bound_bps, False, False, horizon=3)
        return level


def test_whole_sessions_agree_with_a_plain_search() -> None:
    spy = _Spy()
    run_session(varied(), session(30), spy, 1)
    assert spy.agreed == 29


def test_a_long_ladder_is_planned_over_fewer_chunks() -> None:
    playback = session(20, levels=25)
    policy = RobustMPC()
    policy.reset(playback, 1)
    assert 0 <= policy.decide(observation(playback, [4e6], [0], 20.0)) < 25
    assert max(policy._plans) == 3  # 25^3 plans, 25^4 would be too many


def test_a_horizon_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="horizon is 0 chunks, wanted at least 1"):
        RobustMPC(horizon=0)
