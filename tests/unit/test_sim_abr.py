"""The ABR simulator: each rule of Pensieve's model by hand, and what must hold for any trace."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.abr.bba import BBA
from controllers.abr.fixed import Fixed
from controllers.api import AbrObservation, AbrPolicy, AbrSession, Manifest
from testbed.errors import UserError
from testbed.metrics import summarise
from testbed.sim.abr import OPPORTUNITY_BIN_S, PAYLOAD_SHARE, AbrSimulator, run_session
from tests.abr_cases import session, steady, varied
from traces.formats import to_rates
from traces.trace import MIN_MEAN_RATE_BPS, OpportunityTrace, RateTrace

FLAT = Manifest("flat", 4.0, (300_000, 950_000), ((150_000, 475_000),) * 40)


def test_a_steady_link_by_hand() -> None:
    simulator = AbrSimulator(steady(1.0), AbrSession("s", FLAT, 3))
    first, second = simulator.step(0), simulator.step(1)
    assert first.download_s == pytest.approx(1.2 / 0.95 + 0.08)
    assert (first.rebuffer_s, first.buffer_s, first.waited_s) == (first.download_s, 4.0, 0.0)
    assert second.download_s == pytest.approx(4.0 + 0.08)
    assert second.rebuffer_s == pytest.approx(0.08)
    assert second.buffer_s == 4.0
    # The round trip does not advance the trace's time: two transfers have passed, not two downloads.
    assert simulator.trace_s == pytest.approx(1.2 / 0.95 + 4.0)
    assert not simulator.done
    simulator.step(0)
    assert simulator.done
    with pytest.raises(ValueError, match="the session has 3 chunks"):
        simulator.step(0)


def test_the_trace_wraps_and_outages_pass() -> None:
    trace = RateTrace("gap", (0.0, 1.0, 3.0), (1e6, 0.0))
    simulator = AbrSimulator(trace, AbrSession("s", FLAT, 2))
    # 150 kB need 1.2 Mbit of payload: 0.95 in the first second, 2 s of outage, 0.25 after the wrap.
    assert simulator.step(0).download_s == pytest.approx(3.0 + 0.25 / 0.95 + 0.08)
    assert (simulator.wraps, simulator.trace_s) == (1, pytest.approx(0.25 / 0.95))


def test_a_full_buffer_pauses_in_half_seconds() -> None:
    simulator = AbrSimulator(steady(50.0), AbrSession("s", FLAT, 40))
    chunks = [simulator.step(0) for _ in range(40)]
    paused = [chunk for chunk in chunks if chunk.waited_s]
    assert len(paused) > 20
    for chunk in paused:
        assert chunk.waited_s % 0.5 == 0
        assert 59.5 < chunk.buffer_s - chunk.waited_s <= 60.0
    assert max(chunk.buffer_s for chunk in chunks if not chunk.waited_s) <= 60.0
    assert simulator.trace_s == pytest.approx(sum(c.download_s - 0.08 + c.waited_s for c in chunks) % 100)


def test_an_offset_on_a_sample_starts_with_that_sample() -> None:
    trace = RateTrace("steps", (0.0, 5.0, 10.0), (1e6, 9e6))
    assert AbrSimulator(trace, AbrSession("s", FLAT, 2), 5.0).step(0).download_s == pytest.approx(1.2 / 0.95 / 9 + 0.08)
    assert AbrSimulator(trace, AbrSession("s", FLAT, 2), 20.0).step(0).download_s == pytest.approx(1.2 / 0.95 + 0.08)


def test_opportunities_are_served_as_rates() -> None:
    trace = OpportunityTrace("paced", tuple(0.004 * (i + 1) for i in range(5000)))  # 3 Mbit/s for 20 s
    rates = to_rates(trace, OPPORTUNITY_BIN_S)
    assert run_session(trace, session(), BBA(), 1, 3.0) == run_session(rates, session(), BBA(), 1, 3.0)
    assert AbrSimulator(trace, AbrSession("s", FLAT, 2)).step(0).download_s == pytest.approx(0.4 / 0.95 + 0.08, rel=0.01)


def test_noise_scales_downloads_only_and_follows_the_seed() -> None:
    plain, noisy = run_session(varied(), session(), Fixed(2), 1), run_session(varied(), session(), Fixed(2), 1, noise=0.1)
    first = noisy[0].download_s / plain[0].download_s  # later chunks meet the trace at other times
    assert 0.9 <= first <= 1.1
    assert first != 1.0
    assert noisy == run_session(varied(), session(), Fixed(2), 1, noise=0.1)
    assert noisy != run_session(varied(), session(), Fixed(2), 2, noise=0.1)
    with pytest.raises(ValueError, match="needs a random generator"):
        AbrSimulator(varied(), session(), noise=0.1)


class _Answers(AbrPolicy):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def decide(self, observation: AbrObservation) -> int:
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "text"), [(6, "answered 6, wanted a level of 0 to 5"), (-1, "answered -1"), (1.0, "answered 1.0"), (None, "answered None")]
)
def test_an_answer_that_is_no_level_is_refused(answer: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        run_session(varied(), session(), _Answers(answer), 1)


def test_a_numpy_integer_is_a_level() -> None:
    assert [chunk.level for chunk in run_session(varied(), session(3), _Answers(np.int64(2)), 1)] == [0, 2, 2]
    assert all(type(chunk.level) is int for chunk in run_session(varied(), session(3), _Answers(np.int64(2)), 1))


def test_a_session_that_does_not_fit_its_video_is_refused() -> None:
    with pytest.raises(UserError, match=r"50 chunks were asked for, wanted 1 to the 49 of video toy6"):
        AbrSimulator(varied(), session(50))
    falling = dataclasses.replace(FLAT, bitrates_bps=(950_000, 300_000))
    with pytest.raises(UserError, match=r"bitrate 300000 bit/s follows 950000 bit/s, wanted a ladder that rises"):
        AbrSimulator(varied(), AbrSession("s", falling, 2))


TRACES = st.lists(st.tuples(st.floats(0.1, 30.0), st.one_of(st.just(0.0), st.floats(1e5, 2e7))), min_size=1, max_size=12).filter(
    lambda rows: sum(width * rate for width, rate in rows) >= 2 * MIN_MEAN_RATE_BPS * sum(width for width, _ in rows)
)


def _trace(rows: list[tuple[float, float]]) -> RateTrace:
    edges_s = tuple(float(edge) for edge in np.cumsum([0.0, *(width for width, _ in rows)]))
    return RateTrace("any", edges_s, tuple(rate for _, rate in rows))


@settings(max_examples=60, deadline=None)
@given(rows=TRACES, levels=st.lists(st.integers(0, 5), min_size=11, max_size=11), offset_s=st.floats(0.0, 100.0))
def test_time_and_bytes_are_conserved(rows: list[tuple[float, float]], levels: list[int], offset_s: float) -> None:
    trace, playback = _trace(rows), session(12)
    simulator = AbrSimulator(trace, playback, offset_s)
    began_s = simulator.trace_s
    simulator.step(0)
    for level in levels:
        simulator.step(level)
    chunks = simulator.history
    wall_s = sum(chunk.download_s + chunk.waited_s for chunk in chunks)
    played_s = 12 * playback.video.chunk_s - simulator.buffer_s
    assert wall_s == pytest.approx(played_s + sum(chunk.rebuffer_s for chunk in chunks), rel=1e-9)
    on_trace_s = simulator.trace_s + simulator.wraps * trace.duration_s - began_s
    assert on_trace_s == pytest.approx(wall_s - 12 * playback.rtt_s, rel=1e-9, abs=1e-6)
    sent_bytes = sum(chunk.size_bytes for chunk in chunks)
    room_bytes = PAYLOAD_SHARE * (trace.bytes_by(began_s + on_trace_s) - trace.bytes_by(began_s))
    assert sent_bytes <= room_bytes * (1 + 1e-9) + 1
    if not any(chunk.waited_s for chunk in chunks):
        assert sent_bytes == pytest.approx(room_bytes, rel=1e-6, abs=1)


@settings(max_examples=40, deadline=None)
@given(rows=TRACES, first=st.integers(0, 11))
def test_an_offset_is_the_trace_turned(rows: list[tuple[float, float]], first: int) -> None:
    first %= len(rows)
    shifted = run_session(_trace(rows), session(12), BBA(), 1, _trace(rows).edges_s[first])
    turned = run_session(_trace(rows[first:] + rows[:first]), session(12), BBA(), 1)
    video = session().video
    assert summarise(shifted, video).qoe == pytest.approx(summarise(turned, video).qoe, rel=1e-6, abs=1e-6)
