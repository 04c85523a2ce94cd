"""The compiled batch is the simulator, in every bit; and the offline optimum is a playback that nothing beats."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.api import AbrSession, Manifest
from testbed.bench.sim import SimSettings, agree, published, sim
from testbed.errors import TestbedError, UserError
from testbed.metrics import summarise
from testbed.sim.abr import AbrSimulator
from testbed.sim.batch import AbrBatch, Traces
from testbed.sim.optimum import offline_optimum
from tests.abr_cases import session
from traces.trace import OpportunityTrace, RateTrace

PLAYBACK = session()
LEVELS = PLAYBACK.video.levels


@st.composite
def rate_traces(draw):
    widths = draw(st.lists(st.floats(0.05, 30), min_size=1, max_size=12))
    rates = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e5, 8e6)), min_size=len(widths), max_size=len(widths)))
    widest = widths.index(max(widths))
    rates[widest] = max(rates[widest], 3e5)  # else a lap could carry next to nothing
    return RateTrace("t", (0.0, *np.cumsum(widths).tolist()), tuple(rates))


@settings(max_examples=40, deadline=None)
@given(st.lists(rate_traces(), min_size=1, max_size=4), st.integers(0, 2**32), st.booleans())
def test_each_session_of_a_batch_is_that_of_the_simulator(traces, seed, noisy):
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(traces), 5)
    offsets_s = rng.uniform(0, 500, 5)
    batch = AbrBatch(Traces(traces), PLAYBACK, which, offsets_s)
    alone = [AbrSimulator(traces[k], PLAYBACK, offset_s) for k, offset_s in zip(which, offsets_s, strict=True)]
    while not batch.done:
        levels = rng.integers(0, LEVELS, 5)
        noise = rng.uniform(0.9, 1.1, 5) if noisy else None
        done = batch.step(levels, noise)
        for i, simulator in enumerate(alone):
            simulator._noise, simulator._rng = float(noisy), Given(noise[i]) if noisy else None
            chunk = simulator.step(int(levels[i]))
            seen = (done.download_s[i], done.rebuffer_s[i], done.buffer_s[i], done.waited_s[i])
            assert seen == (chunk.download_s, chunk.rebuffer_s, chunk.buffer_s, chunk.waited_s)
            assert (batch.state.trace_s[i], batch.state.buffer_s[i]) == (simulator.trace_s, simulator.buffer_s)
    assert all(simulator.done for simulator in alone)


class Given:
    """A generator that gives the factor that the batch got."""

    def __init__(self, factor):
        self.factor = factor

    def uniform(self, low, high):
        return self.factor


def test_videos_of_one_ladder_may_be_mixed():
    trace = RateTrace("t", (0, 10), (3e6,))
    sizes = np.asarray(PLAYBACK.video.sizes_bytes, float)
    batch = AbrBatch(Traces([trace]), PLAYBACK, [0, 0], sizes_bytes=[sizes, 2 * sizes], video=[0, 1])
    one, double = batch.step([2, 2]).download_s - PLAYBACK.rtt_s
    assert double == pytest.approx(2 * one)


@pytest.mark.parametrize("levels", [[0], [0, LEVELS], [-1, 0]])
def test_levels_outside_the_ladder_are_refused(levels):
    batch = AbrBatch(Traces([RateTrace("t", (0, 10), (3e6,))]), PLAYBACK, [0, 0])
    with pytest.raises(ValueError, match=f"wanted one of 0 to {LEVELS - 1} for each of 2"):
        batch.step(levels)


def test_a_batch_that_is_over_says_so():
    batch = AbrBatch(Traces([OpportunityTrace("t", (0.001, 0.002))]), PLAYBACK, [0])
    while not batch.done:
        batch.step([0])
    with pytest.raises(ValueError, match=f"have {PLAYBACK.chunks} chunks"):
        batch.step([0])


@settings(max_examples=25, deadline=None)
@given(rate_traces(), st.floats(0, 100))
def test_no_playback_of_a_short_video_beats_the_optimum(trace, offset_s):
    """Against all sequences of levels, one by one."""
    sizes = tuple(row[:3] for row in PLAYBACK.video.sizes_bytes[:5])
    short = AbrSession("short", Manifest("short", PLAYBACK.video.chunk_s, PLAYBACK.video.bitrates_bps[:3], sizes), 5)
    best = -np.inf
    for levels in product(range(3), repeat=4):
        simulator = AbrSimulator(trace, short, offset_s)
        for level in (short.first_level, *levels):
            simulator.step(level)
        best = max(best, summarise(simulator.history, short.video).qoe)
    found = offline_optimum(trace, short, offset_s, grid_s=0.02)
    assert found <= best + 1e-9
    assert found == pytest.approx(best, abs=0.02)


def test_the_benchmark_measures_what_agrees(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    for i, rate in enumerate((0.7, 1.9, 3.1)):
        (folder / f"{i}.txt").write_text("".join(f"{t} {rate * (1 + t % 3):.3f}\n" for t in range(60)))
    text = sim(SimSettings(trace=str(folder), sessions=8, repetitions=1, write=tmp_path / "sim.md"))
    assert "| compiled batches |" in text and "| one session at a time |" in text and "3 traces of" in text
    assert (tmp_path / "sim.md").read_text() == text


def test_the_benchmark_refuses_to_compare_what_differs():
    with pytest.raises(TestbedError, match="two and one differ in a chunk's stall"):
        agree({"one": [[1.0, 2.0]], "two": [[1.0, 2.1]]})


def test_a_checkout_that_is_not_netllms_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no .*env.py, wanted a checkout of NetLLM"):
        published(tmp_path, [])
