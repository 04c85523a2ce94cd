"""The player's timing: hand-computed sessions, the time account, and equality with Pensieve's simulator on an ideal link."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from players.playback import Account, Playback, Stall, Timing

DASHJS = json.loads((Path(__file__).parent / "dashjs_sessions.json").read_text())
"""Sessions of dash.js 5.2.1 in Chromium on emulated links, 2026-11-28, commits 3cdfe60 (`run.py --trace fcc --player dashjs`) and 46578f2
(`scripts/bench dashjs`): when chunks came, and what the browser said of its playback."""
NO_LAG = Timing(chunk_s=4.0, start_lag_s=0.0, resume_lag_s=0.0)


def test_a_session_computed_by_hand() -> None:
    playback = Playback(Timing(chunk_s=4.0), chunks=3)
    playback.begin(100.0)
    assert playback.append(101.0) == pytest.approx(1.012)  # start-up: download and the lag to the first frame
    assert playback.buffer_s(101.0) == 4.0
    assert playback.buffer_s(102.012) == pytest.approx(3.0)
    assert playback.append(104.0) == 0.0
    assert playback.buffer_s(104.0) == pytest.approx(8.0 - (104.0 - 101.012))
    # dry at 101.012 + 8 = 109.012; the third chunk comes at 110
    assert playback.stalls(109.5) == (Stall(pytest.approx(109.012), 109.5),)
    assert playback.append(110.0) == pytest.approx(110.003 - 109.012)
    assert playback.stalls(110.0) == (Stall(pytest.approx(109.012), pytest.approx(110.003)),)
    account = playback.account(110.0)
    assert account == Account(pytest.approx(1.012), pytest.approx(8.0), pytest.approx(0.991), pytest.approx(10.003))


@pytest.mark.parametrize("session", DASHJS, ids=lambda session: f"{session['policy']}-{len(session['stalls_s'])}")
def test_handed_the_chunks_of_dashjs_it_plays_and_stalls_as_dashjs_did(session: dict[str, Any]) -> None:
    playback = Playback(Timing(chunk_s=4.0), len(session["came_s"]))
    playback.begin(0.0)
    for came_s in session["came_s"]:
        playback.append(came_s)
    account = playback.account(session["came_s"][-1])
    stalls = [(stall.start_s, stall.end_s) for stall in playback.stalls(session["came_s"][-1])]
    assert account.startup_s == pytest.approx(session["startup_s"], abs=0.02)
    assert stalls == [pytest.approx(stall, abs=0.1) for stall in session["stalls_s"]]
    assert account.wall_s == pytest.approx(session["end_s"], abs=0.1)


def test_a_request_is_due_below_the_cap_and_polled_each_half_second_above() -> None:
    playback = Playback(Timing(chunk_s=4.0, buffer_cap_s=8.0, start_lag_s=0.0), chunks=9)
    playback.begin(0.0)
    assert playback.wait_s(0.0) == 0.0
    playback.append(0.0)
    assert playback.wait_s(0.0) == 0.0
    playback.append(0.0)
    assert playback.wait_s(0.0) == 0.5  # 8 s held: level + chunk is the target, not below it
    assert playback.wait_s(0.001) == 0.0


def test_the_tail_stalls_early_but_not_at_the_end_of_the_video() -> None:
    playback = Playback(Timing(chunk_s=4.0, start_lag_s=0.0, tail_s=0.11), chunks=2)
    playback.begin(0.0)
    playback.append(1.0)
    assert playback.buffer_s(5.5) == pytest.approx(0.11)
    assert playback.stalls(5.5) == (Stall(pytest.approx(4.89), 5.5),)
    playback.append(6.0)
    assert playback.buffer_s(60.0) == 0.0
    assert len(playback.stalls(60.0)) == 1


def test_an_interrupted_start_up_and_an_interrupted_stall_are_accounted() -> None:
    playback = Playback(NO_LAG, chunks=5)
    playback.begin(1.0)
    assert playback.account(3.5) == Account(2.5, 0.0, 0.0, 2.5)
    playback.append(4.0)
    assert playback.account(10.0) == Account(3.0, 4.0, 2.0, 9.0)


def test_the_whole_video_in_the_buffer_never_stalls() -> None:
    playback = Playback(NO_LAG, chunks=1)
    playback.begin(0.0)
    playback.append(1.0)
    assert playback.stalls(100.0) == ()


def test_time_that_goes_back_is_refused() -> None:
    playback = Playback(NO_LAG, chunks=2)
    playback.begin(2.0)
    with pytest.raises(ValueError, match=r"now is 1\.0 s, was 2\.0 s"):
        playback.append(1.0)
    with pytest.raises(ValueError, match="time went back"):
        playback.append(math.nan)


seconds = st.floats(0.0, 30.0)
timings = st.builds(
    Timing,
    chunk_s=st.floats(0.5, 10.0),
    buffer_cap_s=st.floats(5.0, 60.0),
    start_lag_s=st.floats(0.0, 0.2),
    resume_lag_s=st.floats(0.0, 0.2),
    tail_s=st.floats(0.0, 0.2),
)


@given(timings, st.lists(st.tuples(seconds, seconds), min_size=1, max_size=60))
def test_playback_rebuffer_and_startup_are_the_wall_time(timing: Timing, steps: list[tuple[float, float]]) -> None:
    """Each step downloads for the first time and pauses for the second; the account balances at every event and the buffer is bounded."""
    playback = Playback(timing, chunks=len(steps))
    now = 5.0
    playback.begin(now)
    rebuffers = []
    for download_s, pause_s in steps:
        now += download_s
        rebuffers.append(playback.append(now))
        _assert_balanced(playback, now, sum(rebuffers))
        now += pause_s
        _assert_balanced(playback, now)


def _assert_balanced(playback: Playback, now: float, rebuffer_s: float | None = None) -> None:
    account = playback.account(now)
    assert account.startup_s + account.played_s + account.rebuffer_s == pytest.approx(account.wall_s, abs=1e-9)
    assert min(account.startup_s, account.played_s, account.rebuffer_s) >= 0.0
    assert 0.0 <= playback.buffer_s(now) <= playback.appended * playback.timing.chunk_s
    if rebuffer_s is not None:
        assert account.startup_s + account.rebuffer_s == pytest.approx(rebuffer_s, abs=1e-9)
    for a, b in itertools.pairwise(playback.stalls(now)):
        assert a.start_s < a.end_s <= b.start_s + 1e-9


@given(st.lists(st.floats(0.01, 20.0), min_size=1, max_size=60))
def test_without_lags_it_is_pensieve(delays_s: list[float]) -> None:
    """Pensieve's recurrence, written out here: rebuffer, buffer, and the sleep in steps of 0.5 s above 60 s."""
    playback = Playback(NO_LAG, chunks=len(delays_s))
    now = 0.0
    playback.begin(now)
    buffer_s = 0.0
    for i, delay_s in enumerate(delays_s):
        now += delay_s
        rebuffer_s = max(delay_s - buffer_s, 0.0)
        buffer_s = max(buffer_s - delay_s, 0.0) + 4.0
        assert playback.append(now) == pytest.approx(rebuffer_s, abs=1e-9), i
        assert playback.buffer_s(now) == pytest.approx(buffer_s, abs=1e-9)
        sleep_s = math.ceil((buffer_s - 60.0) / 0.5) * 0.5 if buffer_s > 60.0 else 0.0
        buffer_s -= sleep_s
        waited_s = 0.0
        while (step_s := playback.wait_s(now)) > 0:
            now += step_s
            waited_s += step_s
        if abs(buffer_s - 60.0) > 1e-6:  # at exactly the cap the two differ by one step, as the module says
            assert waited_s == pytest.approx(sleep_s, abs=1e-9)
        else:
            buffer_s -= waited_s - sleep_s
