"""The classic policies against their rules worked out by hand."""

import itertools
import math

import pytest

from controllers.abr.bba import BBA
from controllers.abr.bola import Bola
from controllers.abr.fixed import Fixed
from controllers.abr.panda import Panda
from controllers.abr.rate import RateBased
from controllers.api import AbrPolicy, AbrSession
from testbed.errors import UserError
from testbed.sim.abr import run_session
from tests.abr_cases import observation, session, steady, varied

PLAYBACK = session()  # 300, 450, 675, 1012, 1519, 2278 kbit/s


def started(policy: AbrPolicy, playback: AbrSession = PLAYBACK) -> AbrPolicy:
    policy.reset(playback, 1)
    return policy


def test_fixed_answers_its_level() -> None:
    assert [chunk.level for chunk in run_session(varied(), session(4), Fixed(3), 1)] == [0, 3, 3, 3]
    with pytest.raises(UserError, match=r"policy fixed: level is 6, wanted 0 to 5 of video toy6"):
        started(Fixed(6))


@pytest.mark.parametrize(
    ("buffer_s", "level"), [(0.0, 0), (4.99, 0), (5.0, 0), (6.99, 0), (7.0, 1), (9.0, 2), (11.0, 3), (14.99, 4), (15.0, 5), (60.0, 5)]
)
def test_bba_maps_the_buffer_linearly(buffer_s: float, level: int) -> None:
    assert started(BBA()).decide(observation(PLAYBACK, [1e6], [0], buffer_s)) == level


def test_bba_takes_other_reservoirs() -> None:
    assert started(BBA(10.0, 20.0)).decide(observation(PLAYBACK, [1e6], [0], 18.0)) == 2
    with pytest.raises(UserError, match="cushion_s 0"):
        BBA(5.0, 0.0)


def test_rate_takes_the_harmonic_mean_of_five() -> None:
    policy = started(RateBased())
    assert policy.decide(observation(PLAYBACK, [675_100.0], [0], 4.0)) == 2
    assert policy.decide(observation(PLAYBACK, [674_900.0], [0], 4.0)) == 1
    # Harmonic mean of 0.5 and 4.5 is 0.9 Mbit/s (the arithmetic one 2.5); the sixth from the end is out of the window.
    assert policy.decide(observation(PLAYBACK, [1e3, *[0.5e6, 4.5e6] * 2, 0.9e6], [0] * 6, 4.0)) == 2
    assert policy.decide(observation(PLAYBACK, [1e3, 0.5e6, 4.5e6, 0.5e6, 4.5e6], [0] * 5, 4.0)) == 0


def _crossing_s(policy: Bola, low: int, high: int, v_s: float, gamma_p: float) -> float:
    """Buffer at which two levels score alike, from the paper's score."""
    a, b = PLAYBACK.video.bitrates_bps[low], PLAYBACK.video.bitrates_bps[high]
    u, w = (math.log(bps / PLAYBACK.video.bitrates_bps[0]) for bps in (a, b))
    return v_s * (gamma_p + (b * u - a * w) / (b - a))


@pytest.mark.parametrize("parameters", ["dashjs", "paper"])
def test_bola_steps_up_where_scores_cross(parameters: str) -> None:
    policy = Bola(variant="basic", parameters=parameters)  # type: ignore[arg-type]
    started(policy)
    top = math.log(PLAYBACK.video.bitrates_bps[-1] / PLAYBACK.video.bitrates_bps[0])
    v_s, gamma_p = (12.0 / top, 10.0 * top / 12.0) if parameters == "dashjs" else (56.0 / (top + 5), 5.0)
    for low, high in itertools.pairwise(range(6)):
        edge_s = _crossing_s(policy, low, high, v_s, gamma_p)
        assert policy.decide(observation(PLAYBACK, [9e6], [0], edge_s - 1e-6)) == low
        assert policy.decide(observation(PLAYBACK, [9e6], [0], edge_s + 1e-6)) == high


