"""The player's logic on the virtual clock and an ideal link plays what the simulator twin plays (Pensieve's and NetLLM's semantics)."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.api import AbrSession, Chunk, Manifest
from players.playback import Playback, Timing
from testbed.sim.abr import AbrSimulator
from traces.trace import RateTrace

LADDER = (300_000, 750_000, 1_200_000, 1_850_000, 2_850_000, 4_300_000)
VIDEO = Manifest("v", 4.0, LADDER, tuple(tuple(rate // 2 + 1_000 * chunk for rate in LADDER) for chunk in range(49)))
TOLERANCE_S = 1e-6
"""Sums of a whole session in two orders; the clocks' values are up to 1e5 s."""


CROOKED = 1.000012345
"""Keeps round rates from ending a chunk at the very end of a segment: the simulator waits out an outage that follows (as Pensieve does)."""


class IdealLink:
    """0.95 of the trace's rate is payload; a round trip of 80 ms comes on top and does not move the trace, as in Pensieve."""

    def __init__(self, trace: RateTrace) -> None:
        self.trace = trace
        self.trace_s = 0.0

    def download_s(self, size_bytes: int) -> float:
        """How long a chunk takes; written by accumulated bytes, not step by step as the simulator does it."""
        period_bytes = 0.95 * self.trace.capacity_bytes
        target_bytes = self._carried_bytes(self.trace_s) + size_bytes
        periods = max(0, math.ceil(target_bytes / period_bytes) - 1)
        left_bytes = target_bytes - periods * period_bytes
        end_s = self.trace.duration_s
        for start_s, stop_s, rate_bps in zip(self.trace.edges_s, self.trace.edges_s[1:], self.trace.rates_bps, strict=False):
            can_bytes = 0.95 * rate_bps / 8 * (stop_s - start_s)
            if can_bytes >= left_bytes:
                end_s = start_s + (left_bytes / (0.95 * rate_bps / 8) if left_bytes > 0 else 0.0)
                break
            left_bytes -= can_bytes
        took_s = periods * self.trace.duration_s + end_s - self.trace_s
        self.trace_s += took_s
        return took_s + 0.08

    def sleep(self, seconds: float) -> None:
        """The player pauses and the trace goes on."""
        self.trace_s += seconds

    def _carried_bytes(self, trace_s: float) -> float:
        periods, rest_s = divmod(trace_s, self.trace.duration_s)
        edges = zip(self.trace.edges_s, self.trace.edges_s[1:], self.trace.rates_bps, strict=False)
        part = sum(rate / 8 * (min(stop, rest_s) - start) for start, stop, rate in edges if start < rest_s)
        return 0.95 * (periods * self.trace.capacity_bytes + part)


def play(link: IdealLink, levels: list[int]) -> list[Chunk]:
    """A playback without lags on the virtual clock, as the headless player does it on the real one."""
    playback = Playback(Timing(VIDEO.chunk_s, start_lag_s=0.0, resume_lag_s=0.0), len(levels))
    now = 0.0
    playback.begin(now)
    chunks = []
    for index, level in enumerate(levels):
        size_bytes = VIDEO.sizes_bytes[index][level]
        download_s = link.download_s(size_bytes)
        now += download_s
        rebuffer_s = playback.append(now)
        buffer_s, waited_s = playback.buffer_s(now), 0.0
        while (pause_s := playback.wait_s(now)) > 0:
            now += pause_s
            waited_s += pause_s
            link.sleep(pause_s)
        chunks.append(Chunk(index, level, size_bytes, download_s, rebuffer_s, buffer_s, waited_s))
    account = playback.account(playback.last_s)
    assert account.startup_s + account.played_s + account.rebuffer_s == pytest.approx(account.wall_s, abs=TOLERANCE_S)
    return chunks


traces = st.lists(st.tuples(st.floats(0.5, 20.0), st.sampled_from([0.0, 1.0]) | st.floats(0.2e6, 8e6)), min_size=1, max_size=20).map(
    lambda steps: RateTrace(
        "t",
        tuple(sum(width for width, _ in steps[:i]) for i in range(len(steps) + 1)),
        tuple(CROOKED * (2e6 if i == 0 else rate) for i, (_, rate) in enumerate(steps)),
    )
)


@settings(max_examples=100, deadline=None)
@given(traces, st.lists(st.integers(0, 5), min_size=1, max_size=48))
def test_on_an_ideal_link_the_player_is_the_simulator(trace: RateTrace, levels: list[int]) -> None:
    assert_equal(trace, levels)


def assert_equal(trace: RateTrace, levels: list[int]) -> None:
    simulator = AbrSimulator(trace, AbrSession("s", VIDEO, len(levels)))
    simulated = [simulator.step(level) for level in levels]
    for ours, theirs in zip(play(IdealLink(trace), levels), simulated, strict=True):
        if abs(theirs.buffer_s - theirs.waited_s - 60.0) < TOLERANCE_S:
            return  # at exactly the cap the two differ by one step of 0.5 s, as `players.playback` says
        if theirs.index == len(levels) - 1:
            ours, theirs = (Chunk(c.index, c.level, c.size_bytes, c.download_s, c.rebuffer_s, c.buffer_s) for c in (ours, theirs))
        assert (ours.index, ours.level, ours.size_bytes) == (theirs.index, theirs.level, theirs.size_bytes)
        for name in ("download_s", "rebuffer_s", "buffer_s", "waited_s"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=TOLERANCE_S), (name, ours, theirs)


def test_a_session_with_a_full_buffer_and_a_stall() -> None:
    """The property above is not empty: this trace has both."""
    trace = RateTrace("t", (0.0, 100.0, 200.0), (6e6, 0.05e6))
    levels = [0] + [2] * 30 + [5] * 17
    chunks = play(IdealLink(trace), levels)
    assert sum(chunk.waited_s > 0 for chunk in chunks) > 5
    assert sum(chunk.rebuffer_s > 10 for chunk in chunks[1:]) >= 1
    assert_equal(trace, levels)