@pytest.mark.parametrize(
    ("variant", "throughput_bps", "last", "level"),
    [
        ("basic", 0.5e6, 0, 5),
        ("o", 9e6, 0, 5),  # the throughput carries it
        ("o", 0.5e6, 0, 1),  # capped by the throughput
        ("o", 0.5e6, 3, 3),  # not lowered because of it
        ("u", 0.5e6, 0, 2),  # one more than o
        ("u", 0.5e6, 3, 3),
    ],
)
def test_bola_caps_steps_up(variant: str, throughput_bps: float, last: int, level: int) -> None:
    policy = started(Bola(variant=variant))  # type: ignore[arg-type]
    assert policy.decide(observation(PLAYBACK, [throughput_bps], [last], 40.0)) == level


def test_bola_steps_down_with_the_buffer() -> None:
    assert started(Bola()).decide(observation(PLAYBACK, [9e6], [5], 1.0)) == 0
    with pytest.raises(UserError, match=r"target_s is 9\.0, wanted more than 10\.0"):
        Bola(target_s=9.0)


def test_panda_by_hand() -> None:
    policy = started(Panda())
    # First chunk: X = Y = 1 Mbit/s, so up is the highest within 0.85: 675 kbit/s.
    assert policy.decide(observation(PLAYBACK, [1e6], [0], 4.0)) == 2
    # Second: x = 5, so X rises by T kappa w with T = size / x; Y follows.
    seen = observation(PLAYBACK, [1e6, 5e6], [0, 2], 8.0)
    interval_s = seen.history[1].download_s
    probed = 1e6 + interval_s * 0.14 * 3e5
    smoothed = 1e6 + interval_s * 0.2 * (probed - 1e6)
    policy.decide(seen)
    assert (policy._probed_bps, policy._smoothed_bps) == pytest.approx((probed, smoothed))  # type: ignore[attr-defined]
    # Third: x = 0.2 takes longer than 3 s; X falls by 3 kappa (X - x).
    policy.decide(observation(PLAYBACK, [1e6, 5e6, 2e5], [0, 2, 2], 4.0))
    lower = probed - 3 * 0.14 * (probed - 2e5)
    assert policy._probed_bps == pytest.approx(lower)  # type: ignore[attr-defined]
    assert policy._smoothed_bps == pytest.approx(smoothed + 0.6 * (lower - smoothed))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("last", "level"), [(0, 2), (2, 2), (3, 3), (4, 3), (5, 3)])
def test_panda_stays_in_its_dead_zone(last: int, level: int) -> None:
    """Y = 1.1 Mbit/s: 675 kbit/s is within 0.85 Y, 1012 within Y."""
    assert started(Panda()).decide(observation(PLAYBACK, [1.1e6], [last], 10.0)) == level


def test_panda_settles_at_the_rate_of_a_steady_link() -> None:
    chunks = run_session(steady(2.0), session(), Panda(), 1)
    assert {chunk.level for chunk in chunks[20:]} == {4}  # 1519 kbit/s, the highest within 0.85 x (0.95 x 2 Mbit/s, less round trips)
    with pytest.raises(UserError, match=r"alpha is -1, wanted at least 0"):
        Panda(alpha=-1)


def test_missed_decisions_leave_no_gap() -> None:
    """A policy that was not asked for some chunks (fallbacks) knows as much as one that was."""
    throughputs_bps = [1e6, 2e6, 0.4e6, 3e6, 1.5e6, 0.8e6]
    always, late = started(Panda()), started(Panda())
    for n in range(1, 7):
        answer = always.decide(observation(PLAYBACK, throughputs_bps[:n], [1] * n, 8.0))
    assert late.decide(observation(PLAYBACK, throughputs_bps, [1] * 6, 8.0)) == answer
    assert (late._probed_bps, late._smoothed_bps) == (always._probed_bps, always._smoothed_bps)  # type: ignore[attr-defined]
